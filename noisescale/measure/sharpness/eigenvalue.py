"""One eigenvalue of a whole split with its errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from noisescale.statistics.estimate import Estimate

End = Literal["largest", "smallest"]
NAMES: dict[End, str] = {"largest": "λ_max", "smallest": "λ_min"}


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """One eigenvalue with both of its errors.

    Attributes:
        which: the end of the spectrum it was sought at.
        value: λ of the whole split: exact where all of it is measured on. From a subset, half-way
            between the subset's own eigenvalue, which errs outwards, and the curvature of either
            half along the other's eigenvectors, which errs inwards; the interval holds both and
            the sampling error of each.
        residual: |Hv − λv| of the subset's own eigenvalue, the numerical error.
        converged: whether the residual is within the tolerance.
    """

    which: End
    value: Estimate
    residual: float
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for strict JSON."""
        return {
            "which": self.which,
            **self.value.to_dict(),
            "residual": self.residual,
            "converged": self.converged,
        }
