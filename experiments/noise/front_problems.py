"""Problems of the fronts that no configuration names; a change of this file begins their runs anew.

The quadratics and the linear regression have closed forms: the expected loss after each step
follows from the second moments of θ, and from that B_crit.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from noisescale import Examples, Problem, ProblemConfig, build_problem
from noisescale.problems.synthetic import linear_regression, noisy_quadratic

DIM = 50  # of the problems in closed form
NUM_EXAMPLES = 40 * 512  # a multiple of every batch size
ORDINALS = torch.arange(1, DIM + 1, dtype=torch.float64)
START = 0.8  # of every parameter of a quadratic; less its minimum, of the regression
CHANNELS, BLOCKS = 16, 2  # of the residual network
DIGITS = ProblemConfig(dataset="digits", num_train=1024)


def quadratic_steep() -> Problem:
    """Curvatures 1/k, gradient noise of covariance .8·√H."""
    return _quadratic(1 / ORDINALS, 0.8 / ORDINALS.sqrt())


def quadratic_white() -> Problem:
    """Curvatures 1/√k, gradient noise alike in all directions."""
    return _quadratic(1 / ORDINALS.sqrt(), 0.5 * torch.ones(DIM, dtype=torch.float64))


def quadratic_curved() -> Problem:
    """Curvatures 1/k, gradient noise of covariance 2·H, as near the minimum of a likelihood."""
    return _quadratic(1 / ORDINALS, 2 / ORDINALS)


def regression() -> Problem:
    """Linear regression on normal inputs of variances 1/k, with unit noise in the targets.

    Its test examples √(d·a_k)·e_k without noise have ½δᵀAδ as their mean loss, the expected one of
    fresh examples less that of the noise.
    """
    weights = torch.full((DIM,), START, dtype=torch.float64)
    made = linear_regression(
        input_variances=1 / ORDINALS,
        weights=weights,
        noise=1.0,
        num_examples=NUM_EXAMPLES,
        generator=torch.Generator().manual_seed(0),
    )
    inputs = torch.diag((DIM / ORDINALS).sqrt())
    return replace(made.problem, test=Examples(inputs, inputs @ weights))


def _quadratic(curvatures: Tensor, variances: Tensor) -> Problem:
    """½θᵀHθ + ζᵀθ, ζ of mean zero over the examples, and a test example whose loss is ½θᵀHθ."""
    made = noisy_quadratic(
        hessian=torch.diag(curvatures),
        covariance=torch.diag(variances),
        start=torch.full((DIM,), START, dtype=torch.float64),
        num_examples=NUM_EXAMPLES,
        generator=torch.Generator().manual_seed(0),
    )
    train = made.problem.train
    assert isinstance(train, Examples)
    inputs = train.inputs - train.inputs.mean(0)
    nothing = torch.zeros(1, DIM, dtype=torch.float64)
    return replace(
        made.problem,
        train=Examples(inputs, train.targets),
        test=Examples(nothing, nothing[:, 0]),
    )


def digits_logistic(seed: int = 0) -> Problem:
    """Logistic regression on the digits."""
    problem = build_problem(DIGITS, seed=seed)
    return replace(problem, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), config=None)


class _Block(nn.Module):
    """Two convolutions added to their input, (B, C, H, W) -> (B, C, H, W); no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        # the sum over all blocks then has about the size of one, as batch norm would see to
        self.second.weight.data.div_(BLOCKS**0.5)

    def forward(self, images: Tensor) -> Tensor:
        added: Tensor = self.second(torch.relu(self.first(torch.relu(images))))
        return images + added


def digits_residual(seed: int = 0) -> Problem:
    """A residual network without batch norm, on the digits."""
    problem = build_problem(DIGITS, seed=seed)
    model = nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1),
        *(_Block(CHANNELS) for _ in range(BLOCKS)),
        nn.ReLU(),
        nn.AvgPool2d(2),  # 8×8 to 4×4
        nn.Flatten(),
        nn.Linear(CHANNELS * 16, 10),
    )
    return replace(problem, model=model, config=None)
