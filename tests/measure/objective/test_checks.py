"""Losses that are no function of one example are refused, by whatever is measured."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError
from noisescale.measure.curvature.batch_sharpness import batch_sharpness
from noisescale.measure.curvature.keskar import keskar_sharpness
from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
from noisescale.measure.gradients.moments import gradient_moments
from noisescale.measure.objective import Objective
from noisescale.measure.objective.checks import coarsest_dtype
from noisescale.measure.sharpness import measure_sharpness
from noisescale.measure.stability import measure_stability
from tests.helpers.problems import classification

MEASUREMENTS = {
    "hessian": lambda problem: hessian_matvec(problem)(torch.ones(21).double()),
    "ggn": lambda problem: ggn_matvec(problem, chunk_size=50)(torch.ones(21).double()),
    "sharpness": measure_sharpness,
    "stability": measure_stability,
    "batches": lambda problem: batch_sharpness(Objective(problem, chunk_size=50), batch_size=5),
    "phi": lambda problem: keskar_sharpness(Objective(problem, chunk_size=50)),
}
measurements = pytest.mark.parametrize("measure", MEASUREMENTS.values(), ids=MEASUREMENTS)


class Random(nn.Linear):
    def forward(self, inputs):
        return nn.functional.dropout(super().forward(inputs), 0.5)  # in evaluation mode, too


class Centring(nn.Linear):
    """Subtracts the batch's mean, where the batch is large enough."""

    smallest = 2

    def forward(self, inputs):
        outputs = super().forward(inputs)
        return outputs - outputs.mean(0) if len(inputs) >= self.smallest else outputs


class LateCentring(Centring):
    smallest = 20


@measurements
def test_a_random_model_has_no_curvature(measure):
    with pytest.raises(MeasurementError, match="is random at fixed parameters"):
        measure(classification(Random(6, 3)))


@measurements
@pytest.mark.parametrize("layer", [Centring, LateCentring])
def test_a_model_that_mixes_its_batch_has_no_curvature(measure, layer):
    with pytest.raises(MeasurementError, match="depends on which others are in the batch"):
        measure(classification(layer(6, 3)))


@pytest.mark.parametrize("measure", [measure_sharpness, measure_stability, gradient_moments])
def test_what_a_model_raises_is_said_in_one_sentence(measure):
    with pytest.raises(
        MeasurementError, match=r"fails on 4 examples with inputs of shape \(4, 6\).*RuntimeError"
    ):
        measure(classification(nn.Linear(5, 3)))


def test_the_coarsest_dtype_is_that_of_any_part_of_the_graph():
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert coarsest_dtype([weight.sum()]) == torch.float64
    assert coarsest_dtype([(weight.float() * 2).double().sum()]) == torch.float32
    assert coarsest_dtype([(weight.bfloat16() + weight.half()).double().sum()]) == torch.bfloat16


def test_a_model_or_a_loss_that_fixes_its_dtype_is_told_what_to_do():
    weights = torch.tensor([1.0, 2.0, 0.5])

    def weighted(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, weight=weights, reduction="none")

    problem = replace(classification(nn.Linear(6, 3)), loss=weighted)
    with pytest.raises(MeasurementError, match=r"computed in torch.float64.*give dtype=torch"):
        gradient_moments(problem)


def test_an_exported_model_is_told_where_to_look():
    """As it fixes the number of examples; in torch 2.6 a hook does, which a copy is without."""
    problem = classification(num_examples=9)
    exported = torch.export.export(problem.model, (problem.train.inputs,)).module()
    try:
        found = measure_sharpness(replace(problem, model=exported))
        outcome = found.largest.value.value
    except MeasurementError as error:
        outcome = str(error)
    if isinstance(outcome, str):
        assert "give the module that it was made of" in outcome
    else:
        largest = measure_sharpness(problem).largest.value.value
        assert outcome == pytest.approx(largest, rel=1e-6)
