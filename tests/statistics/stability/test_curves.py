"""The limits of stability, against gradient descent itself and the exact mean-square recursion."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from noisescale.errors import SettingError
from noisescale.statistics.estimate import Estimate, exact
from noisescale.statistics.stability.curves import (
    StabilityConstants,
    StabilityCurve,
    batch_noise_factor,
    side_of,
)
from noisescale.training.config import TrainConfig, stable_sharpness
from noisescale.training.trainer import train
from tests.helpers.closed_forms import constants_of
from tests.helpers.problems import example_curvatures, quadratic, seeded, small_network


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_gradient_descent_on_a_quadratic_ends_exactly_at_the_limit(momentum, weight_decay):
    problem = quadratic().problem  # λ_max = 4
    limit_rate = 2 * (1 + momentum) / (4 + weight_decay)
    distances = []
    for factor in (0.98, 1.02):
        config = TrainConfig(
            batch_size="full",
            learning_rate=factor * limit_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            epochs=600,
        )
        assert (stable_sharpness(config) > 4) is (factor < 1)
        *_, last = train(problem, config)
        rest = problem.train.inputs.mean(0)
        hessian = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))
        minimum = -torch.linalg.solve(hessian + weight_decay * torch.eye(3), rest)
        distances.append((last.params["theta"] - minimum).norm().item())
    assert distances[0] < 1e-6
    assert not distances[1] < 1e6


def test_adam_has_no_such_limit_and_neither_has_too_much_weight_decay():
    assert stable_sharpness(TrainConfig(optimizer="adam")) is None
    assert stable_sharpness(TrainConfig(learning_rate=1.0, weight_decay=2.0)) is None


def test_the_side_of_a_limit_is_that_of_the_whole_interval():
    assert side_of(10, low=8, high=9.9) == "below"
    assert side_of(10, low=9, high=11) == "at"
    assert side_of(10, low=10.1, high=11) == "above"


def mean_square_threshold(curvatures: torch.Tensor, factor: float) -> float:
    """η* = 2/λ_max(C†D) (Mulayoff & Michaeli 2023), by Kronecker products of H_i (n, d, d)."""
    mean = curvatures.mean(0)
    identity = torch.eye(len(mean), dtype=mean.dtype)
    symmetric = (torch.kron(mean, identity) + torch.kron(identity, mean)) / 2
    squares = torch.stack([torch.kron(one, one) for one in curvatures]).mean(0)
    second = (1 - factor) * torch.kron(mean, mean) + factor * squares
    return 2 / torch.linalg.eigvals(torch.linalg.pinv(symmetric) @ second).real.max().item()


def growth_in_mean_square(curvatures: torch.Tensor, factor: float, rate: float) -> float:
    """Spectral radius of the map of E[xxᵀ] under one step: the recursion itself, without C or D."""
    mean = curvatures.mean(0)
    step = torch.eye(len(mean), dtype=mean.dtype) - rate * mean
    squares = torch.stack([torch.kron(one, one) for one in curvatures]).mean(0)
    noise = rate**2 * factor * (squares - torch.kron(mean, mean))
    return torch.linalg.eigvals(torch.kron(step, step) + noise).abs().max().item()


@pytest.fixture(params=["network", "random", "one parameter"])
def curvatures(request):
    if request.param == "network":
        return example_curvatures(small_network())
    dim = 4 if request.param == "random" else 1
    roots = torch.randn(12, 2, dim, generator=seeded(0), dtype=torch.float64)
    return roots.mT @ roots  # rank two, as with two outputs


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 6, 12])
def test_the_exact_threshold_lies_between_the_lower_and_the_upper_curve(
    curvatures, batch_size, replacement
):
    population = None if replacement else len(curvatures)
    factor = batch_noise_factor(batch_size, population_size=population)
    exact = mean_square_threshold(curvatures, factor)
    assert (
        growth_in_mean_square(curvatures, factor, 0.999 * exact) < 1 + 1e-9
    )  # null directions stay at 1
    assert growth_in_mean_square(curvatures, factor, 1.001 * exact) > 1 + 1e-5
    rates = constants_of(curvatures).rates(batch_size, population_size=population)
    assert rates["lower"] <= exact * (1 + 1e-9)
    assert exact <= rates["upper"] * (1 + 1e-9)
    if curvatures.shape[1] == 1:
        assert exact == pytest.approx(rates["upper"])


def test_the_gaussian_curve_is_sufficient_for_gaussian_inputs():
    """H_i = xxᵀ has fourth moments in closed form: E[H_i C H_i] = 2HCH + H tr(HC)."""
    variances = torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=torch.float64)
    hessian = torch.diag(variances)
    constants = replace(
        constants_of(hessian.unsqueeze(0)),
        trace=variances.sum().item(),
        sharpness=3.0,
        concentration=3.0,
    )
    for batch_size in (1, 4, 64):
        rate = constants.rates(batch_size, population_size=None)["gaussian"]
        for factor, stable in ((1.0, True), (1 + constants.trace / 3.0 + 1, False)):

            def residual(tried: float, size: int = batch_size) -> float:
                """Σ_i ηλ_i/(2 − ηλ_i(1 + 1/B))/B, stable below 1."""
                parts = tried * variances / (2 - tried * variances * (1 + 1 / size))
                return parts.sum().item() / size if (parts > 0).all() else math.inf

            assert (residual(factor * rate) < 1 + 1e-9) is stable


def test_curves_follow_their_formulas():
    constants = StabilityConstants(
        sharpness=4.0,
        concentration=3.0,
        largest_example=40.0,
        trace=20.0,
        square_deviation=25.0,
        best_rate=0.3,
        noise_batch_size=50.0,
        num_examples=100,
    )
    found = constants.rates(10, population_size=None)
    assert found["upper"] == pytest.approx(0.5 / (1 + 2 / 10))
    assert found["lower"] == pytest.approx(0.5 / (1 + 9 / 10))
    assert found["gaussian"] == pytest.approx(0.5 / (1 + 6 / 10))
    assert found["descent"] == pytest.approx(0.6 / (1 + 50 / 10))
    assert found["wu"] == pytest.approx(min(0.5, 10**0.5 / 5))
    whole = constants.rates(100, population_size=100)
    assert whole["upper"] == whole["lower"] == whole["gaussian"] == whole["wu"] == 0.5
    assert whole["descent"] == 0.6


def test_the_noise_of_a_batch_without_replacement():
    values = torch.randn(6, generator=seeded(1), dtype=torch.float64)
    means = torch.stack(
        [values[list(batch)].mean() for batch in itertools.combinations(range(6), 2)]
    )
    expected = means.var(correction=0) / values.var(correction=0)
    assert batch_noise_factor(2, population_size=6) == pytest.approx(expected.item())
    assert batch_noise_factor(1, population_size=1) == 0
    with pytest.raises(SettingError, match="1 to 6"):
        batch_noise_factor(7, population_size=6)


def with_errors(**estimates: Estimate) -> StabilityConstants:
    constants = constants_of(example_curvatures(small_network()))
    values = {name: estimate.value for name, estimate in estimates.items()}
    return replace(constants, **values, population_size=1000, estimates=estimates)


def interval(value, low, high):
    return Estimate(value=value, stderr=(high - low) / 4, low=low, high=high, num_samples=16)


def test_a_bands_ends_are_those_of_its_constants_together():
    constants = with_errors(
        sharpness=interval(4.0, 3.0, 5.0), concentration=interval(2.0, 1.5, 3.0)
    )
    upper = constants.rate_estimates(10, population_size=None)["upper"]
    assert upper.value == pytest.approx(2 / 4 / (1 + 0.1 * (2 - 1)))
    assert upper.low == pytest.approx(2 / 5 / (1 + 0.1 * (3 - 1)))
    assert upper.high == pytest.approx(2 / 3 / (1 + 0.1 * (1.5 - 1)))
    assert upper.num_samples == 16
    unknown = constants.rate_estimates(10, population_size=None)["gaussian"]  # tr H has no error
    assert math.isnan(unknown.low)
    assert unknown.value == constants.rates(10, population_size=None)["gaussian"]


def test_the_lower_curve_of_a_subset_is_open_below():
    of_subset = Estimate(value=40.0, stderr=math.nan, low=40.0, high=math.inf, num_samples=100)
    constants = with_errors(sharpness=exact(4.0), largest_example=of_subset)
    lower = constants.rate_estimates(10, population_size=None)["lower"]
    assert lower.low == 0
    assert lower.high == pytest.approx(2 / 4 / (1 + 0.1 * (10 - 1)))
    (note,) = constants.notes
    assert "lower estimate" in note
    assert "no bound" in note
    whole = constants.rate_estimates(1000, population_size=1000)["lower"]  # B = N: β is no matter
    assert (whole.low, whole.high) == (0.5, 0.5)
    known = with_errors(sharpness=exact(4.0), largest_example=exact(40.0))
    assert known.notes == ()
    assert known.rate_estimates(10, population_size=None)["lower"].stderr == 0


def test_constants_are_read_as_they_were_kept_before_there_were_errors():
    kept = {
        "sharpness": 1.2222,
        "concentration": 1.26878,
        "largest_example": 13.435,
        "trace": 31.1586,
        "square_deviation": 5.48549,
        "best_rate": "nan",
        "noise_batch_size": "nan",
        "num_examples": 1000,
    }
    constants = StabilityConstants.from_dict(kept)
    assert constants.curves["upper"].rate(1, population_size=None) == pytest.approx(
        2 / 1.2222 / 1.26878
    )
    assert math.isnan(constants.best_rate)
    assert constants.notes == ()
    assert math.isnan(constants.rate_estimates(1, population_size=None)["upper"].low)
    kept["estimates"] = {
        "largest_example": {
            "value": 13.435,
            "stderr": "nan",
            "low": 13.435,
            "high": "inf",
            "num_samples": 1000,
        }
    }
    assert StabilityConstants.from_dict(kept).estimates["largest_example"].high == math.inf
    with pytest.raises(TypeError):
        StabilityConstants.from_dict({"sharpness": 1.0})


@pytest.mark.parametrize("critical_batch_size", [-4.0, -1000.0])
def test_beyond_the_pole_no_rate_is_too_large(critical_batch_size):
    """As at the lower end of an interval that reaches below −B."""
    curve = StabilityCurve(largest_rate=1.0, critical_batch_size=critical_batch_size)
    assert curve.rate(4, population_size=None) == math.inf
    assert curve.rate(10**6, population_size=None) == pytest.approx(1, rel=2e-3)


@pytest.mark.parametrize("batch_size", [0, -5, 0.5])
def test_a_batch_has_an_example(batch_size):
    with pytest.raises(SettingError, match="give 1 or more"):
        batch_noise_factor(batch_size, population_size=None)
