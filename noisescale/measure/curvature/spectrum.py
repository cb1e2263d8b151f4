"""Trace, Frobenius norm and spectral density of a symmetric matrix known only by its products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import SettingError
from noisescale.measure.curvature.krylov import Krylov, product
from noisescale.measure.curvature.operators import space_of
from noisescale.problems.problem import MatVec
from noisescale.statistics.estimate import Estimate, from_samples


@dataclass(frozen=True, kw_only=True)
class SpectralMoments:
    """tr H and |H|_F² = Σ λ², each with its standard error; num_matvecs: products used."""

    trace: Estimate
    squared_frobenius_norm: Estimate
    num_matvecs: int


def spectral_moments(
    matvec: MatVec,
    *,
    dim: int | None = None,
    num_matvecs: int = 30,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> SpectralMoments:
    """Trace and squared Frobenius norm Σ λ², unbiased, from `num_matvecs` products.

    Hutch++ (Meyer, Musco, Musco and Woodruff 2021) with a Krylov sketch (Chen and Hallman 2023): two thirds
    of the products build an orthonormal Q whose share is known exactly, tr QHQᵀ and |HQᵀ|_F²; the rest are
    random-sign probes g of the remainder, gᵀRHRg and |HRg|² with R = I − QᵀQ. Given Q the probes are
    independent, so that their mean is unbiased and its standard error, with 1/(n−1), is honest; the interval
    is Student's t. Exact, with stderr 0, once Q spans the whole space.

    matvec, dim, dtype, device, generator: see `top_eigenpairs`. Raises SettingError below 6 products.
    """
    if num_matvecs < 6:
        raise SettingError(
            f"num matvecs {num_matvecs}: a trace with an error takes at least 6 products"
        )
    space = space_of(matvec, dim=dim, dtype=dtype, device=device)
    generator = generator or torch.Generator().manual_seed(0)

    def signs() -> Tensor:
        return space.signs(generator)

    num_steps = min(2 * num_matvecs // 3, space.dim)
    krylov = Krylov(matvec, signs(), capacity=num_steps, random=signs)
    for _ in range(num_steps):
        krylov.step()
    basis, projection = krylov.basis, krylov.projection
    traces, squares = [], []
    for _ in range(num_matvecs - num_steps):
        probe = signs()
        for _ in range(2):
            probe = probe - (basis @ probe) @ basis
        image = product(matvec, probe)
        traces.append(float(probe.double() @ image.double()))
        squares.append(float(image.double().square().sum()))
    if num_steps == space.dim:  # the probes saw rounding errors alone
        traces = squares = [0.0, 0.0]
    known = float(projection.square().sum()) + krylov.coupling**2
    return SpectralMoments(
        trace=from_samples(float(projection.trace()) + np.array(traces)),
        squared_frobenius_norm=from_samples(known + np.array(squares)),
        num_matvecs=num_matvecs,
    )


@dataclass(frozen=True, kw_only=True)
class SpectralDensity:
    """A quadrature of the density of eigenvalues, one for each of R probes.

    nodes, weights (R, M): each probe's eigenvalues and their masses, which sum to 1.
    num_matvecs: products used.
    """

    nodes: np.ndarray
    weights: np.ndarray
    num_matvecs: int

    def smoothed(self, grid: np.ndarray, *, width: float) -> np.ndarray:
        """The density at `grid` (M,), per unit of eigenvalue, each node a Gaussian of that width."""
        distances = (grid[:, None] - self.nodes.ravel()) / width
        peaks = np.exp(-0.5 * distances**2) / (width * np.sqrt(2 * np.pi))  # (M, R·M)
        return np.asarray(peaks @ self.weights.ravel() / len(self.nodes))

    def default_grid(self, num_points: int = 512) -> tuple[np.ndarray, float]:
        """An even grid over the spectrum, and a width of a hundredth of its extent."""
        low, high = float(self.nodes.min()), float(self.nodes.max())
        width = (high - low) / 100 or max(abs(high), 1.0) / 100
        return np.linspace(low - 4 * width, high + 4 * width, num_points), width

    def to_dict(self) -> dict[str, Any]:
        grid, width = self.default_grid()
        return {
            "grid": grid.tolist(),
            "density": self.smoothed(grid, width=width).tolist(),
            "width": width,
            "nodes": self.nodes.tolist(),
            "weights": self.weights.tolist(),
        }


def spectral_density(
    matvec: MatVec,
    *,
    dim: int | None = None,
    num_probes: int = 4,
    num_steps: int = 30,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> SpectralDensity:
    """The density (1/P) Σ_j δ(λ − λ_j) by stochastic Lanczos quadrature (Ubaru, Chen and Saad 2017).

    Each of `num_probes` Gaussian vectors is followed for `num_steps` Lanczos steps with full
    reorthogonalisation; the Ritz values are the nodes, the squares of their vectors' first coordinates the
    weights. A probe integrates polynomials of degree up to 2·num_steps − 1 exactly, for its own vector.

    matvec, dim, dtype, device, generator: see `top_eigenpairs`.
    """
    if num_probes < 1 or num_steps < 1:
        raise SettingError(
            f"num probes {num_probes}, num steps {num_steps}: give whole numbers of 1 or more"
        )
    space = space_of(matvec, dim=dim, dtype=dtype, device=device)
    generator = generator or torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return space.normal(generator)

    num_steps = min(num_steps, space.dim)
    nodes, weights = np.empty((num_probes, num_steps)), np.empty((num_probes, num_steps))
    for probe in range(num_probes):
        krylov = Krylov(matvec, random(), capacity=num_steps, random=random)
        for _ in range(num_steps):
            krylov.step()
        values, coordinates, _ = krylov.ritz()
        nodes[probe], weights[probe] = values.numpy(), coordinates[0].square().numpy()
    return SpectralDensity(nodes=nodes, weights=weights, num_matvecs=num_probes * num_steps)
