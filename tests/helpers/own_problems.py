"""Problems of a user's own: a quadratic, some that cannot be, and one in training mode."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from noisescale.problems.problem import Examples, Problem
from noisescale.problems.synthetic import noisy_quadratic

NUM_EXAMPLES, DIM = 2000, 20
CURVATURES = 1 / np.arange(1, DIM + 1)
VARIANCES = 6 * np.sqrt(CURVATURES)  # of the gradient, in the Hessian's eigenvectors
START = np.full(DIM, 1.5)


def quadratic():
    """½θᵀHθ + ζᵀθ, the mean of ζ over the examples zero: the minimum, of loss 0, is at 0."""
    made = noisy_quadratic(
        hessian=torch.diag(torch.tensor(CURVATURES)),
        covariance=torch.diag(torch.tensor(VARIANCES)),
        start=torch.tensor(START),
        num_examples=NUM_EXAMPLES,
        generator=torch.Generator().manual_seed(0),
    )
    noise = made.problem.train.inputs
    noise -= noise.mean(0)
    return made.problem


def steps_to(goal, *, batch_size, rates, longest):
    """The fewest steps at any rate until the expected loss is at the goal, by exact moments.

    E θ_k² becomes (1 − εh_k)²·E θ_k² + ε²σ_k²/B in a step.
    """
    epsilon = np.asarray(rates)[:, None]
    squares = np.tile(START**2, (len(rates), 1))
    for step in range(1, longest + 1):
        squares = (1 - epsilon * CURVATURES) ** 2 * squares + epsilon**2 * VARIANCES / batch_size
        if (0.5 * squares @ CURVATURES <= goal).any():
            return step
    raise AssertionError(f"no rate reaches {goal} in {longest} steps at B = {batch_size}")


def not_a_number():
    problem = quadratic()
    return replace(problem, loss=lambda outputs, targets: outputs * float("nan"))


def no_gradient():
    problem = quadratic()
    return replace(problem, loss=lambda outputs, targets: 0 * outputs + 1)


def tiny():
    return replace(quadratic(), train=Examples(torch.ones(3, DIM).double(), torch.zeros(3)))


def climbing():
    """A loss that any step along its gradient makes larger: its gradient has the wrong sign."""

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value

        @staticmethod
        def backward(ctx, gradient):
            return -gradient

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.theta = nn.Parameter(torch.ones(3))

        def forward(self, inputs):
            theta = Wrong.apply(self.theta) if self.training else self.theta
            return (inputs * theta).square().sum(1)

    inputs = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    return Problem(
        model=Model(),
        loss=lambda outputs, targets: outputs,
        train=Examples(inputs, torch.zeros(50)),
    )


def with_dropout():
    """A network that its factory leaves in training mode, as torch makes it."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator)
    targets = torch.randint(3, (60,), generator=generator)
    return Problem(
        model=nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)),
        loss=nn.CrossEntropyLoss(reduction="none"),
        train=Examples(inputs, targets),
    )
