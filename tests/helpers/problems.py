"""Small problems shared by the tests."""

from __future__ import annotations

import torch
from torch import nn

from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem
from noisescale.problems.synthetic import SyntheticProblem, linear_regression, noisy_quadratic


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classification(
    model: nn.Module | None = None, *, num_examples: int = 50, seed: int = 0
) -> Problem:
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
    covariance = torch.tensor(
        [[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]], dtype=torch.float64
    )
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


def symmetric(
    extremes: list[float], *, dim: int, bulk: tuple[float, float] = (-1.0, 1.0)
) -> torch.Tensor:
    """A dense matrix (P, P) with these eigenvalues and an even bulk between, randomly rotated."""
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    rest = torch.linspace(*bulk, dim - len(extremes), dtype=torch.float64)
    values = torch.cat([torch.tensor(extremes, dtype=torch.float64), rest])
    return directions @ torch.diag(values) @ directions.T


def example_curvatures(problem: Problem) -> torch.Tensor:
    """Each example's Gauss–Newton matrix (n, P, P), by dense Jacobians and Hessians."""
    names = [name for name, _ in problem.model.named_parameters()]
    shapes = [param.shape for param in problem.model.parameters()]
    point = torch.cat([param.detach().flatten() for param in problem.model.parameters()])
    found = []
    for example, target in zip(*problem.train, strict=True):

        def outputs(vector: torch.Tensor, example: torch.Tensor = example) -> torch.Tensor:
            parts = vector.split([shape.numel() for shape in shapes])
            params = {
                name: part.view(shape)
                for name, part, shape in zip(names, parts, shapes, strict=True)
            }
            return torch.func.functional_call(problem.model, params, example.unsqueeze(0)).flatten()

        def loss(values: torch.Tensor, target: torch.Tensor = target) -> torch.Tensor:
            return problem.loss(values.unsqueeze(0), target.unsqueeze(0)).sum()

        jacobian = torch.autograd.functional.jacobian(outputs, point)
        curvature = torch.autograd.functional.hessian(loss, outputs(point).detach())
        found.append(jacobian.T @ curvature @ jacobian)
    return torch.stack(found)


def small_network(*, num_examples: int = 12, seed: int = 0) -> Problem:
    """Two features, two classes, eight parameters, float64; very different example curvatures."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_examples, 2, generator=generator, dtype=torch.float64)
    inputs *= torch.linspace(0.3, 3, num_examples, dtype=torch.float64).unsqueeze(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False))
    targets = torch.randint(2, (num_examples,), generator=generator)
    examples = Examples(inputs, targets)
    return Problem(model=model.double(), loss=cross_entropy, train=examples, test=examples)
