"""Keskar's φ against closed forms and dense matrices."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.eigenpairs import top_eigenpairs
from noisescale.measure.curvature.keskar import _RandomSubspace, filter_scales, keskar_sharpness
from noisescale.measure.curvature.products import hessian_matvec
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


def relu_network(kind):
    torch.manual_seed(0)
    layers = {
        "linear": [nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 3)],
        "convolution": [
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)),
        ],
    }[kind]
    model = nn.Sequential(*layers).double()
    examples = Examples(torch.randn(30, 1, 6, 6).double(), torch.randint(3, (30,)))
    loss = nn.CrossEntropyLoss(reduction="none")
    return Problem(model=model, loss=loss, train=examples)


def rescaled(problem, factor):
    """The same function: one ReLU layer times the factor, the next one by it."""
    model = copy.deepcopy(problem.model)
    first, second = [layer for layer in model if hasattr(layer, "weight")]
    with torch.no_grad():
        first.weight.mul_(factor)
        first.bias.mul_(factor)
        second.weight.div_(factor)
    return Problem(model=model, loss=problem.loss, train=problem.train)


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_by_filters_rescaling_relu_layers_changes_no_step_of_the_search(kind):
    """Dinh et al. 2017: λ_max and φ in Keskar's box become anything they are wanted to be."""
    problem = relu_network(kind)
    steep = rescaled(problem, 0.1)
    inputs = problem.train.inputs
    torch.testing.assert_close(problem.model(inputs), steep.model(inputs))
    found, again = (
        keskar_sharpness(Objective(each), space="filter", epsilon=0.05) for each in (problem, steep)
    )
    assert found.history == pytest.approx(again.history, rel=1e-6)
    assert found.iterations == 10
    eigenvalues = [
        float(top_eigenpairs(hessian_matvec(each)).values[0]) for each in (problem, steep)
    ]
    assert eigenvalues[1] > 2 * eigenvalues[0]
    plain = [keskar_sharpness(Objective(each)).value for each in (problem, steep)]
    assert plain[1] != pytest.approx(plain[0], rel=0.2)


def test_scales_are_root_mean_squares_of_filters_by_a_plain_loop():
    model = relu_network("convolution").model
    problem = relu_network("convolution")
    expected = []
    for param in model.parameters():
        for unit in param.detach():
            own = unit.abs() if unit.ndim == 0 else unit.square().mean().sqrt()
            expected += [float(own)] * unit.numel()
    found = filter_scales(Objective(problem))
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_phi_by_filters_of_a_linear_loss_is_at_a_corner():
    theta, slopes = np.array([3.0, -1.0, 0.0]), np.array([1.0, -2.0, 5.0])
    found = keskar_sharpness(bowl([0.0] * 3, slopes, theta), space="filter", epsilon=0.01)
    rise = 0.01 * np.abs(slopes * theta).sum()  # of one dimension: in units of its own
    assert found.value == pytest.approx(100 * rise / (1 + slopes @ theta), rel=1e-9)
    assert found.label == "φ (%), filter-normalised, ε = 0.01"
