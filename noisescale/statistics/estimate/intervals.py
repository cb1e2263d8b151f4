"""Estimates with their intervals, from samples, standard errors and other estimates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from noisescale.statistics.estimate.value import Estimate

CONFIDENCE = 0.95  # of every interval, the field's convention


class Reach(NamedTuple):
    """How many standard errors an interval reaches below its estimate, and above it."""

    below: float
    above: float


def student_t(dof: float, *, confidence: float = CONFIDENCE) -> float:
    """How many standard errors a two-sided interval of Student's t reaches; nan for no dof.

    Of scipy.special, imported here: it takes a fifth of a second, scipy.stats half of one, and
    workers that only train need neither.
    """
    from scipy import special

    return float(special.stdtrit(dof, (1 + confidence) / 2))


def exact(value: float, *, num_samples: int = 1) -> Estimate:
    """A number known without error."""
    return Estimate(value=value, stderr=0.0, low=value, high=value, num_samples=num_samples)


def undefined(*, num_samples: int, low: float = math.nan) -> Estimate:
    """No value, at most a lower bound."""
    high = math.nan if math.isnan(low) else math.inf
    return Estimate(value=math.nan, stderr=math.nan, low=low, high=high, num_samples=num_samples)


def from_stderr(
    value: float,
    stderr: float,
    *,
    num_samples: int,
    dof: float | None = None,
    reach: Reach | None = None,
) -> Estimate:
    """Value ± stderr with an interval.

    Args:
        value: the estimate.
        stderr: its standard error.
        num_samples: behind it; of fewer than two the error is not known.
        dof: degrees of freedom of Student's t; None: num_samples − 1.
        reach: how far the interval goes; None: as far as Student's t.

    Returns:
        The estimate.
    """
    if num_samples < 2:
        return Estimate(
            value=value, stderr=math.nan, low=math.nan, high=math.nan, num_samples=num_samples
        )
    if reach is None:
        reach = Reach(*2 * [student_t(dof or num_samples - 1)])
    return Estimate(
        value=value,
        stderr=float(stderr),
        low=value - reach.below * float(stderr),
        high=value + reach.above * float(stderr),
        num_samples=num_samples,
    )


def from_samples(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent samples (n,), its stderr with 1/(n − 1), and Student's t interval."""
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2:
        return from_stderr(float(values.mean()), math.nan, num_samples=len(values))
    stderr = float(values.std(ddof=1)) / math.sqrt(len(values))
    return from_stderr(float(values.mean()), stderr, num_samples=len(values))


def from_log_samples(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The geometric mean of positive samples (n,), with Student's t interval in logarithms."""
    logs = from_samples(np.log(np.asarray(samples, dtype=np.float64)))
    value = math.exp(logs.value)
    return Estimate(
        value=value,
        stderr=value * logs.stderr,
        low=math.exp(logs.low),
        high=math.exp(logs.high),
        num_samples=logs.num_samples,
    )


def between(
    first: float, second: float, stderr: float, *, num_samples: int, one_sign: bool = False
) -> Estimate:
    """A number between two estimates of it that err to opposite sides.

    The value is half-way; the interval reaches Student's t times `stderr` beyond both, so that it
    covers as long as the truth lies between what the two estimate on average. stderr: of a normal
    interval as long.

    Args:
        first: the one estimate.
        second: the other.
        stderr: the standard error of either.
        num_samples: independent samples behind it, one more than the degrees of freedom of t.
        one_sign: whether the estimates are means of numbers of one sign: the interval is then
            taken in logarithms, with stderr/first, as suits their skew.
    """
    value = (first + second) / 2
    if num_samples < 2:
        return from_stderr(value, math.nan, num_samples=num_samples)
    t = student_t(num_samples - 1)
    if one_sign and first * second > 0:
        factor = math.exp(t * stderr / abs(first))
        ends = [end * power for end in (first, second) for power in (1 / factor, factor)]
    else:
        ends = [end + shift for end in (first, second) for shift in (-t * stderr, t * stderr)]
    return Estimate.from_interval(
        value, min(ends), max(ends), num_samples=num_samples, widths=2 * t, scale="linear"
    )


def ratio(
    numerator: float, denominator: float, covariance: np.ndarray, *, num_samples: int, dof: float
) -> Estimate:
    """numerator/denominator with Fieller's interval (1954): the R with |x − Ry| ≤ t·stderr(x − Ry).

    Where the denominator is not significantly above zero the ratio is unresolved: value and stderr
    are nan, `low` is Fieller's root, below which the ratio of a positive denominator cannot lie,
    and `high` infinite; without even a bound, all are nan. An estimate below zero gives the
    (weaker) bound of zero, since its stderr is small by the same chance. Values are never clamped.

    Args:
        numerator: x.
        denominator: y.
        covariance: of the two (2, 2), zero where both are exact, nan where it is unknown.
        num_samples: behind them.
        dof: degrees of freedom of t.

    Returns:
        The ratio; its stderr is that of first order.
    """
    x, y = numerator, denominator
    if np.isnan(covariance).any():
        value = x / y if y > 0 else math.nan
        return from_stderr(value, math.nan, num_samples=num_samples)
    if y > 0 and not covariance.any():
        return exact(x / y, num_samples=num_samples)
    squared_t = student_t(dof) ** 2
    (vxx, vxy), (_, vyy) = covariance
    # a R² − 2b R + c ≤ 0
    bounded = max(y, 0.0)
    a, b, c = bounded**2 - squared_t * vyy, x * bounded - squared_t * vxy, x**2 - squared_t * vxx
    discriminant = b**2 - a * c
    if y > 0 and a > 0:
        value = x / y
        stderr = math.sqrt(max(vxx - 2 * value * vxy + value**2 * vyy, 0.0)) / y
        half = math.sqrt(max(discriminant, 0.0))  # a sum of squares, negative by rounding alone
        low, high = float((b - half) / a), float((b + half) / a)
        return Estimate(value=value, stderr=stderr, low=low, high=high, num_samples=num_samples)
    # all but what lies between the roots, of which one is on either side of zero
    if a < 0 < c and x > 0:
        return undefined(num_samples=num_samples, low=float((b - math.sqrt(discriminant)) / a))
    return undefined(num_samples=num_samples)


def quotient(numerator: Estimate, denominator: Estimate) -> Estimate:
    """The ratio of two independent positive estimates, from their intervals alone.

    Its logarithm's distance from each end is the root of the sum of the squares of the two
    estimates' distances that pull that way (Zou and Donner 2008); an interval that is open, or a
    value that is not defined, stays so. stderr: a quarter of the interval in logs, times the value.
    """
    num_samples = min(numerator.num_samples, denominator.num_samples)
    if not (numerator.value > 0 and denominator.value > 0):
        return undefined(num_samples=num_samples)
    value = numerator.value / denominator.value

    def distance(estimate: Estimate, end: float) -> float:
        if math.isnan(end):
            return math.nan
        return math.inf if end <= 0 or math.isinf(end) else math.log(end / estimate.value)

    below = math.hypot(distance(numerator, numerator.low), distance(denominator, denominator.high))
    above = math.hypot(distance(numerator, numerator.high), distance(denominator, denominator.low))
    return Estimate(
        value=value,
        stderr=value * (below + above) / 4,
        low=value * math.exp(-below),
        high=value * math.exp(above),
        num_samples=num_samples,
    )


def rescaled(ratio: Estimate, reach: Reach, *, dof: float) -> Estimate:
    """A positive ratio whose interval of Student's t reaches, in logs, as far as `reach` says.

    Args:
        ratio: with Fieller's interval, or without one, which changes nothing.
        reach: of its logarithm, in standard errors.
        dof: of Student's t.
    """
    if ratio.kind != "interval" or not 0 < ratio.low <= ratio.value:
        return ratio
    t = student_t(dof)
    low = ratio.value * (ratio.low / ratio.value) ** (reach.below / t)
    high = ratio.value * (ratio.high / ratio.value) ** (reach.above / t)
    return replace(ratio, low=low, high=high)


def stretched(ratio: Estimate, numerator: Estimate, denominator: Estimate) -> Estimate:
    """A ratio whose interval reaches as far as its halves' intervals leave open, by `quotient`.

    For halves that err skewly, of which Fieller's interval knows nothing. Halves that are not
    positive, and a ratio without an interval, change nothing.
    """
    rough = quotient(numerator, denominator)
    if ratio.kind != "interval" or rough.kind != "interval":
        return ratio
    low, high = min(ratio.low, rough.low), max(ratio.high, rough.high)
    if math.isinf(high):
        return undefined(num_samples=ratio.num_samples, low=low)
    return replace(ratio, low=low, high=high)
