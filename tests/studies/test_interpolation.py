"""The line between two models against plain loops of torch."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from noisescale import Examples, Problem, ProblemConfig, TrainConfig, build_problem, train
from noisescale.errors import CheckpointError, MeasurementError, SettingError
from noisescale.studies.interpolation import interpolate
from tests.helpers.command_line import strict

ALPHAS = (-0.5, 0.0, 0.3, 0.5, 1.0)


def ends(**fields):
    """A small problem and the checkpoints of two seeds."""
    problem = build_problem(ProblemConfig(dataset="digits", num_train=120, width=6, **fields))
    configs = [TrainConfig(batch_size=20, learning_rate=0.2, epochs=2, seed=k) for k in (0, 1)]
    return problem, [list(train(problem, config))[-1] for config in configs]


def by_hand(problem, checkpoints, alpha, prepare=lambda model: None):
    """A model at α by its own state dict."""
    first, second = ({**each.params, **each.buffers} for each in checkpoints)
    model = copy.deepcopy(problem.model)
    state = {
        name: torch.lerp(value.double(), second[name].double(), alpha).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }
    model.load_state_dict(state)
    prepare(model)
    return model.eval()


def scores(model, examples):
    outputs = model(examples.inputs)
    losses = nn.functional.cross_entropy(outputs, examples.targets, reduction="none")
    return losses.mean().item(), (outputs.argmax(1) == examples.targets).double().mean().item()


def test_losses_and_accuracies_are_those_of_models_put_together_by_hand():
    problem, checkpoints = ends()
    before = copy.deepcopy(problem.model.state_dict())
    line = interpolate(problem, *checkpoints, alphas=ALPHAS)
    for split in ("train", "test"):
        found = line.splits[split]
        for place, alpha in enumerate(ALPHAS):
            loss, accuracy = scores(by_hand(problem, checkpoints, alpha), getattr(problem, split))
            assert found.losses[place].value == pytest.approx(loss, rel=1e-5)
            assert found.accuracies[place].value == pytest.approx(accuracy)
    for name, value in problem.model.state_dict().items():
        assert torch.equal(value, before[name])
    squares = [
        (checkpoints[1].params[name] - value).double().square().sum()
        for name, value in checkpoints[0].params.items()
    ]
    assert line.distance == pytest.approx(float(sum(squares)) ** 0.5)
    assert line.buffers is None


def whole_batch(problem):
    """Gives a model's batch norms the statistics of all training examples as one batch."""

    def prepare(model):
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = 1.0
        model.train()
        model(problem.train.inputs)

    return prepare


def test_batch_norm_gets_the_statistics_of_each_points_weights():
    problem, checkpoints = ends(norm="batch")
    line = interpolate(problem, *checkpoints, alphas=ALPHAS)
    kept = interpolate(problem, *checkpoints, alphas=ALPHAS, buffers="interpolate")
    for place, alpha in enumerate(ALPHAS):
        model = by_hand(problem, checkpoints, alpha, whole_batch(problem))
        loss, _ = scores(model, problem.test)
        assert line.splits["test"].losses[place].value == pytest.approx(loss, rel=1e-4)
        loss, _ = scores(by_hand(problem, checkpoints, alpha), problem.test)
        assert kept.splits["test"].losses[place].value == pytest.approx(loss, rel=1e-4, nan_ok=True)
    assert "batch norm's running statistics are those of each point" in line.notes[0]
    assert (line.buffers, kept.buffers) == ("recompute", "interpolate")


def test_ghost_norm_gets_them_over_all_examples_and_keeps_its_own_settings(monkeypatch):
    monkeypatch.setattr("noisescale.training.evaluation.CHUNK", 40)  # 120 examples in three
    problem, checkpoints = ends(norm="ghost", ghost_size=10)
    line = interpolate(problem, *checkpoints, alphas=(0, 0.5, 1), splits=["train"])
    plain = Problem(
        model=build_problem(
            ProblemConfig(dataset="digits", num_train=120, width=6, norm="batch")
        ).model,
        loss=problem.loss,
        train=problem.train,
    )
    same = interpolate(plain, *checkpoints, alphas=(0, 0.5, 1), splits=["train"])
    for one, other in zip(line.splits["train"].losses, same.splits["train"].losses, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-5)
    assert [layer.ghost_size for layer in problem.model if hasattr(layer, "ghost_size")] == [10, 10]


def test_of_a_linear_model_with_squared_error_it_is_a_parabola():
    torch.manual_seed(0)
    examples = Examples(torch.randn(30, 4).double(), torch.randn(30).double())
    problem = Problem(
        model=nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double(),
        loss=lambda outputs, targets: (outputs - targets).square(),
        train=examples,
        weights=lambda targets: (targets > 0) + 1.0,
    )
    first, second = (
        {"0.weight": torch.randn(1, 4).double(), "0.bias": torch.randn(1).double()} for _ in "ab"
    )
    line = interpolate(problem, first, second)
    assert len(line.alphas) == 41
    assert (line.alphas[0], line.alphas[-1]) == (-0.5, 1.5)
    losses = np.array([loss.value for loss in line.splits["train"].losses])
    fit = np.polynomial.Polynomial.fit(line.alphas, losses, 2)
    assert np.abs(fit(np.array(line.alphas)) - losses).max() < 1e-10
    start, end = (losses[line.alphas.index(alpha)] for alpha in (0.0, 1.0))
    curvature = fit.convert().coef[2]
    alpha = line.splits["train"].barrier.alpha
    assert alpha in (0.05, 0.95)  # of a convex loss the highest points above the chord lie outside
    assert line.splits["train"].barrier.height.value == pytest.approx(-curvature * 0.05 * 0.95)
    counts = (examples.targets > 0) + 1.0
    outputs = examples.inputs @ first["0.weight"][0] + first["0.bias"]
    at_start = (outputs - examples.targets).square()
    assert start == pytest.approx(float((counts * at_start).sum() / counts.sum()))
    assert end != start
    assert line.splits["train"].accuracies == ()  # there are no classes, and no test split
    assert "test" not in line.splits
    record = strict(json.dumps(line.to_dict(), allow_nan=False))
    assert record["barriers"]["train"]["accuracy_drop"] is None


def test_a_subset_is_the_same_at_every_point():
    problem, (one, _) = ends()
    line = interpolate(problem, one, one, alphas=ALPHAS, num_examples=30)
    values = {loss.value for loss in line.splits["train"].losses}
    assert max(values) - min(values) < 1e-6
    assert line.splits["train"].num_examples == 30


def test_what_makes_no_line_is_refused_in_one_message():
    problem, (one, two) = ends()
    for alphas in ((0, 1), (0, 0.5), (0, 0.5, 1, np.nan)):
        with pytest.raises(SettingError, match="0, 1 and one at least between"):
            interpolate(problem, one, two, alphas=alphas)
    with pytest.raises(SettingError, match="split 'dev'"):
        interpolate(problem, one, two, splits=["dev"])
    with pytest.raises(SettingError, match="buffers 'keep'"):
        interpolate(problem, one, two, buffers="keep")
    wide = build_problem(ProblemConfig(dataset="digits", width=7)).model.state_dict()
    with pytest.raises(CheckpointError, match=r"the second model does not fit.*\(7, 64\) instead"):
        interpolate(problem, one, wide)
    broken = {name: value * torch.nan for name, value in two.params.items()}
    with pytest.raises(MeasurementError, match=r"the second model's .* are not finite"):
        interpolate(problem, one, broken)
