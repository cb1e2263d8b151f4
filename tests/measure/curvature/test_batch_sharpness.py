"""Keskar's φ, batch sharpness and gradient–noise interaction against closed forms and plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.batch_sharpness import (
    _RandomSubspace,
    batch_sharpness,
    gradient_noise_interaction,
    keskar_sharpness,
)
from noisescale.measure.curvature.products import hessian_matvec
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Problem
from tests.helpers.problems import classification, quadratic, regression


class Bowl(nn.Module):
    """One example of loss ½ Σ h_j θ_j² + Σ b_j θ_j, at θ."""

    def __init__(self, curvatures, slopes, theta):
        super().__init__()
        self.register_buffer("curvatures", torch.tensor(curvatures, dtype=torch.float64))
        self.register_buffer("slopes", torch.tensor(slopes, dtype=torch.float64))
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, inputs):
        value = (0.5 * self.curvatures * self.theta**2 + self.slopes * self.theta).sum()
        return value.expand(len(inputs))


def bowl(curvatures, slopes, theta):
    examples = Examples(torch.zeros(1, 1), torch.zeros(1))
    model = Bowl(curvatures, slopes, theta)
    return Objective(Problem(model=model, loss=lambda outputs, _: outputs, train=examples))


@pytest.mark.parametrize("epsilon", [1e-3, 5e-4])
@pytest.mark.parametrize("slopes", [[0.1, -0.2, 0.3], [0.0, 0.0, 0.0], [1e-15, 1e-15, 1e-15]])
def test_phi_of_a_bowl_is_reached_at_a_corner_of_the_box(epsilon, slopes):
    objective = bowl([100.0, 10.0, 1.0], slopes, [0.0, 0.0, 0.0])
    found = keskar_sharpness(objective, epsilon=epsilon)
    corner = epsilon * np.where(np.array(slopes) < 0, -1, 1)
    best = (0.5 * np.array([100, 10, 1]) * corner**2 + np.array(slopes) * corner).sum()
    assert found.value == pytest.approx(100 * best, rel=1e-6)
    assert list(found.history) == sorted(found.history)


def test_the_box_grows_with_the_parameters():
    theta = np.array([3.0, -1.0])
    found = keskar_sharpness(bowl([0.0, 0.0], [1.0, 1.0], theta), epsilon=1e-3)
    value = theta.sum()
    assert found.value == pytest.approx(100 * 1e-3 * (4 + 2) / (1 + value), rel=1e-9)


def test_phi_in_a_subspace_is_that_of_a_dense_matrix():
    slopes = np.random.default_rng(0).normal(size=40)
    theta = 0.3 * slopes  # so that the loss is positive
    objective = bowl([0.0] * 40, slopes, theta)
    subspace = _RandomSubspace(40, 5, seed=0)
    dense = torch.stack(
        [subspace.apply(unit) for unit in torch.eye(5, dtype=torch.float64)], dim=1
    ).numpy()
    radius = 1e-3 * (np.abs(np.linalg.pinv(dense) @ theta) + 1)
    rise = (np.abs(dense.T @ slopes) * radius).sum()  # a linear loss is largest at a corner
    found = keskar_sharpness(objective, space="random", num_directions=5)
    assert found.value == pytest.approx(100 * rise / (1 + slopes @ theta), rel=1e-6)


def test_a_random_subspace_has_unit_columns_in_every_block():
    subspace = _RandomSubspace(70_000, 11, seed=3)  # two blocks of rows
    gram = torch.stack(
        [subspace.adjoint(subspace.apply(unit)) for unit in torch.eye(11, dtype=torch.float64)]
    )
    torch.testing.assert_close(gram.diagonal(), torch.ones(11, dtype=torch.float64))
    assert gram.fill_diagonal_(0).abs().max() < 5 / math.sqrt(70_000)
    vector = torch.randn(70_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    step = torch.arange(11.0, dtype=torch.float64)
    assert (subspace.apply(step) @ vector).item() == pytest.approx(
        (step @ subspace.adjoint(vector)).item()
    )


def test_phi_needs_float64_and_a_finite_loss():
    problem = classification()
    with pytest.raises(SettingError, match="build it in float64"):
        keskar_sharpness(Objective(problem, dtype=torch.float32))
    with pytest.raises(SettingError, match="epsilon 0"):
        keskar_sharpness(Objective(problem), epsilon=0)

    def cliff(outputs, targets):
        return torch.where(outputs < 1.0005, outputs, torch.inf)

    problem = Problem(
        model=Bowl([0.0], [1.0], [1.0]),
        loss=cliff,
        train=Examples(torch.zeros(1, 1), torch.zeros(1)),
    )
    with pytest.raises(MeasurementError, match=r"not finite within ε = 0.1"):
        keskar_sharpness(Objective(problem), epsilon=0.1)


def all_batches(num_examples, batch_size):
    return [torch.tensor(rows) for rows in itertools.combinations(range(num_examples), batch_size)]


def curvature_along(problem, examples, rows):
    """g_BᵀH_Bg_B and |g_B|² of one batch of a linear regression at θ = 0, in closed form."""
    inputs, targets = examples.part(rows)
    gradient = -inputs.T @ targets / len(rows)
    return (gradient @ inputs.T @ inputs @ gradient / len(rows)).item(), (
        gradient @ gradient
    ).item()


def test_batch_sharpness_is_the_mean_over_all_batches():
    problem = regression(num_examples=8).problem
    ratios = [
        top / bottom
        for top, bottom in (
            curvature_along(problem, problem.train, rows) for rows in all_batches(8, 3)
        )
    ]
    found = batch_sharpness(Objective(problem), batch_size=3, num_batches=400)
    assert abs(found.value - np.mean(ratios)) < 4 * found.stderr
    assert found.stderr == pytest.approx(np.std(ratios) / math.sqrt(400), rel=0.2)
    top, bottom = curvature_along(problem, problem.train, torch.arange(8))
    full = batch_sharpness(Objective(problem), batch_size=8)
    assert (full.value, full.stderr) == (pytest.approx(top / bottom), 0)


def test_batches_without_a_gradient_are_left_out_and_counted():
    problem = regression(num_examples=8).problem
    problem.train.targets[:4] = 0  # at θ = 0 these have no gradient
    problem.train.inputs[:4] = 0
    found = batch_sharpness(Objective(problem), batch_size=1, num_batches=200)
    assert 60 < found.num_samples < 140
    problem.train.targets[:] = 0
    with pytest.raises(MeasurementError, match="every batch of 1 has a gradient of exactly zero"):
        batch_sharpness(Objective(problem), batch_size=1)


def test_tiny_gradients_do_not_underflow():
    """|g|² of a fitted example is below float32's range long before g is."""
    problem = regression(num_examples=8).problem
    tiny = Examples(problem.train.inputs.float(), problem.train.targets.float() * 1e-30)
    single = Problem(model=problem.model.float(), loss=problem.loss, train=tiny)
    found = batch_sharpness(Objective(single), batch_size=1, num_batches=50)
    norms = tiny.inputs.square().sum(1)  # the only nonzero curvature of one example
    assert norms.min() * 0.999 < found.value < norms.max() * 1.001
    assert found.num_samples == 50


def test_gradient_noise_interaction_has_its_closed_form():
    synthetic = quadratic(num_examples=20)
    problem = synthetic.problem
    theta = next(problem.model.parameters()).detach()
    moments = synthetic.moments(theta, "dataset")
    batch_size, total = 4, 20
    noise = (total - batch_size) / (batch_size * (total - 1))  # p of theory.md, Σ with 1/N
    gradient, hessian = moments.gradient, moments.hessian
    expected = gradient @ hessian @ gradient + noise * (hessian @ moments.covariance).trace()
    expected = (expected / (gradient @ gradient)).item()
    found = gradient_noise_interaction(
        Objective(problem), hessian_matvec(problem), batch_size=batch_size, num_batches=1000
    )
    assert abs(found.value - expected) < 4 * found.stderr
    assert found.stderr < 0.1 * expected


def test_impossible_batches_are_refused():
    objective = Objective(classification())
    with pytest.raises(SettingError, match="batch size 51: there are 50 examples"):
        batch_sharpness(objective, batch_size=51)
    with pytest.raises(SettingError, match="num batches 1"):
        batch_sharpness(objective, batch_size=5, num_batches=1)
