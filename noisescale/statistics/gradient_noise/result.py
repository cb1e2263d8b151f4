"""|G|², tr Σ and B_simple as a result: shown, drawn, and as a record or a table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from noisescale.statistics.display import Shown, Summary, share
from noisescale.statistics.estimate import Estimate, estimate_columns, estimate_row, jsonable
from noisescale.statistics.gradient_noise.anatomy import NoiseAnatomy
from noisescale.statistics.gradient_noise.sign import SIGN_QUANTITIES, SignNoise
from noisescale.statistics.hessian_noise import CurvatureNoise
from noisescale.statistics.sample import Measured, Population

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


# what is measured, by its name in tables and records, and what it is called
QUANTITIES = {
    "loss": "mean loss",
    "squared_gradient_norm": "|G|²",
    "gradient_variance": "tr Σ",
    "simple": "B_simple = tr Σ/|G|²",
    "hessian_covariance_trace": "tr(HΣ)",
    "gradient_curvature": "GᵀHG",
    "full": "B_noise = tr(HΣ)/GᵀHG",
    "max_learning_rate": "ε_max = |G|²/GᵀHG",
}
# the same of √P g_i under a preconditioner P
PRECONDITIONED = {
    "squared_gradient_norm": "GᵀPG",
    "gradient_variance": "tr(PΣ)",
    "simple": "B^P_simple = tr(PΣ)/GᵀPG",
    "hessian_covariance_trace": "tr(PHPΣ)",
    "gradient_curvature": "GᵀPHPG",
    "full": "B^P_noise = tr(PHPΣ)/GᵀPHPG",
    "max_learning_rate": "ε^P_max = GᵀPG/GᵀPHPG",
}
GRADIENT_NOISE = ("squared_gradient_norm", "gradient_variance", "simple")
CURVATURE_NOISE = ("hessian_covariance_trace", "gradient_curvature", "full", "max_learning_rate")
UNDER_PRECONDITIONER = "preconditioned_"  # before the names of quantities, in a table's columns
FIRST = ("simple", "full")  # of what is shown: the rest is what they are made of


def under_preconditioner(*names: str) -> list[str]:
    """The columns of quantities or of their parts under an optimizer's preconditioner."""
    return [f"{UNDER_PRECONDITIONER}{name}" for name in names]


def of_sign(*names: str) -> list[str]:
    """The columns of quantities, or of their parts, of descent along the sign of the gradient."""
    return [f"sign_{name}" for name in names]


class GradientNoise(NamedTuple):
    """|G|², tr Σ and B_simple of all parameters or of some, of all examples or of a class.

    Attributes:
        squared_gradient_norm: |G|², unbiased; it may come out negative where it is unresolved.
        gradient_variance: tr Σ, in units of |G|².
        simple: B_simple = tr Σ/|G|² in examples; a lower bound where |G|² cannot be told from zero.
        examples_to_resolve: how many examples may tell it from zero; None where fewer did, or where
            nothing can be said.
        population: whose mean gradient and noise these are, see `NoiseScale` and `RunningNoise`.
    """

    squared_gradient_norm: Estimate
    gradient_variance: Estimate
    simple: Estimate
    examples_to_resolve: int | None
    population: Measured

    @property
    def resolved(self) -> bool:
        """Whether |G|² is significantly above zero, so that `simple` has an interval."""
        return not math.isnan(self.simple.value) and not math.isnan(self.simple.low)

    def to_frame(self) -> pd.DataFrame:
        """One row: each estimate with its _stderr, _low and _high, as in batch_size.csv."""
        import pandas as pd

        row: dict[str, Any] = {}
        for name in GRADIENT_NOISE:
            row |= estimate_row(name, getattr(self, name))
        return pd.DataFrame([row | {"population": self.population}])

    def __repr__(self) -> str:
        return self._summary().text()

    def _repr_html_(self) -> str:
        return self._summary().html()

    def _summary(self) -> Summary:
        estimates = {name: getattr(self, name) for name in GRADIENT_NOISE}
        samples = self.simple.num_samples
        unit = "updates" if self.population == "training" else "examples"
        return Summary(
            title=f"Gradient noise over {samples:,} {unit} (population: {self.population})",
            rows=_rows(estimates),
            notes=_unresolved(self),
        )


@dataclass(frozen=True, kw_only=True, repr=False)
class NoiseScale(Shown):
    """The noise of the gradient of the mean loss at one parameter vector.

    Attributes:
        squared_gradient_norm: |G|², unbiased; it may come out negative where it is unresolved.
        gradient_variance: tr Σ, summed over the parameters, in units of |G|².
        simple: B_simple = tr Σ/|G|² in examples; a lower bound where it is not resolved.
        population: whose mean G is. "dataset": that of the split's N examples, Σ with 1/N.
            "distribution": that of fresh examples.
        num_examples: n, measured on.
        population_size: N, of the split.
        resolved: whether |G|² is significantly above zero.
        examples_to_resolve: where it is not, how many examples would do if |G|² is as large as
            estimated or, where that is larger, as its standard error.
        effective_examples: n_eff = (Σq)²/Σq² of the squared deviations q_i = |g_i − ḡ|²: as many
            equally noisy examples would tell tr Σ no better, whose relative standard error is
            √(1/n_eff − 1/n). None without projections, and without any deviation.
        noisiest_share: of Σq, that of the hundredth of the examples with the largest q, of one
            example at least.
        gradient_norms: how |g_i| is distributed: bins from low to high that are equally wide in
            logarithms, 2√n of them and 40 at most; of each the examples in it, and the
            variance_share, of Σq, that they hold (nan without projections). Norms below a millionth
            of the largest are in the first bin.
        split: of the problem's examples; None where it is not known.
        loss: the mean over the examples.
        engine: what computed the gradients.
        curvature: tr(HΣ) and GᵀHG, the halves of B_noise; None where they were not measured.
        per_layer: |G|², tr Σ and B_simple with their errors, a row for each parameter tensor.
        per_class: the same, a row for each class of the target.
        top_examples: index in the split, share of tr Σ and loss of the examples with the largest
            shares.
        anatomy: who carries tr Σ; None where it was not asked for.
        notes: what a reader should know.
        units_per_example: the mean number of units, such as tokens, of the examples measured, by
            which noise scales are had in these; None where it is not told.
        amp: "bf16" where the model ran under autocast; None: in the precision of its parameters.
        preconditioned: the same of √P g_i under an optimizer's diagonal preconditioner P:
            squared_gradient_norm is GᵀPG, gradient_variance tr(PΣ), simple B^P_simple, full
            B^P_noise, per_layer of each tensor. None where no preconditioner was given.
        sign: ‖G‖₁, ‖σ‖₁ and B_ℓ1 of descent along the sign of the gradient; None where they were
            not measured.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, measure_noise
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> noise = measure_noise(problem, num_examples=500)
        >>> noise.resolved, f"{noise.simple:.3g}"
        (True, '80.6 ± 8.58 (66.8–102)')
        >>> noise.to_frame()[["simple", "simple_low", "simple_high"]].round()
           simple  simple_low  simple_high
        0    81.0        67.0        102.0
    """

    squared_gradient_norm: Estimate
    gradient_variance: Estimate
    simple: Estimate
    population: Population
    num_examples: int
    population_size: int
    resolved: bool
    examples_to_resolve: int | None = None
    effective_examples: float | None = None
    noisiest_share: float | None = None
    gradient_norms: pd.DataFrame | None = field(default=None, compare=False, repr=False)
    split: str | None = None
    loss: Estimate | None = None
    engine: str | None = None
    curvature: CurvatureNoise | None = None
    per_layer: pd.DataFrame | None = None
    per_class: pd.DataFrame | None = None
    top_examples: pd.DataFrame | None = None
    anatomy: NoiseAnatomy | None = None
    notes: tuple[str, ...] = ()
    units_per_example: float | None = None
    amp: str | None = None
    preconditioned: NoiseScale | None = None
    sign: SignNoise | None = None

    @property
    def full(self) -> Estimate | None:
        """B_noise = tr(HΣ)/GᵀHG in examples; undefined unless GᵀHG is significantly above zero."""
        return self.curvature.full if self.curvature is not None else None

    @property
    def estimates(self) -> dict[str, Estimate]:
        """What was measured, by name: the loss, |G|², tr Σ and B_simple, then those of H."""
        measured = {} if self.loss is None else {"loss": self.loss}
        measured |= {name: getattr(self, name) for name in GRADIENT_NOISE}
        if (curvature := self.curvature) is not None:
            measured["hessian_covariance_trace"] = curvature.covariance_trace
            measured["gradient_curvature"] = curvature.gradient_curvature
            measured["full"] = curvature.full
            measured["max_learning_rate"] = curvature.max_learning_rate
        return measured

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws how signal and noise of a batch's gradient depend on its size, and B_simple.

        |G|² and tr Σ/B against the batch size B, each with its 95 % interval; they meet at
        B_simple, whose interval is shaded.

        Args:
            ax: drawn on; None: new ones, in a figure of pyplot's.

        Returns:
            The Axes.
        """
        from noisescale.plots.noise import draw_noise  # matplotlib takes 0.8 s to load

        return draw_noise(self.to_dict(), ax)

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: an entry of `noisescale measure-noise --json`, less the checkpoint."""
        curvature = self.curvature
        record: dict[str, Any] = {
            "split": self.split,
            "population": self.population,
            "num_examples": self.num_examples,
            "population_size": self.population_size,
            "units_per_example": self.units_per_example,
            "amp": self.amp,
            "engine": self.engine,
            "loss": self.loss,
            **self._parts(),
            "effective_examples": self.effective_examples,
            "noisiest_share": self.noisiest_share,
            "gradient_norms": self.gradient_norms,
            "hessian_examples": curvature and curvature.hessian_examples,
            "num_matvecs": curvature and curvature.num_matvecs,
            "per_class": self.per_class,
            "top_examples": self.top_examples,
            "anatomy": self.anatomy and self.anatomy.to_dict(),
            "preconditioned": self.preconditioned
            and {**self.preconditioned._parts(), "notes": self.preconditioned.notes},
            "sign": self.sign and self.sign.to_dict(),
            "notes": self.notes,
        }
        stored: dict[str, Any] = jsonable(record)
        return stored

    def _parts(self) -> dict[str, Any]:
        """What an entry has of any noise, under a preconditioner too."""
        curvature = self.curvature
        return {
            "squared_gradient_norm": self.squared_gradient_norm,
            "gradient_variance": self.gradient_variance,
            "simple": self.simple,
            "resolved": self.resolved,
            "examples_to_resolve": self.examples_to_resolve,
            "full": curvature and curvature.full,
            "hessian_covariance_trace": curvature and curvature.covariance_trace,
            "gradient_curvature": curvature and curvature.gradient_curvature,
            "max_learning_rate": curvature and curvature.max_learning_rate,
            "per_layer": self.per_layer,
        }

    def to_row(self) -> dict[str, Any]:
        """The columns of noise.csv that a measurement fills, nan for what was not measured."""
        curvature = self.curvature
        row: dict[str, Any] = {
            "num_examples": self.num_examples,
            "population_size": self.population_size,
            "hessian_examples": 0 if curvature is None else curvature.hessian_examples,
        }
        row |= dict.fromkeys(estimate_columns("loss", *GRADIENT_NOISE, *CURVATURE_NOISE), math.nan)
        for name, estimate in self.estimates.items():
            row |= estimate_row(name, estimate)
        for name in ("effective_examples", "noisiest_share"):
            value = getattr(self, name)
            row[name] = math.nan if value is None else value
        if self.preconditioned is not None:
            for name, estimate in self.preconditioned.estimates.items():
                row |= estimate_row(f"{UNDER_PRECONDITIONER}{name}", estimate)
        if self.sign is not None:
            for column, name in zip(of_sign(*SIGN_QUANTITIES), SIGN_QUANTITIES, strict=True):
                row |= estimate_row(column, getattr(self.sign, name))
        return row

    def to_frame(self) -> pd.DataFrame:
        """One row, of the columns of noise.csv that a measurement fills.

        Each estimate with its standard error (_stderr) and 95 % interval (_low, _high), nan for
        what was not measured. The rows of several checkpoints make one table by `pandas.concat`.
        """
        import pandas as pd

        return pd.DataFrame([self.to_row()])

    @property
    def _under_preconditioner(self) -> list[tuple[str, str]]:
        if self.preconditioned is None:
            return []
        estimates = self.preconditioned.estimates
        return [
            (label, str(estimates[name]))
            for name, label in PRECONDITIONED.items()
            if name in estimates
        ]

    @property
    def _of_sign(self) -> list[tuple[str, str]]:
        if self.sign is None:
            return []
        return [(label, str(getattr(self.sign, name))) for name, label in SIGN_QUANTITIES.items()]

    @property
    def _notes_under_preconditioner(self) -> tuple[str, ...]:
        under = self.preconditioned
        if under is None:
            return ()
        notes = (*_unresolved(under), *under.notes)
        return tuple(f"under the preconditioner: {note}" for note in notes)

    def _summary(self) -> Summary:
        count = share(self.num_examples, self.population_size)
        split = f" {self.split}" if self.split else ""
        tables = [
            f".{name} ({len(rows)} rows)"
            for name in ("per_layer", "per_class")
            if (rows := getattr(self, name)) is not None
        ]
        return Summary(
            title=f"Gradient noise over {count}{split} examples (population: {self.population})",
            rows=[*_rows(self.estimates), *self._under_preconditioner, *self._of_sign],
            notes=(
                *_unresolved(self),
                *self.notes,
                *self._notes_under_preconditioner,
                *((f"also measured: {', '.join(tables)}",) if tables else ()),
            ),
        )


def _rows(estimates: dict[str, Estimate]) -> list[tuple[str, str]]:
    """The noise scales, then what they are made of."""
    names = sorted(estimates, key=lambda name: name not in FIRST)
    return [(QUANTITIES[name], str(estimates[name])) for name in names]


def _unresolved(noise: GradientNoise | NoiseScale) -> tuple[str, ...]:
    """Why B_simple has no interval, and what it would take."""
    if noise.resolved:
        return ()
    if noise.squared_gradient_norm.high < 0:
        return (
            "B_simple is not resolved: |G|² comes out below zero by more than its error, as where "
            "gradients are not those of the examples counted (zero_grad() forgotten?)",
        )
    examples = noise.examples_to_resolve
    needed = "" if examples is None else f"; {examples:,} examples may do"
    return (f"B_simple is not resolved: |G|² cannot be told from zero{needed}",)
