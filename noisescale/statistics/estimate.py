"""A measured number with its error: value, standard error and 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
Population = Literal[
    "dataset", "distribution"
]  # whose mean: of the examples there are, or of fresh ones


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """value ± stderr, with `low` and `high` the 95 % interval, from `num_samples` independent samples.

    stderr, low and high are nan where one sample leaves the error unknown; stderr is 0 where the value is
    exact. Of a ratio whose denominator may be zero, see `ratio`, value and stderr are nan.
    """

    value: float
    stderr: float
    low: float
    high: float
    num_samples: int

    def to_dict(self) -> dict[str, float | None]:
        """value, stderr, low and high for strict JSON: None where not finite."""
        numbers = {"value": self.value, "stderr": self.stderr, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}

    def scaled(self, factor: float) -> Estimate:
        """The same estimate times a positive constant."""
        return Estimate(
            value=factor * self.value,
            stderr=factor * self.stderr,
            low=factor * self.low,
            high=factor * self.high,
            num_samples=self.num_samples,
        )


def estimate_columns(*names: str) -> list[str]:
    """The columns of estimates: each one's value, standard error and 95 % interval."""
    return [f"{name}{part}" for name in names for part in ("", "_stderr", "_low", "_high")]


def estimate_row(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate under these columns; exact ones have stderr 0."""
    values = (estimate.value, estimate.stderr, estimate.low, estimate.high)
    return dict(zip(estimate_columns(name), values, strict=True))


def exact(value: float, *, num_samples: int = 1) -> Estimate:
    """A number known without error."""
    return Estimate(value=value, stderr=0.0, low=value, high=value, num_samples=num_samples)


def from_stderr(
    value: float, stderr: float, *, num_samples: int, dof: float | None = None
) -> Estimate:
    """Value ± stderr with Student's t interval of `dof` degrees of freedom, None: num_samples − 1."""
    if num_samples < 2:
        return Estimate(
            value=value, stderr=math.nan, low=math.nan, high=math.nan, num_samples=num_samples
        )
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, dof or num_samples - 1)) * float(stderr)
    return Estimate(
        value=value,
        stderr=float(stderr),
        low=value - half,
        high=value + half,
        num_samples=num_samples,
    )


def from_samples(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent samples (n,), its standard error with 1/(n−1), and Student's t interval."""
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2:
        return from_stderr(float(values.mean()), math.nan, num_samples=len(values))
    stderr = float(values.std(ddof=1)) / math.sqrt(len(values))
    return from_stderr(float(values.mean()), stderr, num_samples=len(values))


def from_log_samples(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The geometric mean of independent positive samples (n,), Student's t interval in their logarithms."""
    logs = from_samples(np.log(np.asarray(samples, dtype=np.float64)))
    value = math.exp(logs.value)
    return Estimate(
        value=value,
        stderr=value * logs.stderr,
        low=math.exp(logs.low),
        high=math.exp(logs.high),
        num_samples=logs.num_samples,
    )


def quotient(numerator: Estimate, denominator: Estimate) -> Estimate:
    """The ratio of two independent positive estimates from their intervals alone.

    Its logarithm's distance from each end is the root of the sum of the squares of the two estimates'
    distances that pull that way (Zou and Donner 2008); an interval that is open, or a value that is not
    defined, stays so. stderr: a quarter of the interval in logs, times the value.
    """
    count = min(numerator.num_samples, denominator.num_samples)
    if not (numerator.value > 0 and denominator.value > 0):
        return undefined(num_samples=count)
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
        num_samples=count,
    )


def undefined(*, num_samples: int, low: float = math.nan) -> Estimate:
    """No value, at most a lower bound."""
    high = math.nan if math.isnan(low) else math.inf
    return Estimate(value=math.nan, stderr=math.nan, low=low, high=high, num_samples=num_samples)


def ratio(
    numerator: float, denominator: float, covariance: np.ndarray, *, num_samples: int, dof: float
) -> Estimate:
    """numerator/denominator with Fieller's interval (1954): the R with |x − Ry| ≤ t·stderr(x − Ry).

    covariance (2, 2): of the two estimates, zero where both are exact, nan where unknown. dof: degrees of
    freedom of t. The stderr is that of first order.

    Where the denominator is not significantly above zero the ratio is unresolved: value and stderr are nan,
    `low` is Fieller's root, below which the ratio of a positive denominator cannot lie, and `high` infinite;
    without even a bound, all are nan. An estimate below zero gives the (weaker) bound of zero, since its
    stderr is small by the same chance. Values are never clamped.
    """
    x, y = numerator, denominator
    if np.isnan(covariance).any():
        value = x / y if y > 0 else math.nan
        return Estimate(
            value=value, stderr=math.nan, low=math.nan, high=math.nan, num_samples=num_samples
        )
    if y > 0 and not covariance.any():
        return exact(x / y, num_samples=num_samples)
    squared_t = float(stats.t.ppf((1 + CONFIDENCE) / 2, dof)) ** 2
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
    if (
        a < 0 < c and x > 0
    ):  # all but what lies between the roots, of which one is on either side of zero
        return undefined(num_samples=num_samples, low=float((b - math.sqrt(discriminant)) / a))
    return undefined(num_samples=num_samples)
