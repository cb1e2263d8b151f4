"""How the loss rises around a point: Keskar's φ, and curvature along the gradients of batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from scipy.optimize import Bounds, OptimizeResult, minimize
from torch import Tensor

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.products import CurvatureProduct, record_hessian
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, MatVec
from noisescale.statistics.estimate import Estimate, exact, from_samples

Space = Literal["full", "random"]
NEGLIGIBLE_RISE = (
    1e-11  # of the loss along its gradient, in units of 1 + loss: L-BFGS-B gets nowhere by it
)
ROWS = 65_536  # of a random subspace's matrix, in float64 at a time


@dataclass(frozen=True, kw_only=True)
class KeskarSharpness:
    """φ in per cent, and how its search went.

    history: φ after each iteration, from the start (index 0) on. Still rising at its end: not converged.
    iterations, evaluations: of L-BFGS-B, and of the loss with its gradient.
    status: what L-BFGS-B says about its end.
    """

    space: Space
    epsilon: float
    history: tuple[float, ...]
    evaluations: int
    status: str

    @property
    def value(self) -> float:
        return self.history[-1]

    @property
    def iterations(self) -> int:
        return len(self.history) - 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "space": self.space,
            "epsilon": self.epsilon,
            "value": self.value,
            "iterations": self.iterations,
            "history": list(self.history),
            "status": self.status,
        }


def keskar_sharpness(
    objective: Objective,
    *,
    epsilon: float = 1e-3,
    space: Space = "full",
    num_directions: int = 100,
    max_iterations: int = 10,
    seed: int = 0,
) -> KeskarSharpness:
    """φ = 100·(max_{z ∈ C} f(x + Az) − f(x))/(1 + f(x)), C = {z: |z_i| ≤ ε(|(A⁺x)_i| + 1)}.

    Keskar et al. 2017 (arXiv 1609.04836), metric 2.1, by L-BFGS-B from z = 0. space "full": A = I. "random":
    A (P, num_directions) has entries ±1/√P of random sign, so unit columns; the paper leaves the
    distribution open. Where the gradient at x is zero, or so small that along it the loss rises by rounding
    alone, the search starts at a random point of C.

    objective: in float64, as the search divides differences of nearly equal losses.

    The maximum is found only as far as the iterations take it: `history` shows whether φ was still rising.
    Raises MeasurementError where the loss ceases to be finite on the way.
    """
    if objective.dtype != torch.float64:
        raise SettingError(
            f"Keskar's sharpness of an objective in {objective.dtype}: build it in float64"
        )
    if not epsilon > 0 or max_iterations < 1 or space not in get_args(Space):
        raise SettingError(
            f"epsilon {epsilon!r}, max iterations {max_iterations!r}, space {space!r}: give an epsilon above "
            f"0, 1 or more iterations, and one of {', '.join(get_args(Space))}"
        )
    subspace = None if space == "full" else _RandomSubspace(objective.dim, num_directions, seed)
    point = objective.point.cpu()
    coordinates = point if subspace is None else subspace.coordinates(point)
    radius = (epsilon * (coordinates.abs() + 1)).numpy()
    start_value, start_gradient = objective.value_and_gradient()
    if start_value <= -1:
        raise MeasurementError(
            f"{objective.name} is {start_value:.4g}: Keskar's φ takes a loss above −1"
        )
    scale = 100 / (1 + start_value)

    def loss(z: np.ndarray) -> tuple[float, np.ndarray]:
        """−f(x + Az) and its gradient by z."""
        step = torch.from_numpy(z)
        moved = point + (step if subspace is None else subspace.apply(step))
        value, gradient = objective.value_and_gradient(moved)
        if not (math.isfinite(value) and gradient.isfinite().all()):
            raise MeasurementError(
                f"{objective.name} is not finite within ε = {epsilon:g} of the point"
            )
        gradient = gradient.cpu()
        return -value, -(gradient if subspace is None else subspace.adjoint(gradient)).numpy()

    def note(intermediate_result: OptimizeResult) -> None:
        history.append(scale * (-float(intermediate_result.fun) - start_value))

    start = np.zeros_like(radius)
    slope = start_gradient.cpu() if subspace is None else subspace.adjoint(start_gradient.cpu())
    if float(slope.abs() @ torch.from_numpy(radius)) <= NEGLIGIBLE_RISE * (1 + abs(start_value)):
        start = np.random.default_rng(seed).uniform(-radius, radius)
    history = [scale * (-loss(start)[0] - start_value)]
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=Bounds(-radius, radius),
        callback=note,
        options={"maxiter": max_iterations, "ftol": 0.0, "gtol": 0.0},
    )
    return KeskarSharpness(
        space=space,
        epsilon=epsilon,
        history=tuple(history),
        evaluations=int(found.nfev) + 2,
        status=str(found.message),
    )


class _RandomSubspace:
    """A (P, K) with entries ±1/√P of random sign, never stored but as bits."""

    def __init__(self, dim: int, num_directions: int, seed: int) -> None:
        self.num_directions = num_directions
        self._scale = dim**-0.5
        width = math.ceil(num_directions / 8)
        self._bits = np.random.default_rng(seed).integers(256, size=(dim, width), dtype=np.uint8)

    def apply(self, step: Tensor) -> Tensor:
        """Az: (K,) -> (P,)."""
        return torch.cat([block @ step for _, block in self._blocks()])

    def adjoint(self, vector: Tensor) -> Tensor:
        """Aᵀy: (P,) -> (K,)."""
        total = torch.zeros(self.num_directions, dtype=vector.dtype)
        for rows, block in self._blocks():
            total += vector[rows] @ block
        return total

    def coordinates(self, point: Tensor) -> Tensor:
        """A⁺x = (AᵀA)⁻¹Aᵀx: (P,) -> (K,)."""
        gram = torch.zeros(self.num_directions, self.num_directions, dtype=point.dtype)
        for _, block in self._blocks():
            gram += block.T @ block
        solution: Tensor = torch.linalg.lstsq(
            gram, self.adjoint(point).unsqueeze(1), driver="gelsd"
        ).solution
        return solution.squeeze(1)

    def _blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Rows of A in order, float64."""
        for start in range(0, len(self._bits), ROWS):
            rows = slice(start, start + ROWS)
            bits = np.unpackbits(self._bits[rows], axis=1, count=self.num_directions)
            yield rows, torch.from_numpy(bits).double().mul_(2).sub_(1).mul_(self._scale)


def batch_sharpness(
    objective: Objective,
    *,
    batch_size: int,
    num_batches: int = 64,
    generator: torch.Generator | None = None,
) -> Estimate:
    """E_B[g_Bᵀ H_B g_B / |g_B|²], the curvature of a batch's own loss along its own gradient.

    Andreyev and Beneventano 2024 (arXiv 2412.20553): what settles at 2/η in training by SGD with rate η. The
    mean over `num_batches` independent batches, each drawn without replacement from the objective's examples,
    with the standard error of that mean; exact at batch_size = N. Batches whose gradient is exactly zero
    make no step and are left out, and `num_samples` counts the others.
    """
    ratios = []
    for batch in _batches(objective, batch_size, num_batches, generator):
        own = objective.on(batch)
        gradient = own.value_and_gradient()[1]
        if gradient.any():
            ratios.append(_curvature_along(CurvatureProduct(own, record_hessian), gradient))
    return _mean(ratios, objective, batch_size)


def gradient_noise_interaction(
    objective: Objective,
    matvec: MatVec,
    *,
    batch_size: int,
    num_batches: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate:
    """E_B[g_Bᵀ H g_B]/|G|², the curvature of the whole loss along batch gradients.

    SGD at rate η lowers the loss on average, to second order, iff this is below 2/η. Batches as in
    `batch_sharpness`; H, by its product `matvec`, and G are those of all the objective's examples, so that
    the batches are the only source of error.
    """
    squared_norm = float(objective.value_and_gradient()[1].double().square().sum())
    if squared_norm == 0:
        raise MeasurementError(
            "the gradient over all examples is zero: its interaction with noise is undefined"
        )
    quadratics = []
    for batch in _batches(objective, batch_size, num_batches, generator):
        gradient = objective.on(batch).value_and_gradient()[1]
        quadratics.append(float(gradient.double() @ matvec(gradient).double()) / squared_norm)
    return _mean(quadratics, objective, batch_size)


def _batches(
    objective: Objective, batch_size: int, num_batches: int, generator: torch.Generator | None
) -> Iterator[Examples]:
    """Independent batches, each without replacement; the one there is at batch_size = N."""
    num_examples = objective.num_examples
    if not 1 <= batch_size <= num_examples:
        raise SettingError(
            f"batch size {batch_size}: there are {num_examples} examples; give 1 to {num_examples}"
        )
    if num_batches < 2:
        raise SettingError(f"num batches {num_batches}: an error takes at least 2")
    if batch_size == num_examples:
        yield objective.examples
        return
    generator = generator or torch.Generator().manual_seed(0)
    for _ in range(num_batches):
        chosen = torch.randperm(num_examples, generator=generator)[:batch_size]
        yield objective.examples.part(chosen.to(objective.examples.targets.device))


def _curvature_along(matvec: MatVec, vector: Tensor) -> float:
    """vᵀHv/|v|², without underflow for the tiny gradients of examples that are fitted."""
    unit = vector / vector.abs().max()
    unit = unit / unit.norm()
    return float(unit.double() @ matvec(unit).double())


def _mean(values: list[float], objective: Objective, batch_size: int) -> Estimate:
    if not values:
        raise MeasurementError(f"every batch of {batch_size} has a gradient of exactly zero")
    return exact(values[0]) if batch_size == objective.num_examples else from_samples(values)
