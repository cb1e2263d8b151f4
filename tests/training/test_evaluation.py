import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score
from torch import nn

from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples
from noisescale.training import evaluation as module
from noisescale.training.evaluation import Evaluation, evaluate


@pytest.fixture
def examples():
    return Examples(torch.randn(103, 6), torch.randint(4, (103,)))


@pytest.mark.parametrize("chunk", [103, 10, 1])
def test_scores_equal_scikit_learns_whatever_the_chunk(examples, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)  # 103 = 10·10 + 3: a ragged last chunk
    model = nn.Linear(6, 4)
    scores = evaluate(model, cross_entropy, examples)
    outputs = model(examples.inputs).detach()
    predicted = outputs.argmax(1)
    assert scores.loss == pytest.approx(
        nn.functional.cross_entropy(outputs, examples.targets).item(), rel=1e-6
    )
    assert scores.accuracy == pytest.approx(accuracy_score(examples.targets, predicted))
    assert scores.f1 == pytest.approx(f1_score(examples.targets, predicted, average="macro"))
    np.testing.assert_array_equal(scores.confusion, confusion_matrix(examples.targets, predicted))


def test_macro_f1_counts_a_class_never_hit_as_zero_and_leaves_out_one_never_seen():
    confusion = np.array([[3, 0, 0], [2, 0, 0], [0, 0, 0]])
    expected = f1_score([0, 0, 0, 1, 1], [0] * 5, average="macro", zero_division=0)
    assert Evaluation(loss=0.0, confusion=confusion).f1 == pytest.approx(expected)


def test_outputs_that_are_nan_predict_class_zero(examples):
    model = nn.Linear(6, 4)
    nn.init.constant_(model.bias, math.nan)
    scores = evaluate(model, cross_entropy, examples)
    assert math.isnan(scores.loss)
    assert scores.accuracy == pytest.approx((examples.targets == 0).double().mean().item())
    assert scores.confusion[:, 1:].sum() == 0


def test_modes_and_buffers_are_left_as_they_were(examples):
    model = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 4))
    model[1].eval()
    before = model[0].running_mean.clone()
    evaluate(model, cross_entropy, examples)
    assert [layer.training for layer in model] == [True, False, True]
    assert torch.equal(model[0].running_mean, before)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16])
def test_classes_in_few_bits_are_counted_right(dtype):
    """Class times the number of classes is more than a byte holds."""
    targets = torch.arange(20).repeat(5)
    model = nn.Linear(20, 20, bias=False)
    nn.init.eye_(model.weight)
    examples = Examples(nn.functional.one_hot(targets).float(), targets.to(dtype))
    scores = evaluate(model, lambda outputs, classes: outputs.sum(1), examples)
    assert scores.accuracy == scores.f1 == 1.0
    assert (scores.confusion == 5 * np.eye(20)).all()
