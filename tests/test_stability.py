"""The limit of stability, against gradient descent itself."""

import pytest
import torch

from noisescale.config import TrainConfig
from noisescale.stability import side_of, stable_sharpness
from noisescale.training import train
from tests.problems import quadratic


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
            epochs=1500,
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
