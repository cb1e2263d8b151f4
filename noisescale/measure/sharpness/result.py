"""The curvature of a problem's loss as a result: shown, drawn, and as a record or a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from noisescale.measure.curvature.eigenpairs import EigenPairs
from noisescale.measure.curvature.keskar import KeskarSharpness
from noisescale.measure.curvature.spectrum import SpectralDensity, SpectralMoments
from noisescale.measure.sharpness.critical import CriticalSharpness
from noisescale.measure.sharpness.eigenvalue import NAMES, Eigenvalue
from noisescale.measure.sharpness.preconditioned import PreconditionedSharpness
from noisescale.statistics.display import Shown, Summary, share
from noisescale.statistics.estimate import Estimate, estimate_row

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PRECONDITIONED = "λ_max(P^½HP^½)"


@dataclass(frozen=True, kw_only=True, repr=False)
class Sharpness(Shown):
    """What `measure_sharpness` measured; what was not wanted is None or empty.

    Attributes:
        split: the split that was measured on.
        num_examples: n, how many of its examples were used.
        population_size: N, how many it has.
        matrix: whose eigenvalues, trace and density these are: "hessian" or "ggn".
        amp: "bf16" where the model ran under autocast; None: in the precision of its parameters.
        loss: L, the mean over the n examples.
        gradient_norm: |G|, of the mean gradient over the same examples.
        eigenvalues: the largest, descending, then the smallest, ascending.
        moments: tr H and |H|_F².
        density: the spectral density.
        phi: Keskar's φ in both spaces, for both ε of the paper, and by filters for two.
        batch_size: of the two quantities below.
        batch_sharpness: E_B[g_Bᵀ H_B g_B / |g_B|²].
        gradient_noise_interaction: E_B[g_Bᵀ H g_B]/|G|².
        preconditioned: λ_max(P^½HP^½) and its limit, with a preconditioner.
        critical: 2/η_c, with η_c the smallest rate at which the next update raises the loss.
        num_matvecs: products with the matrix over all n examples, and with the Hessian for the
            interaction.
        pairs: the eigenpairs of each end, and of P^½HP^½ as "preconditioned", to start the next
            checkpoint's searches from.
        notes: what a reader should know.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, measure_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> sharpness = measure_sharpness(problem, seed=1)
        >>> sharpness.largest.converged, round(float(sharpness.largest.value), 1)
        (True, 0.5)
        >>> sharpness.to_frame()[["loss", "largest_eigenvalue", "converged"]].round(1)
           loss  largest_eigenvalue  converged
        0   2.3                 0.5       True
    """

    split: str
    num_examples: int
    population_size: int
    matrix: Literal["hessian", "ggn"]
    amp: str | None = None
    loss: float
    gradient_norm: float
    eigenvalues: tuple[Eigenvalue, ...]
    moments: SpectralMoments | None = None
    density: SpectralDensity | None = None
    phi: tuple[KeskarSharpness, ...] = ()
    batch_size: int | None = None
    batch_sharpness: Estimate | None = None
    gradient_noise_interaction: Estimate | None = None
    preconditioned: PreconditionedSharpness | None = None
    critical: CriticalSharpness | None = None
    num_matvecs: int
    pairs: dict[str, EigenPairs] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def starts(self) -> dict[str, Tensor]:
        """What the next checkpoint's search for the eigenpairs of each end starts from, (K, P).

        With a preconditioner under "preconditioned" those of P^½HP^½ too.
        """
        return {which: pairs.warm_start for which, pairs in self.pairs.items()}

    @property
    def largest(self) -> Eigenvalue | None:
        """λ_max, None where it was not measured."""
        return next(
            (eigenvalue for eigenvalue in self.eigenvalues if eigenvalue.which == "largest"), None
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the eigenvalues with their 95 % intervals, and the batch sharpness beside them.

        Where neither was measured, the spectral density or the course of Keskar's φ.

        Args:
            ax: drawn on; None: new ones, in a figure of pyplot's.

        Returns:
            The Axes.
        """
        from noisescale.plots.sharpness import draw_sharpness  # matplotlib takes 0.8 s to load

        return draw_sharpness(self.to_dict(), ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON: the format of `noisescale sharpness --json`."""
        moments = self.moments
        return {
            "split": self.split,
            "num_examples": self.num_examples,
            "population_size": self.population_size,
            "matrix": self.matrix,
            "amp": self.amp,
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "eigenvalues": [eigenvalue.to_dict() for eigenvalue in self.eigenvalues],
            "trace": moments and moments.trace.to_dict(),
            "frobenius": moments and moments.squared_frobenius_norm.to_dict(),
            "batch_size": self.batch_size,
            "batch_sharpness": self.batch_sharpness and self.batch_sharpness.to_dict(),
            "gradient_noise_interaction": self.gradient_noise_interaction
            and self.gradient_noise_interaction.to_dict(),
            "preconditioned": self.preconditioned and self.preconditioned.to_dict(),
            "critical": self.critical and self.critical.to_dict(),
            "phi": [phi.to_dict() for phi in self.phi],
            "density": self.density and self.density.to_dict(),
            "num_matvecs": self.num_matvecs,
            "notes": list(self.notes),
        }

    @property
    def estimates(self) -> dict[str, Estimate]:
        """What was measured beside eigenvalues, density and φ, by name."""
        measured = {}
        if self.moments is not None:
            measured["trace"] = self.moments.trace
            measured["frobenius"] = self.moments.squared_frobenius_norm
        if self.batch_sharpness is not None:
            measured["batch_sharpness"] = self.batch_sharpness
        if self.gradient_noise_interaction is not None:
            measured["gradient_noise_interaction"] = self.gradient_noise_interaction
        if self.critical is not None:
            measured["critical_sharpness"] = self.critical.value
            measured["critical_rate"] = self.critical.learning_rate
        return measured

    def labelled(self) -> list[tuple[str, Eigenvalue]]:
        """The eigenvalues with what they are called: λ_max, λ_max (2), …, λ_min and so on.

        Last, with a preconditioner, λ_max(P^½HP^½), of the Gauss–Newton matrix λ_max(P^½GP^½).
        """
        labelled = [
            (NAMES[eigenvalue.which] + (f" ({rank})" if rank > 1 else ""), eigenvalue)
            for rank, eigenvalue in self._ranked()
        ]
        if self.preconditioned is not None:
            name = PRECONDITIONED.replace("H", "G" if self.matrix == "ggn" else "H")
            labelled.append((name, self.preconditioned.largest))
        return labelled

    def _ranked(self) -> list[tuple[int, Eigenvalue]]:
        """The eigenvalues with their rank at their end of the spectrum, from 1."""
        ranks = dict.fromkeys(NAMES, 0)
        ranked = []
        for eigenvalue in self.eigenvalues:
            ranks[eigenvalue.which] += 1
            ranked.append((ranks[eigenvalue.which], eigenvalue))
        return ranked

    def to_frame(self) -> pd.DataFrame:
        """One row, with the columns of sharpness.csv that a measurement fills, and what is beside.

        loss, gradient_norm, largest_eigenvalue with its residual and whether it has converged,
        batch_sharpness and num_matvecs are those of sharpness.csv; further eigenvalues are
        largest_eigenvalue_2 and so on. Estimates have a standard error (_stderr) and a 95 %
        interval (_low, _high). The rows of several checkpoints make one table by `pandas.concat`.
        """
        import pandas as pd

        row: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("num_examples", "population_size", "loss", "gradient_norm")
        }
        for rank, eigenvalue in self._ranked():
            name = f"{eigenvalue.which}_eigenvalue" + (f"_{rank}" if rank > 1 else "")
            row |= estimate_row(name, eigenvalue.value)
            prefix = "" if name == "largest_eigenvalue" else f"{name}_"
            row[f"{prefix}residual"] = eigenvalue.residual
            row[f"{prefix}converged"] = eigenvalue.converged
        for name, estimate in self.estimates.items():
            row |= estimate_row(name, estimate)
        if self.preconditioned is not None:
            row |= preconditioned_columns(self.preconditioned)
        return pd.DataFrame([row | {"num_matvecs": self.num_matvecs}])

    def _summary(self) -> Summary:
        count = share(self.num_examples, self.population_size)
        matrix = "Gauss–Newton matrix" if self.matrix == "ggn" else "Hessian"
        rows = [
            (name, f"{eigenvalue.value}" + ("" if eigenvalue.converged else " NOT CONVERGED"))
            for name, eigenvalue in self.labelled()
        ]
        labels = estimate_labels(self.batch_size)
        rows += [(labels[name], str(estimate)) for name, estimate in self.estimates.items()]
        beside = ["Keskar's φ in .phi"] if self.phi else []
        beside += [] if self.density is None else ["the spectral density in .density"]
        under = () if self.preconditioned is None else self.preconditioned.notes
        return Summary(
            title=f"{matrix} of the mean loss over {count} {self.split} examples, "
            f"loss {self.loss:.4g}",
            rows=rows,
            notes=(
                *self.notes,
                *under,
                *([f"also measured: {' and '.join(beside)}"] if beside else []),
            ),
        )


def preconditioned_columns(preconditioned: PreconditionedSharpness) -> dict[str, Any]:
    """The columns of sharpness.csv that λ_max(P^½HP^½) fills.

    Args:
        preconditioned: it.
    """
    largest, limit = preconditioned.largest, preconditioned.stable_sharpness
    return {
        **estimate_row("preconditioned_eigenvalue", largest.value),
        "preconditioned_residual": largest.residual,
        "preconditioned_converged": float(largest.converged),
        "preconditioned_stable": math.nan if limit is None else limit,
    }


def estimate_labels(batch_size: int | None) -> dict[str, str]:
    """What the estimates of a `Sharpness` are called.

    Args:
        batch_size: of the two quantities of batches.
    """
    return {
        "trace": "trace",
        "frobenius": "squared Frobenius norm",
        "batch_sharpness": f"batch sharpness, B = {batch_size}",
        "gradient_noise_interaction": f"gradient-noise interaction, B = {batch_size}",
        "critical_sharpness": "critical sharpness 2/η_c",
        "critical_rate": "critical rate η_c",
    }
