"""Problems whose gradient mean, gradient covariance and Hessian are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noisescale.problems.problem import Examples, Problem
from noisescale.statistics.display import one_line
from noisescale.statistics.sample import Population


@dataclass(frozen=True, kw_only=True)
class ExactMoments:
    """The exact moments at one parameter vector, in one of two populations.

    "distribution": expectations over fresh examples. "dataset": means over the problem's N training
    examples, Σ with 1/N.

    gradient: G (P,), the mean gradient.
    covariance: Σ (P, P), of the examples' gradients.
    hessian: H (P, P), of the mean loss.
    """

    gradient: Tensor
    covariance: Tensor
    hessian: Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class SyntheticProblem:
    """A problem with P parameters in one tensor, and its exact moments.

    problem: to be measured.
    moments: θ (P,) and the population -> the exact moments there.
    """

    problem: Problem
    moments: Callable[[Tensor, Population], ExactMoments]

    def __repr__(self) -> str:
        return one_line(self, repr(self.problem))


class _Quadratic(nn.Module):
    """Noise vectors ζ (B, P) -> ½θᵀHθ + ζᵀθ (B,)."""

    hessian: Tensor

    def __init__(self, hessian: Tensor, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("hessian", hessian)
        self.theta = nn.Parameter(start.clone())

    def forward(self, noise: Tensor) -> Tensor:
        return 0.5 * self.theta @ self.hessian @ self.theta + noise @ self.theta


def noisy_quadratic(
    *,
    hessian: Tensor,
    covariance: Tensor,
    start: Tensor,
    num_examples: int,
    generator: torch.Generator,
) -> SyntheticProblem:
    """A quadratic whose gradient noise is the same everywhere.

    The losses are ℓ_i(θ) = ½θᵀHθ + ζ_iᵀθ with ζ_i ~ N(0, Σ), so that G = Hθ.

    Args:
        hessian: H (P, P), symmetric; its dtype is the problem's.
        covariance: Σ (P, P), symmetric and positive definite.
        start: the initial θ (P,).
        num_examples: N.
        generator: of the noise.

    Returns:
        The problem and its exact moments.

    Example:
        >>> import torch
        >>> from noisescale import measure_noise, noisy_quadratic
        >>> quadratic = noisy_quadratic(
        ...     hessian=torch.diag(torch.tensor([1.0, 4.0])),
        ...     covariance=torch.eye(2),
        ...     start=torch.ones(2),
        ...     num_examples=1000,
        ...     generator=torch.Generator().manual_seed(0),
        ... )
        >>> exact = quadratic.moments(torch.ones(2), "distribution")
        >>> float(exact.covariance.trace() / exact.gradient.square().sum())
        0.11764705926179886
        >>> measure_noise(quadratic.problem, population="distribution").simple
        Estimate(0.1208 ± 0.0046 (0.1119–0.1300))
    """
    root = torch.linalg.cholesky(covariance)
    draws = torch.randn(num_examples, len(hessian), generator=generator, dtype=hessian.dtype)
    noise = draws @ root.T  # (N, P)

    def moments(theta: Tensor, population: Population) -> ExactMoments:
        gradient = hessian @ theta
        if population == "distribution":
            return ExactMoments(gradient=gradient, covariance=covariance, hessian=hessian)
        return ExactMoments(
            gradient=gradient + noise.mean(0), covariance=_covariance(noise), hessian=hessian
        )

    train = Examples(noise, torch.zeros(num_examples, dtype=hessian.dtype))
    problem = Problem(
        model=_Quadratic(hessian, start), loss=lambda outputs, targets: outputs, train=train
    )
    return SyntheticProblem(problem=problem, moments=moments)


def linear_regression(
    *,
    input_variances: Tensor,
    weights: Tensor,
    noise: float,
    num_examples: int,
    generator: torch.Generator,
) -> SyntheticProblem:
    """A linear regression on normal inputs, θ starting at 0.

    The losses are ½(θᵀx − y)² with x ~ N(0, A), A = diag(input_variances), and y = wᵀx + noise·N(0,
    1). With δ = θ − w, by the fourth moments of the normal distribution: G = Aδ, H = A and Σ =
    (δᵀAδ + noise²)·A + Aδδᵀ A, so tr Σ = (δᵀAδ + noise²)·tr A + |Aδ|².

    Args:
        input_variances: the diagonal of A (P,), positive.
        weights: w (P,); its dtype is the problem's.
        noise: the standard deviation of the targets about wᵀx.
        num_examples: N.
        generator: of inputs and targets.

    Returns:
        The problem and its exact moments.
    """
    dtype, dim = weights.dtype, len(weights)
    inputs = (
        torch.randn(num_examples, dim, generator=generator, dtype=dtype) * input_variances.sqrt()
    )
    targets = inputs @ weights + noise * torch.randn(num_examples, generator=generator, dtype=dtype)
    hessian = torch.diag(input_variances)

    def moments(theta: Tensor, population: Population) -> ExactMoments:
        if population == "dataset":
            gradients = (inputs @ theta - targets).unsqueeze(1) * inputs  # (N, P)
            curvature = inputs.T @ inputs / num_examples
            return ExactMoments(
                gradient=gradients.mean(0), covariance=_covariance(gradients), hessian=curvature
            )
        gradient = input_variances * (theta - weights)
        residual = gradient @ (theta - weights) + noise**2  # E (θᵀx − y)²
        covariance = residual * hessian + torch.outer(gradient, gradient)
        return ExactMoments(gradient=gradient, covariance=covariance, hessian=hessian)

    linear = nn.Linear(dim, 1, bias=False, dtype=dtype)
    nn.init.zeros_(linear.weight)
    problem = Problem(
        model=nn.Sequential(linear, nn.Flatten(0)),
        loss=lambda outputs, targets: 0.5 * (outputs - targets) ** 2,
        train=Examples(inputs, targets),
    )
    return SyntheticProblem(problem=problem, moments=moments)


def _covariance(values: Tensor) -> Tensor:
    """With 1/N: (N, P) -> (P, P)."""
    centred = values - values.mean(0)
    return centred.T @ centred / len(values)
