"""Keskar's φ against closed forms and dense matrices."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.keskar import _RandomSubspace, keskar_sharpness
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Problem
from tests.helpers.problems import classification


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
