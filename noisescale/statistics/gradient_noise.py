"""From statistics of per-example gradients to |G|², tr Σ and B_simple, with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from noisescale.errors import SettingError
from noisescale.statistics.display import Shown, Summary, counted, share
from noisescale.statistics.estimate import (
    Estimate,
    Reach,
    estimate_columns,
    estimate_row,
    exact,
    from_stderr,
    jsonable,
    ratio,
    rescaled,
    student_t,
)
from noisescale.statistics.hessian_noise import CurvatureNoise
from noisescale.statistics.sample import (
    Measured,
    Population,
    Sample,
    Spread,
    Weighting,
    excess,
    reaches,
    squared_deviations,
    weighted_influences,
    with_log_ratio,
)

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
FIRST = ("simple", "full")  # of what is shown: the rest is what they are made of
FEW = 20  # effective examples, below which coverage was measured to fall short
HALF = 0.5  # of the examples: a small n is not a heavy tail
BINS = 40  # of the histogram of norms: finer than what it is read for, coarse enough for JSON
SMALLEST_NORM = 1e-6  # of the largest: smaller ones would stretch the bins
NARROW = 1.01  # the least that the bins span, where all norms are one
FITTED = 5  # standard errors below zero, which no fresh examples give


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
            notes=_unresolved(self.resolved, self.examples_to_resolve),
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
        notes: what a reader should know.
        units_per_example: the mean number of units, such as tokens, of the examples measured, by
            which noise scales are had in these; None where it is not told.
        preconditioned: the same of √P g_i under an optimizer's diagonal preconditioner P:
            squared_gradient_norm is GᵀPG, gradient_variance tr(PΣ), simple B^P_simple, full
            B^P_noise, per_layer of each tensor. None where no preconditioner was given.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, measure_noise
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> noise = measure_noise(problem, num_examples=500)
        >>> noise.resolved, f"{noise.simple:.3g}"
        (True, '102 ± 11.6 (83.3–132)')
        >>> noise.to_frame()[["simple", "simple_low", "simple_high"]].round()
           simple  simple_low  simple_high
        0   102.0        83.0        132.0
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
    notes: tuple[str, ...] = ()
    units_per_example: float | None = None
    preconditioned: NoiseScale | None = None

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
            "engine": self.engine,
            "loss": self.loss,
            "squared_gradient_norm": self.squared_gradient_norm,
            "gradient_variance": self.gradient_variance,
            "simple": self.simple,
            "resolved": self.resolved,
            "examples_to_resolve": self.examples_to_resolve,
            "effective_examples": self.effective_examples,
            "noisiest_share": self.noisiest_share,
            "gradient_norms": self.gradient_norms,
            "full": curvature and curvature.full,
            "hessian_covariance_trace": curvature and curvature.covariance_trace,
            "gradient_curvature": curvature and curvature.gradient_curvature,
            "max_learning_rate": curvature and curvature.max_learning_rate,
            "hessian_examples": curvature and curvature.hessian_examples,
            "num_matvecs": curvature and curvature.num_matvecs,
            "per_layer": self.per_layer,
            "per_class": self.per_class,
            "top_examples": self.top_examples,
            "preconditioned": self.preconditioned and self.preconditioned._parts(),
            "notes": self.notes,
        }
        stored: dict[str, Any] = jsonable(record)
        return stored

    def _parts(self) -> dict[str, Any]:
        """What the entry has of the noise under a preconditioner."""
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
            rows=[*_rows(self.estimates), *self._under_preconditioner],
            notes=(
                *_unresolved(self.resolved, self.examples_to_resolve),
                *self.notes,
                *((f"also measured: {', '.join(tables)}",) if tables else ()),
            ),
        )


def _rows(estimates: dict[str, Estimate]) -> list[tuple[str, str]]:
    """The noise scales, then what they are made of."""
    names = sorted(estimates, key=lambda name: name not in FIRST)
    return [(QUANTITIES[name], str(estimates[name])) for name in names]


def _unresolved(resolved: bool, examples_to_resolve: int | None) -> tuple[str, ...]:
    """Why B_simple has no interval, and what it would take."""
    if resolved:
        return ()
    needed = "" if examples_to_resolve is None else f"; {examples_to_resolve:,} examples may do"
    return (f"B_simple is not resolved: |G|² cannot be told from zero{needed}",)


def noise_scale(
    squared_norms: np.ndarray,
    projections: np.ndarray | None,
    mean_squares: np.ndarray,
    *,
    population: Population,
    population_size: int,
    names: Sequence[str] | None = None,
    weighting: Weighting | None = None,
) -> NoiseScale:
    """|G|², tr Σ and B_simple from statistics of n per-example gradients g_i with mean ḡ.

    The estimators are unbiased. "distribution": tr Σ = n/(n−1)·(mean|g_i|² − |ḡ|²) and the
    U-statistic |G|² = (n|ḡ|² − mean|g_i|²)/(n−1). "dataset", for draws without replacement: |G|² =
    |ḡ|² − (1/n − 1/N)·tr Σ̂ and tr Σ = (1 − 1/N)·tr Σ̂, with tr Σ̂ the estimate above, exact at n =
    N.

    Standard errors are by influence functions: that of |G|² is 2(c_i − mean c), with c_i = (n g_i·ḡ
    − |g_i|²)/(n−1) the projection on the mean of the *others*, that of tr Σ the rest of |g_i|²;
    times √(1 − n/N) for a data set. Intervals are by Student's t, that of B_simple by Fieller; of
    skew errors, as of heavy tails, by resampled t statistics, see `reaches`. Where n_eff is below
    `FEW` a note says that they may be too narrow.

    Args:
        squared_norms: |g_i|² of each of L parameter tensors (n, L).
        projections: g_i·ḡ in all (n,) or of each tensor (n, L). None, or n = 2: no standard errors,
            and `resolved` is False, since it cannot be judged.
        mean_squares: |ḡ|² of each tensor (L,).
        population: "dataset" or "distribution", see `NoiseScale`.
        population_size: N of the data set that the examples are a random subset of.
        names: of the tensors; with them the result has `per_layer`, whose errors take projections
            (n, L).
        weighting: of a weighted mean: what examples count for, whose `squared_norms` and
            `projections` are then of ĝ_i = r_i g_i, see `Weighting`. tr Σ is that of r_i (g_i − G),
            |G|² is free of bias up to 1/n², tr Σ up to 1/n. None: all count alike.

    Returns:
        The noise scale.

    Raises:
        SettingError: shapes that do not fit, fewer than 2 examples, or more than N.

    Examples:
        >>> import numpy as np
        >>> from noisescale import noise_scale
        >>> gradients = 1 + 2 * np.random.default_rng(0).standard_normal((400, 10))  # any (n, P)
        >>> mean = gradients.mean(0)
        >>> noise_scale(
        ...     (gradients**2).sum(1, keepdims=True),
        ...     gradients @ mean,
        ...     np.array([mean @ mean]),
        ...     population="distribution",
        ...     population_size=400,
        ... )
        Gradient noise over all 400 examples (population: distribution)
          B_simple = tr Σ/|G|²  4.22 ± 0.30 (3.70–4.88)
          |G|²                  9.45 ± 0.63 (8.22–10.67)
          tr Σ                  39.82 ± 0.90 (38.06–41.59)
    """
    sample = Sample(
        num_examples=len(squared_norms), population_size=population_size, population=population
    )
    _check(squared_norms, projections, mean_squares, sample)
    by_tensor = projections if projections is not None and projections.ndim == 2 else None
    total = projections if by_tensor is None else by_tensor.sum(1)
    whole = None if weighting is None else weighting.total
    noise = gradient_noise(squared_norms.sum(1), total, float(mean_squares.sum()), sample, whole)
    per_layer = None
    if names is not None:
        per_layer = table(
            "parameter",
            {
                name: gradient_noise(
                    squared_norms[:, index],
                    None if by_tensor is None else by_tensor[:, index],
                    float(mean_squares[index]),
                    sample,
                    None if weighting is None else weighting.of_tensor(index),
                )
                for index, name in enumerate(names)
            },
        )
    notes: tuple[str, ...] = ()
    norm = noise.squared_gradient_norm
    if norm.value < -FITTED * norm.stderr:
        notes = (
            "|G|² comes out far below zero: the parameters were fitted to these very examples, so "
            "that they say nothing of fresh ones; take the population dataset, or examples held "
            "out",
        )
    effective, noisiest = _concentration(
        squared_norms.sum(1), total, float(mean_squares.sum()), whole
    )
    if (
        effective is not None
        and sample.remaining
        and effective < min(FEW, HALF * len(squared_norms))
    ):
        notes += (
            f"heavy tails: n_eff is {effective:.3g} of {len(squared_norms):,} examples, and the "
            f"noisiest 1 % hold {noisiest:.0%} of tr Σ, so that intervals may be too narrow",
        )
    return NoiseScale(
        notes=notes,
        effective_examples=effective,
        noisiest_share=noisiest,
        gradient_norms=_histogram(squared_norms.sum(1), total, float(mean_squares.sum()), whole),
        squared_gradient_norm=norm,
        gradient_variance=noise.gradient_variance,
        simple=noise.simple,
        population=population,
        num_examples=sample.num_examples,
        population_size=population_size,
        resolved=noise.resolved,
        examples_to_resolve=noise.examples_to_resolve,
        per_layer=per_layer,
    )


def gradient_noise(
    squared_norms: np.ndarray,
    projections: np.ndarray | None,
    mean_square: float,
    sample: Sample,
    weighting: Weighting | None = None,
) -> GradientNoise:
    """The estimates of `noise_scale` from |g_i|² (n,), g_i·ḡ (n,) and |ḡ|²."""
    n = sample.num_examples
    unbiased, on_norm = excess(squared_norms, mean_square, weighting)
    variance = sample.variance_factor * unbiased
    # |ḡ|² − (1/n − 1/N)·tr Σ̂, term by term: committed tables keep their last digit
    squared_norm = mean_square - on_norm / n + on_norm / sample.size_of_population
    spread = _spread(squared_norms, projections, mean_square, sample, weighting)
    covariance = np.full((2, 2), math.nan)
    reach: Sequence[Reach | None] = (None, None, None)
    if sample.remaining == 0:
        covariance = np.zeros((2, 2))
    elif spread is not None:
        covariance = np.cov(spread.values) * sample.remaining / n
        of_variance, of_norm = np.eye(2)
        weights = with_log_ratio(of_variance, of_norm, np.array([variance, squared_norm]))
        reach = reaches([spread.along(weights)], dof=n - 1) or reach
    stderr_variance, stderr_norm = np.sqrt(covariance.diagonal())
    trace = from_stderr(variance, stderr_variance, num_samples=n, reach=reach[0])
    norm = from_stderr(squared_norm, stderr_norm, num_samples=n, reach=reach[1])
    simple = ratio(variance, squared_norm, covariance, num_samples=n, dof=n - 1)
    if reach[2] is not None:
        simple = rescaled(simple, reach[2], dof=n - 1)
    needed = None
    if math.isnan(simple.value):
        needed = _examples_to_resolve(squared_norm, stderr_norm, sample)
    return GradientNoise(
        squared_gradient_norm=norm,
        gradient_variance=trace,
        simple=simple,
        examples_to_resolve=needed,
        population=sample.population,
    )


def _concentration(
    squared_norms: np.ndarray,
    projections: np.ndarray | None,
    mean_square: float,
    weighting: Weighting | None,
) -> tuple[float | None, float | None]:
    """n_eff and the share of the noisiest hundredth, of the examples' squared deviations."""
    if projections is None:
        return None, None
    deviations = squared_deviations(squared_norms, projections, mean_square, weighting)  # (n,)
    total = float(deviations.sum())
    if not total > 0:
        return None, None
    noisiest = np.sort(deviations)[-math.ceil(len(deviations) / 100) :]
    return total**2 / float((deviations**2).sum()), float(noisiest.sum()) / total


def _histogram(
    squared_norms: np.ndarray,
    projections: np.ndarray | None,
    mean_square: float,
    weighting: Weighting | None,
) -> pd.DataFrame:
    """The table `gradient_norms` of `NoiseScale`."""
    import pandas as pd

    norms = np.sqrt(squared_norms)  # (n,)
    largest = float(norms.max()) or 1.0
    smallest = max(float(norms.min()), SMALLEST_NORM * largest)
    num_bins = min(BINS, math.ceil(2 * math.sqrt(len(norms))))
    edges = np.geomspace(smallest, max(largest, smallest * NARROW), num_bins + 1)
    bins = np.clip(np.searchsorted(edges, norms, side="right") - 1, 0, num_bins - 1)  # (n,)
    shares = np.full(num_bins, math.nan)
    if projections is not None:
        deviations = squared_deviations(squared_norms, projections, mean_square, weighting)
        if (total := float(deviations.sum())) > 0:
            shares = np.bincount(bins, deviations, minlength=num_bins) / total
    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "examples": np.bincount(bins, minlength=num_bins),
            "variance_share": shares,
        }
    )


def _spread(
    squared_norms: np.ndarray,
    projections: np.ndarray | None,
    mean_square: float,
    sample: Sample,
    weighting: Weighting | None,
) -> Spread | None:
    """The examples' influences on tr Σ and |G|² (2, n); None where they are not known."""
    n = sample.num_examples
    # of two examples, the projection of either on the other is the same, which tells nothing
    if projections is None or n <= 2:
        return None
    if weighting is not None:
        weighted = weighted_influences(squared_norms, projections, mean_square, weighting)
        return None if weighted is None else Spread(values=weighted, share=sample.remaining)
    on_others = (n * projections - squared_norms) / (n - 1)  # (n,)
    influences = np.stack([squared_norms - 2 * on_others, 2 * on_others])  # (2, n)
    return Spread(values=influences, share=sample.remaining)


def mean_estimate(
    values: np.ndarray, sample: Sample, weighting: Weighting | None = None
) -> Estimate:
    """The mean of a quantity over the population, from the sample's values (n,), times r_i."""
    mean, n = float(values.mean()), sample.num_examples
    if sample.remaining == 0:
        return exact(mean, num_samples=n)
    deviations = values if weighting is None else values - weighting.relative * mean
    stderr = float(deviations.std(ddof=1)) * math.sqrt(sample.remaining / n)
    return from_stderr(mean, stderr, num_samples=n)


def table(key: str, noises: dict[Any, GradientNoise]) -> pd.DataFrame:
    """A row for each, its estimates as columns name, name_stderr, name_low and name_high."""
    import pandas as pd

    rows = []
    for name, noise in noises.items():
        row: dict[str, Any] = {key: name, "num_examples": noise.simple.num_samples}
        for quantity in ("squared_gradient_norm", "gradient_variance", "simple"):
            row |= estimate_row(quantity, getattr(noise, quantity))
        rows.append(row)
    return pd.DataFrame(rows)


def _examples_to_resolve(squared_norm: float, stderr: float, sample: Sample) -> int | None:
    """How many examples make |G|² significant, if it is as large as estimated or as its stderr.

    So mostly within four times as many as were measured; more where |G|² is smaller still. Errors
    are taken to fall as 1/√n, which they do at the slowest. None where nothing can be said.
    """
    if not stderr > 0:  # unknown, or exact
        return None
    t = student_t(sample.num_examples - 1)
    likely = max(squared_norm, stderr)
    # the stderr goes with the root of 1/n − 1/N: solved for the n at which likely = t·stderr
    inverse = (likely / (t * stderr)) ** 2 * sample.mean_factor
    return math.ceil(1 / (inverse + 1 / sample.size_of_population))


def _check(
    squared_norms: np.ndarray,
    projections: np.ndarray | None,
    mean_squares: np.ndarray,
    sample: Sample,
) -> None:
    n = sample.num_examples
    if sample.population not in ("dataset", "distribution"):
        raise SettingError(f"population {sample.population!r}: give dataset or distribution")
    if n < 2:
        raise SettingError(f"{counted(n, 'example')}: a variance takes at least 2")
    if n > sample.population_size:
        raise SettingError(f"{n} examples out of a population of {sample.population_size}")
    if squared_norms.ndim != 2 or mean_squares.shape != squared_norms.shape[1:]:
        raise SettingError(
            f"squared norms {squared_norms.shape} and mean squares {mean_squares.shape}: "
            "give (n, L) and (L,) for L parameter tensors"
        )
    if projections is not None and projections.shape not in (squared_norms.shape, (n,)):
        raise SettingError(f"projections {projections.shape}: give ({n},) or {squared_norms.shape}")
