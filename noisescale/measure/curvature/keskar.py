"""Keskar's φ: how far the loss rises in a small box around a point, also by filters."""

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
from noisescale.measure.objective import Objective
from noisescale.statistics.display import counted, one_line

Space = Literal["full", "random", "filter"]
# Of the loss along its gradient, in units of 1 + loss: a rise this small is rounding in float64,
# from which L-BFGS-B gets nowhere
NEGLIGIBLE_RISE = 1e-11
BLOCK_ROWS = (
    65_536  # of a random subspace's matrix that are written out at a time: 50 MiB for 100 columns
)


@dataclass(frozen=True, kw_only=True, repr=False)
class KeskarSharpness:
    """Keskar's φ in per cent, and how its search went.

    Attributes:
        space: what was searched, "full", "random" or "filter".
        epsilon: ε, the size of the box; of "filter" in units of each filter's own.
        history: φ after each iteration, from the start (index 0) on; still rising at its end: not
            converged.
        evaluations: of the loss with its gradient.
        status: what L-BFGS-B says about its end.
    """

    space: Space
    epsilon: float
    history: tuple[float, ...]
    evaluations: int
    status: str

    @property
    def value(self) -> float:
        """φ as far as the search has come."""
        return self.history[-1]

    @property
    def label(self) -> str:
        """What it is called."""
        if self.space == "filter":
            return f"φ (%), filter-normalised, ε = {self.epsilon:g}"
        return f"φ (%), {self.space} space, ε = {self.epsilon:g}"

    def __repr__(self) -> str:
        after = counted(self.iterations, "iteration")
        return one_line(self, f"{self.label}: {self.value:.4g} after {after}")

    @property
    def iterations(self) -> int:
        """Of L-BFGS-B."""
        return len(self.history) - 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for strict JSON."""
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
    """Keskar's sharpness φ of the loss in a box around a point, in per cent.

    φ = 100·(max_{z ∈ C} f(x + Az) − f(x))/(1 + f(x)), C = {z: |z_i| ≤ ε(|(A⁺x)_i| + 1)}: metric 2.1
    of Keskar et al. 2017 (arXiv 1609.04836), by L-BFGS-B from z = 0. Where the gradient at x is
    zero, or so small that along it the loss rises by rounding alone, the search starts at a random
    point of C. The maximum is found only as far as the iterations take it: `history` shows whether
    φ was still rising.

    That box is not invariant: a ReLU layer times 10 and the next one by 10 are the same function in
    another box (Dinh et al. 2017, arXiv 1703.04933). In the space "filter" x + Dz is searched over
    |z_i| ≤ ε, with D_i the root mean square of the weights in the filter that i belongs to, all
    those that lead into one unit or channel, as Li et al. 2018 (arXiv 1712.09913) normalise
    directions; a parameter of one dimension, as a bias, is normalised by its own |x_i|. So each
    filter moves by at most ε of its own norm. This is the filter-wise adaptive sharpness of Kwon et
    al. 2021 (arXiv 2102.11600, section 3) with p = ∞. Rescaling whole layers changes neither it nor
    any step of its search, which is in z; rescaling single units of a layer does change it.

    Args:
        objective: f and x; in float64, as the search divides differences of nearly equal losses.
        epsilon: ε, the size of the box.
        space: what is searched. "full": A = I. "random": A (P, num_directions) has entries ±1/√P of
            random sign, so unit columns; the paper leaves the distribution open. "filter": as
            above.
        num_directions: columns of A in the space "random".
        max_iterations: of L-BFGS-B; 10 as in the paper.
        seed: of A, and of the random start where one is needed.

    Returns:
        φ after each iteration, and how the search ended.

    Raises:
        SettingError: an objective that is not in float64, or another bad argument.
        MeasurementError: the loss is not finite somewhere on the way, or −1 or less at x.

    Examples:
        >>> import torch
        >>> from noisescale import ProblemConfig, build_problem, Objective, keskar_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> keskar_sharpness(Objective(problem, dtype=torch.float64))
        KeskarSharpness(φ (%), full space, ε = 0.001: 0.1551 after 10 iterations)
    """
    if objective.dtype != torch.float64:
        raise SettingError(
            f"Keskar's sharpness of an objective in {objective.dtype}: build it in float64"
        )
    if not epsilon > 0 or max_iterations < 1 or space not in get_args(Space):
        raise SettingError(
            f"epsilon {epsilon!r}, max iterations {max_iterations!r}, space {space!r}: "
            "give an epsilon above 0, 1 or more iterations, and one of "
            f"{', '.join(get_args(Space))}"
        )
    point = objective.point.cpu()
    subspace: _RandomSubspace | _Filters | None = None
    if space == "random":
        subspace = _RandomSubspace(objective.dim, num_directions, seed)
    elif space == "filter":
        subspace = _Filters(filter_scales(objective).cpu())
    radius = epsilon * (point.abs() + 1 if subspace is None else subspace.reach(point)).numpy()
    objective.check_any_company()
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
    result = minimize(
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
        evaluations=int(result.nfev) + 2,  # and the value at x and at the start
        status=str(result.message),
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

    def reach(self, point: Tensor) -> Tensor:
        """|A⁺x| + 1, how far the box goes in units of ε: (P,) -> (K,)."""
        return self.coordinates(point).abs() + 1

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
        for start in range(0, len(self._bits), BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            bits = np.unpackbits(self._bits[rows], axis=1, count=self.num_directions)
            yield rows, torch.from_numpy(bits).double().mul_(2).sub_(1).mul_(self._scale)


class _Filters:
    """D = diag(scales), by which each parameter is counted in units of its filter's."""

    def __init__(self, scales: Tensor) -> None:
        self._scales = scales

    def apply(self, step: Tensor) -> Tensor:
        """Dz: (P,) -> (P,)."""
        return self._scales * step

    def adjoint(self, vector: Tensor) -> Tensor:
        """Dy: (P,) -> (P,)."""
        return self._scales * vector

    def reach(self, point: Tensor) -> Tensor:
        """One, how far the box goes in units of ε: (P,) -> (P,)."""
        return torch.ones_like(point)


def filter_scales(objective: Objective) -> Tensor:
    """The root mean square of the weights in each parameter's filter, its own |x_i| without one.

    Args:
        objective: at the point whose parameters are scaled.

    Returns:
        (P,). A filter is a slice along the first axis of a parameter of two or more axes: what
        leads into one unit of a linear layer, or one channel of a convolution.
    """
    scales = []
    for param in objective.unflatten(objective.point).values():
        if param.ndim < 2:
            scales.append(param.abs().flatten())
        else:
            rows = param.flatten(1)  # (filters, weights in each)
            scales.append(rows.square().mean(1, keepdim=True).sqrt().expand_as(rows).flatten())
    return torch.cat(scales)
