"""Small problems shared by the tests."""

from __future__ import annotations

import torch
from torch import nn

from noisescale.build import cross_entropy
from noisescale.problem import Examples, Problem
from noisescale.synthetic import SyntheticProblem, linear_regression, noisy_quadratic


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classification(model: nn.Module | None = None, *, num_examples: int = 50, seed: int = 0) -> Problem:
    """Six features, three classes, float64; the default model is a small tanh network."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 6, generator=generator, dtype=torch.float64)
    targets = (inputs @ torch.randn(6, 3, generator=generator, dtype=torch.float64)).argmax(1)
    if model is None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    examples = Examples(inputs, targets)
    return Problem(model=model.double(), loss=cross_entropy, train=examples, test=examples)


def quadratic(*, num_examples: int = 20, seed: int = 0) -> SyntheticProblem:
    """Three parameters, curvatures 1, 2 and 4, correlated gradient noise."""
    covariance = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]], dtype=torch.float64)
    return noisy_quadratic(
        hessian=torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)),
        covariance=covariance,
        start=torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64),
        num_examples=num_examples,
        generator=torch.Generator().manual_seed(seed),
    )


def regression(*, num_examples: int = 30, seed: int = 0) -> SyntheticProblem:
    """Four inputs of variances 0.5 to 2."""
    return linear_regression(
        input_variances=torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64),
        weights=torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64),
        noise=0.7,
        num_examples=num_examples,
        generator=torch.Generator().manual_seed(seed),
    )


def symmetric(extremes: list[float], *, dim: int, bulk: tuple[float, float] = (-1.0, 1.0)) -> torch.Tensor:
    """A dense matrix (P, P) with these eigenvalues and an even bulk between, in random directions."""
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    rest = torch.linspace(*bulk, dim - len(extremes), dtype=torch.float64)
    values = torch.cat([torch.tensor(extremes, dtype=torch.float64), rest])
    return directions @ torch.diag(values) @ directions.T
