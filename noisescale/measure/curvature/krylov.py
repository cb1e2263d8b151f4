"""An orthonormal Krylov basis of a symmetric matrix and the matrix's projection onto it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from noisescale.errors import MeasurementError
from noisescale.problems.problem import MatVec

# Units of the precision that rounding leaves of a product's residual, relative to |H|
ROUNDING = 100


class Krylov:
    """Rows q_1 … q_m of Q (m, P) and T = Q H Qᵀ (m, m), grown by one product a step (Lanczos 1950).

    Every new row is made orthogonal to all earlier ones, twice, so that Q stays orthonormal to
    rounding and no copies of converged eigenvalues appear. Since each row meets all earlier ones
    anyway, T is filled from those inner products, whatever the rows before were: so the basis may
    be replaced by a few Ritz vectors (`restart`), and the steps go on.

    Args:
        matvec: v -> Hv, (P,) -> (P,). Its `coarsest_dtype`, where it has one, is the least precise
            that its products go through, whose rounding is no lack of symmetry.
        start: the first direction (P,).
        capacity: rows at most between restarts.
        random: gives a vector (P,) when the basis has become invariant.

    Attributes:
        dim: P.
        size: m, rows so far.
        coupling: β_m = |(I − QᵀQ) H q_m|, 0 once the basis spans an invariant subspace.
        mismatch: the largest |q_iᵀHq_j − q_jᵀHq_i| met: rounding, for a symmetric H. A part of the
            residuals.
        num_matvecs: products so far.
    """

    def __init__(
        self, matvec: MatVec, start: Tensor, *, capacity: int, random: Callable[[], Tensor]
    ) -> None:
        self.dim = len(start)
        capacity = min(capacity, self.dim)
        self.capacity = capacity
        self.size = 0
        self.coupling = 0.0
        self.mismatch = 0.0
        self.num_matvecs = 0
        self._matvec = matvec
        self._random = random
        # up to the root of the precision: well above rounding, below what a wrong product gives
        self._precision = torch.finfo(getattr(matvec, "coarsest_dtype", start.dtype)).eps
        self._rows = torch.empty(capacity + 1, self.dim, dtype=start.dtype, device=start.device)
        self._rows[0] = start / length(start)
        self._projection = torch.zeros(capacity + 1, capacity + 1, dtype=torch.float64)

    @property
    def basis(self) -> Tensor:
        """Q (m, P)."""
        return self._rows[: self.size]

    @property
    def projection(self) -> Tensor:
        """T (m, m), float64, on the CPU."""
        return self._projection[: self.size, : self.size]

    @property
    def norm(self) -> float:
        """The largest entry of T: a lower bound of |H|, near it after a few steps."""
        return float(self.projection.abs().max()) if self.size else 0.0

    def step(self) -> None:
        """One product: q_m joins the basis, the next direction is made ready."""
        last = self.size
        image = product(self._matvec, self._rows[last])
        self.num_matvecs += 1
        self.size += 1
        inner, remainder = _orthogonalise(image, self.basis)
        self._check_symmetry(inner[:last], self._projection[:last, last])
        self._projection[last, : last + 1] = self._projection[: last + 1, last] = inner
        self.coupling = length(remainder)
        if self.coupling <= rounding(image.dtype) * self.norm or self.size == self.dim:
            self.coupling = 0.0
            remainder = _orthogonalise(self._random(), self.basis)[1]
        if self.size < self.dim:
            self._rows[self.size] = remainder / length(remainder)
        if self.size <= self.capacity:
            self._projection[last, self.size] = self._projection[self.size, last] = self.coupling

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (m,) ascending, vectors by their coordinates in Q (m, m), residuals (m,).

        The coordinates of a vector are a column.
        """
        values, coordinates = torch.linalg.eigh(self.projection)
        return values, coordinates, self.coupling * coordinates[-1].abs() + self.mismatch

    def vectors(self, coordinates: Tensor) -> Tensor:
        """Rows (K, P) with these coordinates (m, K)."""
        return coordinates.T.to(self.basis) @ self.basis

    def restart(self, keep: Tensor) -> None:
        """Replaces the basis by the Ritz vectors at the indices `keep` (Wu and Simon 2000)."""
        values, coordinates, _ = self.ritz()
        size = len(keep)
        following = self._rows[self.size].clone()
        self._rows[:size] = self.vectors(coordinates[:, keep])
        self._rows[size] = following
        self._projection.zero_()
        self._projection[range(size), range(size)] = values[keep]
        border = self.coupling * coordinates[-1, keep]
        self._projection[size, :size] = self._projection[:size, size] = border
        self.size = size

    def _check_symmetry(self, inner: Tensor, expected: Tensor) -> None:
        """q_jᵀHq_m must be the q_mᵀHq_j seen before: β_j for the neighbour, 0 for the rest."""
        if not len(inner):
            return
        self.mismatch = max(self.mismatch, float((inner - expected).abs().max()))
        scale = max(self.norm, float(inner.abs().max()))
        if self.mismatch > self._precision**0.5 * scale:
            raise MeasurementError(
                "the products are not those of one symmetric matrix: qᵀ(Hp) and pᵀ(Hq) differ by "
                f"{self.mismatch:.2g} where products are of size {scale:.2g}. The gradient is not "
                "that of one function, as where a layer reverses gradients or passes them straight "
                "through a rounding, or the function is random, or the second derivative of one of "
                "its operations is wrong, as that of weight_norm in some versions of torch"
            )


def product(matvec: MatVec, vector: Tensor) -> Tensor:
    """Hv; MeasurementError where it is not finite."""
    image = matvec(vector).to(vector)
    if not image.isfinite().all():
        raise MeasurementError("a product of the matrix with a unit vector is not finite")
    return image


def length(vector: Tensor) -> float:
    """The norm of a vector (P,) of any scale, without the underflow of its squares.

    Args:
        vector: of finite numbers.
    """
    largest = float(vector.abs().max())
    return largest * float((vector / largest).norm()) if largest else 0.0


def rounding(dtype: torch.dtype) -> float:
    """The relative size below which a residual is rounding error alone."""
    return ROUNDING * torch.finfo(dtype).eps


def _orthogonalise(vector: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products (m,) with the basis, float64 on the CPU, and what is orthogonal to it (P,).

    Done twice, since once leaves rounding errors along the basis.
    """
    first = basis @ vector
    remainder = vector - first @ basis
    second = basis @ remainder
    return (first.double() + second.double()).cpu(), remainder - second @ basis
