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
from noisescale.statistics.display import counted, one_line
from noisescale.statistics.estimate import Estimate, from_samples


@dataclass(frozen=True, kw_only=True)
class SpectralMoments:
    """The trace and the Frobenius norm of a symmetric matrix H.

    Attributes:
        trace: tr H with its standard error.
        squared_frobenius_norm: |H|_F² = Σ λ² with its standard error.
        num_matvecs: products used.
    """

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
    """The trace and the squared Frobenius norm Σ λ² of a symmetric matrix, unbiased.

    Hutch++ (Meyer, Musco, Musco and Woodruff 2021) with a Krylov sketch (Chen and Hallman 2023):
    two thirds of the products build an orthonormal Q whose share is known exactly, tr QHQᵀ and
    |HQᵀ|_F²; the rest are random-sign probes g of the remainder, gᵀRHRg and |HRg|² with R = I −
    QᵀQ. Given Q the probes are independent, so that their mean is unbiased and its standard error,
    with 1/(n−1), is honest; the interval is Student's t. Exact, with stderr 0, once Q spans the
    whole space.

    Args:
        matvec: v -> Hv, (P,) -> (P,), of one symmetric matrix. What `hessian_matvec` and
            `ggn_matvec` return knows its dim, dtype and device; a bare function's are said here.
        dim: P. None: the operator's own; a bare function needs it.
        num_matvecs: products, 6 or more.
        dtype: of the vectors. None: the operator's own, so float64 for an operator in float64;
            float32 for a bare function.
        device: of the vectors. None: the operator's own; the CPU for a bare function.
        generator: of the random signs, on the CPU; None: seed 0.

    Returns:
        Both, with their standard errors.

    Raises:
        SettingError: fewer than 6 products; a bare function without dim; a dim, dtype or device
            that is not the operator's.
        MeasurementError: a product is not finite, or the products are not those of one symmetric
            matrix.

    Example:
        >>> import torch
        >>> from noisescale import spectral_moments
        >>> matrix = torch.diag(torch.tensor([3.0, 1.0, -2.0]))
        >>> spectral_moments(lambda v: matrix @ v, dim=3).squared_frobenius_norm
        Estimate(14 (exact))
    """
    if num_matvecs < 6:
        raise SettingError(
            f"num matvecs {num_matvecs}: a trace with an error takes at least 6 products"
        )
    space = space_of(matvec, dim=dim, dtype=dtype, device=device)
    generator = generator or torch.Generator().manual_seed(0)

    def normal() -> Tensor:  # signs may lie in the null space, as for a softmax
        return space.normal(generator)

    def signs() -> Tensor:
        return space.signs(generator)

    num_steps = min(2 * num_matvecs // 3, space.dim)
    krylov = Krylov(matvec, normal(), capacity=num_steps, random=normal)
    for _ in range(num_steps):
        krylov.step()
    basis, projection = krylov.basis, krylov.projection
    traces, squares = [], []
    for _ in range(num_matvecs - num_steps):
        probe = signs()
        for _ in range(2):  # once leaves rounding errors along the basis
            probe = probe - (basis @ probe) @ basis
        image = product(matvec, probe)
        traces.append(float(probe.double() @ image.double()))
        squares.append(float(image.double().square().sum()))
    if num_steps == space.dim:  # the probes saw rounding errors alone
        traces = squares = [0.0, 0.0]
    # |HQᵀ|_F² is |T|_F² and the square of what of H's last product leaves the sketch
    of_sketch = float(projection.square().sum()) + krylov.coupling**2
    return SpectralMoments(
        trace=from_samples(float(projection.trace()) + np.array(traces)),
        squared_frobenius_norm=from_samples(of_sketch + np.array(squares)),
        num_matvecs=num_matvecs,
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class SpectralDensity:
    """A quadrature of the density of eigenvalues, one for each of R probes.

    Attributes:
        nodes: (R, M), each probe's M Ritz values.
        weights: (R, M), their masses, which sum to 1 for each probe.
        num_matvecs: products used.
    """

    nodes: np.ndarray
    weights: np.ndarray
    num_matvecs: int

    def __repr__(self) -> str:
        return one_line(
            self,
            f"from {self.nodes.min():.4g} to {self.nodes.max():.4g}",
            counted(len(self.nodes), "probe"),
            counted(self.num_matvecs, "product"),
        )

    def smoothed(self, grid: np.ndarray, *, width: float) -> np.ndarray:
        """The density per unit of eigenvalue (G,), each node smoothed into a Gaussian.

        Args:
            grid: the eigenvalues (G,) at which it is evaluated.
            width: the Gaussians' standard deviation.
        """
        distances = (grid[:, None] - self.nodes.ravel()) / width
        peaks = np.exp(-0.5 * distances**2) / (width * np.sqrt(2 * np.pi))  # (G, R·M)
        return np.asarray(peaks @ self.weights.ravel() / len(self.nodes))

    def default_grid(self, num_points: int = 512) -> tuple[np.ndarray, float]:
        """An even grid over the spectrum, and a width of a hundredth of its extent.

        Args:
            num_points: of the grid.
        """
        low, high = float(self.nodes.min()), float(self.nodes.max())
        width = ((high - low) or abs(high) or 1.0) / 100
        return np.linspace(low - 4 * width, high + 4 * width, num_points), width

    def to_dict(self) -> dict[str, Any]:
        """The smoothed density on the default grid, with the nodes and weights, for strict JSON."""
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
    """The density (1/P) Σ_j δ(λ − λ_j) of eigenvalues, by stochastic Lanczos quadrature.

    Each Gaussian probe is followed for `num_steps` Lanczos steps with full reorthogonalisation; the
    Ritz values are the nodes, the squares of their vectors' first coordinates the weights (Ubaru,
    Chen and Saad 2017). A probe integrates polynomials of degree up to 2·num_steps − 1 exactly, for
    its own vector.

    Args:
        matvec: v -> Hv, (P,) -> (P,), of one symmetric matrix. What `hessian_matvec` and
            `ggn_matvec` return knows its dim, dtype and device; a bare function's are said here.
        dim: P. None: the operator's own; a bare function needs it.
        num_probes: R, over which the density is averaged.
        num_steps: M, nodes of each probe and products for it; at most P are taken.
        dtype: of the vectors. None: the operator's own, so float64 for an operator in float64;
            float32 for a bare function.
        device: of the vectors. None: the operator's own; the CPU for a bare function.
        generator: of the probes, on the CPU; None: seed 0.

    Returns:
        The nodes and weights of each probe.

    Raises:
        SettingError: less than one probe or step; a bare function without dim; a dim, dtype or
            device that is not the operator's.
        MeasurementError: a product is not finite, or the products are not those of one symmetric
            matrix.

    Example:
        >>> from noisescale import ProblemConfig, build_problem, ggn_matvec, spectral_density
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> spectral_density(ggn_matvec(problem)).nodes.shape
        (4, 30)
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
