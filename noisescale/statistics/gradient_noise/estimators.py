"""From statistics of per-example gradients to |G|², tr Σ and B_simple, with their errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.display import counted
from noisescale.statistics.estimate import (
    Estimate,
    Reach,
    estimate_row,
    exact,
    from_stderr,
    ratio,
    rescaled,
    student_t,
    undefined,
)
from noisescale.statistics.gradient_noise.result import (
    GRADIENT_NOISE,
    GradientNoise,
    NoiseScale,
)
from noisescale.statistics.sample import (
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


FEW = 20  # effective examples, below which coverage was measured to fall short
HALF = 0.5  # of the examples: a small n is not a heavy tail
BINS = 40  # of the histogram of norms: finer than what it is read for, coarse enough for JSON
SMALLEST_NORM = 1e-6  # of the largest: smaller ones would stretch the bins
NARROW = 1.01  # the least that the bins span, where all norms are one
FITTED = 5  # standard errors below zero, which no fresh examples give


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
        if norm.low <= 0:  # by skew errors, where the ratio's own ends are finite
            simple = undefined(num_samples=n, low=simple.low)
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
        for quantity in GRADIENT_NOISE:
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
    if not (np.isfinite(squared_norms).all() and np.isfinite(mean_squares).all()):
        raise MeasurementError("gradients that are not finite have no noise scale")
    if projections is not None and projections.shape not in (squared_norms.shape, (n,)):
        raise SettingError(f"projections {projections.shape}: give ({n},) or {squared_norms.shape}")
