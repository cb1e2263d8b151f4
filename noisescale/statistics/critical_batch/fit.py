"""The critical batch size from the steps that runs at several batch sizes take to a goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import optimize, special

from noisescale.errors import SettingError
from noisescale.statistics.critical_batch.hyperbola import FEWEST, Curve, Hyperbola
from noisescale.statistics.estimate import CONFIDENCE, Estimate, jsonable, undefined

FEWEST_SIZES = 4  # two parameters, the scatter, and a point to judge them by
OVERHEAD = 0.2  # of examples, beyond the smallest batch sizes': the share of Zhang et al. 2024
RESAMPLES = 500  # leave the ends of the interval a few per cent of its width of noise
STORED = (  # of a fit in fit.json, in this order
    *("min_steps", "min_examples", "critical_batch_size", "overhead_batch_size"),
    *("definition", "resolved", "reason", "num_batch_sizes", "num_censored"),
    *("scatter", "lack_of_fit"),
)


@dataclass(frozen=True, kw_only=True)
class CriticalBatchFit:
    """(S/S_min − 1)(E/E_min − 1) = 1 fitted to the steps S and examples E = B·S that reach a goal.

    McCandlish et al. 2018 (arXiv 1812.06162), (2.11) and (2.12).

    Attributes:
        min_steps: S_min, updates. A value that the batch sizes do not settle is nan, its interval
            open.
        min_examples: E_min, examples, likewise.
        critical_batch_size: B_crit = E_min/S_min in examples, at which a run takes twice the least
            of both.
        overhead_batch_size: the definition of Zhang et al. 2024 (arXiv 2410.21676): the batch size
            from which on a run takes 20 % more examples than at the smallest ones measured, which
            should lie well below B_crit. Read from the measured curve and not from the fit, of
            which it would be just 0.2·B_crit.
        resolved: whether B_crit has an interval with two ends and batch sizes that reach the goal
            on both sides of it.
        reason: why it is not resolved; empty where it is.
        num_batch_sizes: in the fit.
        num_censored: how many of them give no more than a lower bound on the steps.
        scatter: standard deviation of log S about the curve, n − 2 in its denominator.
        lack_of_fit: the probability of as bad a fit by chance, judged by the spread of the seeds;
            nan without several.
        definition: of B_crit, "pareto".
    """

    min_steps: Estimate
    min_examples: Estimate
    critical_batch_size: Estimate
    overhead_batch_size: Estimate
    resolved: bool
    reason: str
    num_batch_sizes: int
    num_censored: int
    scatter: float
    lack_of_fit: float
    definition: str = "pareto"

    def steps(self, batch_size: float) -> float:
        """S = S_min(1 + B_crit/B) of the most likely curve; nan where the fit is not resolved.

        Args:
            batch_size: B, in examples.

        Returns:
            Updates.
        """
        return self.min_steps.value + self.min_examples.value / batch_size

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: None for what is not finite."""
        record: dict[str, Any] = jsonable({name: getattr(self, name) for name in STORED})
        return record


def fit_critical_batch(
    batch_sizes: Sequence[float] | np.ndarray,
    steps: Sequence[float] | np.ndarray,
    *,
    censored: Sequence[bool] | np.ndarray | None = None,
    confidence: float = CONFIDENCE,
) -> CriticalBatchFit:
    """The fit of S = S_min(1 + B_crit/B) to runs (n,), each the fastest of its batch size and seed.

    Log S is taken to scatter normally and equally about the curve at every batch size: its seeds
    are averaged in logs first (with a censored one among them to a lower bound), so that the
    intervals, by the profile of the likelihood, rest on the scatter of batch sizes about the curve,
    which contains both the seeds' and what the curve lacks. A run's learning rate is taken to be
    the best one. That S is the least of several noisy ones makes it too small, by about the same
    factor at each batch size, which B_crit does not feel.

    Args:
        batch_sizes: examples per update (n,); several runs at one are seeds.
        steps: updates to the goal (n,).
        censored: runs that did not reach it (n,), whose steps are a lower bound; None: none of
            them.
        confidence: of the intervals.

    Returns:
        The fit. Fewer than three batch sizes that reach the goal leave everything unresolved.

    Raises:
        SettingError: fewer than four batch sizes, or what is no number of steps.
    """
    points = _points(batch_sizes, steps, censored)
    bounds = points.bounds
    if (~bounds).sum() < FEWEST:
        reason = (
            f"{(~bounds).sum()} of {len(bounds)} batch sizes reach the goal, and it takes {FEWEST}"
        )
        return unresolved(reason, num_batch_sizes=len(bounds), num_censored=int(bounds.sum()))
    hyperbola = Hyperbola(points.sizes, points.steps, bounds)
    curve = hyperbola.fit()
    critical = hyperbola.interval("bend", curve, confidence=confidence)
    reason = _unresolved(critical, curve, points.sizes[~bounds])
    if reason:
        critical = replace(critical, value=math.nan, stderr=math.nan)
    residuals = np.log(points.steps / curve.at(points.sizes))[~bounds]
    scatter = float(np.sqrt(np.sum(residuals**2) / max(len(residuals) - 2, 1)))
    return CriticalBatchFit(
        min_steps=hyperbola.interval("plateau", curve, confidence=confidence),
        min_examples=hyperbola.interval("slope", curve, confidence=confidence),
        critical_batch_size=critical,
        overhead_batch_size=_overhead(points, scatter, confidence),
        resolved=not reason,
        reason=reason,
        num_batch_sizes=len(bounds),
        num_censored=int(bounds.sum()),
        scatter=scatter,
        lack_of_fit=_lack_of_fit(points, residuals),
    )


def unresolved(reason: str, *, num_batch_sizes: int, num_censored: int) -> CriticalBatchFit:
    """A fit of which nothing is known."""
    missing = undefined(num_samples=num_batch_sizes - num_censored)
    return CriticalBatchFit(
        min_steps=missing,
        min_examples=missing,
        critical_batch_size=missing,
        overhead_batch_size=missing,
        resolved=False,
        reason=reason,
        num_batch_sizes=num_batch_sizes,
        num_censored=num_censored,
        scatter=math.nan,
        lack_of_fit=math.nan,
    )


def few_sizes(sizes: Sequence[float] | np.ndarray) -> str:
    """What to say of too few batch sizes."""
    return (
        f"{len(sizes)} batch sizes ({', '.join(f'{size:g}' for size in sizes)}): a critical batch "
        f"size takes {FEWEST_SIZES} or more, on both sides of it"
    )


@dataclass(frozen=True)
class _Points:
    """A point for each batch size, ascending: the steps of its seeds, averaged in logs."""

    sizes: np.ndarray
    steps: np.ndarray
    bounds: np.ndarray
    counts: np.ndarray  # seeds
    squares: np.ndarray  # Σ of the squared deviations of the seeds' log S from their mean


def _points(
    batch_sizes: Sequence[float] | np.ndarray,
    steps: Sequence[float] | np.ndarray,
    censored: Sequence[bool] | np.ndarray | None,
) -> _Points:
    sizes, numbers = np.asarray(batch_sizes, dtype=float), np.asarray(steps, dtype=float)
    bounds = (
        np.zeros(sizes.shape, dtype=bool) if censored is None else np.asarray(censored, dtype=bool)
    )
    if not sizes.ndim == 1 == numbers.ndim or not len(sizes) == len(numbers) == len(bounds):
        raise SettingError(
            f"{sizes.shape} batch sizes, {numbers.shape} steps, {bounds.shape} censored: "
            "give one of each a run"
        )
    for name, values in (("batch size", sizes), ("steps", numbers)):
        wrong = values[~(np.isfinite(values) & (values > 0))]
        if len(wrong):
            raise SettingError(f"{name} {wrong[0]:g}: give a number above 0")
    distinct, index_of_size, counts = np.unique(sizes, return_inverse=True, return_counts=True)
    if len(distinct) < FEWEST_SIZES:
        raise SettingError(few_sizes(distinct))
    means = np.bincount(index_of_size, np.log(numbers)) / counts
    return _Points(
        sizes=distinct,
        steps=np.exp(means),
        bounds=np.bincount(index_of_size, bounds) > 0,
        counts=counts,
        squares=np.bincount(index_of_size, (np.log(numbers) - means[index_of_size]) ** 2),
    )


def _unresolved(critical: Estimate, curve: Curve, reached: np.ndarray) -> str:
    """Why the batch sizes that reach the goal do not settle B_crit; empty where they do."""
    smallest, largest = f"{reached.min():g}", f"{reached.max():g}"
    if critical.low == 0.0 and math.isinf(critical.high):
        return (
            "the steps scatter too much about any curve to show a bend: "
            "give more seeds or batch sizes"
        )
    if math.isinf(critical.high):
        return f"steps fall as 1/B up to the largest batch size, {largest}: give larger ones"
    if critical.low == 0.0:
        return f"steps hardly fall from the smallest batch size, {smallest}, on: give smaller ones"
    if not reached.min() < curve.bend < reached.max():
        return (
            f"the bend lies outside the batch sizes, at about {curve.bend:.3g}: "
            f"give {'smaller' if curve.bend <= reached.min() else 'larger'} ones"
        )
    return ""


def _overhead(points: _Points, scatter: float, confidence: float) -> Estimate:
    """Where examples, as an isotonic curve in log B, are 20 % above its first level.

    The interval is by residual bootstrap, wider by Student's t over the normal quantile, as the
    scatter itself is estimated.
    """
    reached = ~points.bounds
    sizes = np.log(points.sizes[reached])
    examples = np.log((points.sizes * points.steps)[reached])
    value = _crossing(sizes, examples)
    generator = np.random.default_rng(0)
    fitted = optimize.isotonic_regression(examples).x
    tail = (1 - confidence) / 2
    widened = scatter * float(special.stdtrit(max(len(fitted) - 2, 1), tail) / special.ndtri(tail))
    draws = fitted + widened * generator.standard_normal((RESAMPLES, len(fitted)))
    crossings = np.array([_crossing(sizes, draw) for draw in draws])
    low, high = np.quantile(crossings, [tail, 1 - tail], method="nearest")
    num_samples = int(reached.sum())
    if math.isinf(value) or math.isinf(high):
        return undefined(num_samples=num_samples, low=math.exp(min(low, sizes[-1])))
    return Estimate(
        value=math.exp(value),
        stderr=math.exp(value) * float(high - low) / 4,
        low=math.exp(low),
        high=math.exp(high),
        num_samples=num_samples,
    )


def _crossing(log_sizes: np.ndarray, log_examples: np.ndarray) -> float:
    """Log B where the isotonic curve, interpolated, leaves 1 + OVERHEAD times its first level."""
    level = optimize.isotonic_regression(log_examples).x
    goal = level[0] + math.log1p(OVERHEAD)
    beyond = np.flatnonzero(level > goal)
    if not len(beyond):
        return math.inf
    after = beyond[0]
    share = (goal - level[after - 1]) / (level[after] - level[after - 1])
    return float(log_sizes[after - 1] + share * (log_sizes[after] - log_sizes[after - 1]))


def _lack_of_fit(points: _Points, residuals: np.ndarray) -> float:
    """The F test of the means' scatter about the curve against the seeds' about their means."""
    reached = ~points.bounds
    counts = points.counts[reached]
    fit_dof, seed_dof = len(residuals) - 2, int(counts.sum()) - len(counts)
    seeds = float(points.squares[reached].sum())
    if fit_dof < 1 or seed_dof < 1 or seeds == 0:
        return math.nan
    statistic = float(np.sum(counts * residuals**2)) / fit_dof / (seeds / seed_dof)
    return float(special.fdtrc(fit_dof, seed_dof, statistic))
