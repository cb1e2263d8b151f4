"""Linearised SGD: its steps against dense matrices, its threshold against closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from noisescale.errors import SettingError
from noisescale.measure.curvature.linear_sgd import LinearisedSGD, log_growth, lyapunov_rate
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Problem
from noisescale.problems.sampling import Batches
from tests.helpers.problems import example_curvatures, seeded, small_network


def one_parameter(slopes: list[float]) -> Problem:
    """Losses ½(x_i θ)², so that H_i = x_i²."""
    inputs = torch.tensor(slopes, dtype=torch.float64).unsqueeze(1)
    model = nn.Linear(1, 1, bias=False).double()
    examples = Examples(inputs, torch.zeros(len(slopes), dtype=torch.float64))
    return Problem(
        model=model, loss=lambda outputs, targets: 0.5 * outputs[:, 0] ** 2, train=examples
    )


SLOPES = [0.5, 1.0, 1.5, 2.0]


def test_a_step_is_that_of_the_dense_matrices():
    problem = small_network()
    dense = example_curvatures(problem)
    sgd = LinearisedSGD(Objective(problem))
    points = torch.randn(2, 8, dtype=torch.float64)
    batches, rates = (
        torch.tensor([[0, 3, 5], [2, 2, 7]]),
        torch.tensor([0.3, 0.7], dtype=torch.float64),
    )
    named = [sgd.objective.unflatten(point) for point in points]
    stacked = {name: torch.stack([one[name] for one in named]) for name in named[0]}
    after = sgd.step(stacked, batches, rates)
    for replica, (batch, rate) in enumerate(zip(batches, rates, strict=True)):
        expected = points[replica] - rate * dense[batch].mean(0) @ points[replica]
        found = torch.cat([part[replica].flatten() for part in after.values()])
        torch.testing.assert_close(found, expected)
    rows = torch.arange(12)
    expected = 0.5 * torch.einsum("rp,pq,rq->r", points, dense.mean(0), points)
    torch.testing.assert_close(sgd.quadratic_loss(stacked, rows), expected)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_in_one_dimension_the_threshold_is_the_root_of_the_mean_logarithm(batch_size):
    """Over whole epochs without replacement every factor 1 − ηx² is used once: no chance left."""
    curvatures = np.array(SLOPES) ** 2
    if batch_size == len(SLOPES):
        curvatures = curvatures.mean(keepdims=True)

    def exponent(rate: float) -> float:
        return float(np.mean(np.log(np.abs(1 - rate * curvatures))))

    exact = 2 / curvatures.mean() if batch_size == 4 else brentq(exponent, 1.05, 3.9)
    found = lyapunov_rate(
        LinearisedSGD(Objective(one_parameter(SLOPES))),
        torch.ones(1, dtype=torch.float64),
        batch_size=batch_size,
        low=0.1,
        high=12.8,
        num_replicas=2,
        num_steps=400,
        generator=seeded(0),
    )
    half_cell = 128 ** (1 / 2**8)  # seven bisections of a range of 128, up to half of the last
    assert exact / half_cell <= found.value <= exact * half_cell
    assert found.low <= exact <= found.high


def test_the_threshold_on_the_whole_set_is_that_of_gradient_descent():
    problem = small_network()
    values, vectors = torch.linalg.eigh(example_curvatures(problem).mean(0))
    found = lyapunov_rate(
        LinearisedSGD(Objective(problem)),
        vectors[:, -1],
        batch_size=12,
        low=1.0,
        high=30.0,
        num_replicas=2,
        num_steps=200,
        generator=seeded(0),
    )
    assert found.low <= 2 / values[-1] <= found.high
    assert found.high / found.low < 1.1


@pytest.mark.parametrize("range_", [(1e-4, 1e-3), (100.0, 1000.0)])
def test_a_threshold_beyond_the_range_is_a_bound(range_):
    low, high = range_
    found = lyapunov_rate(
        LinearisedSGD(Objective(one_parameter(SLOPES))),
        torch.ones(1, dtype=torch.float64),
        batch_size=1,
        low=low,
        high=high,
        num_replicas=2,
        num_steps=50,
        generator=seeded(0),
    )
    assert math.isnan(found.value)
    assert (found.low == high) if high < 1 else (found.high == low)


def test_what_outgrows_the_numbers_has_grown():
    problem = one_parameter(SLOPES)
    problem.model.float()
    sgd = LinearisedSGD(
        Objective(
            Problem(
                **{
                    **vars(problem),
                    "train": Examples(problem.train.inputs.float(), problem.train.targets.float()),
                }
            )
        )
    )
    orders = [Batches(4, seed=0)]
    growth = log_growth(
        sgd,
        torch.ones(1),
        orders,
        torch.tensor([1e30]),
        torch.arange(4),
        batch_size=1,
        num_steps=20,
    )
    assert not (growth <= 0).item()


def test_a_reversed_range_is_refused():
    with pytest.raises(SettingError, match="0 < low < high"):
        lyapunov_rate(
            LinearisedSGD(Objective(one_parameter(SLOPES))),
            torch.ones(1),
            batch_size=1,
            low=2.0,
            high=1.0,
            num_replicas=1,
            num_steps=5,
            generator=seeded(0),
        )


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 11), (2, 4), (3, 3)])
def test_the_growth_is_the_product_of_the_steps_of_whole_batches(batch_size, steps):
    """Four examples: batches of three leave a rest of one in each epoch, which is not used."""
    curvatures = torch.tensor(SLOPES, dtype=torch.float64) ** 2
    order = Batches(4, seed=5)
    expected = 0.0
    for _ in range(steps):
        batch = order.take(batch_size)
        if len(batch) < batch_size:
            batch = order.take(batch_size)
        expected += math.log(abs(1 - 0.3 * curvatures[batch].mean().item()))
    found = log_growth(
        LinearisedSGD(Objective(one_parameter(SLOPES))),
        torch.full((1,), 7.0, dtype=torch.float64),
        [Batches(4, seed=5)],
        torch.tensor([0.3], dtype=torch.float64),
        torch.arange(4),
        batch_size=batch_size,
        num_steps=steps,
    )
    assert found.item() == pytest.approx(expected)
