"""A measured number with its error: value, standard error and 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """value ± stderr, with `low` and `high` the 95 % interval, from `num_samples` independent samples.

    stderr, low and high are nan where one sample leaves the error unknown; stderr is 0 where the value is
    exact.
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


def exact(value: float, *, num_samples: int = 1) -> Estimate:
    """A number known without error."""
    return Estimate(value=value, stderr=0.0, low=value, high=value, num_samples=num_samples)


def from_stderr(value: float, stderr: float, *, num_samples: int) -> Estimate:
    """Value ± stderr with Student's t interval of num_samples − 1 degrees of freedom."""
    if num_samples < 2:
        return Estimate(value=value, stderr=math.nan, low=math.nan, high=math.nan, num_samples=num_samples)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, num_samples - 1)) * stderr
    return Estimate(value=value, stderr=stderr, low=value - half, high=value + half, num_samples=num_samples)


def from_samples(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent samples (n,), its standard error with 1/(n−1), and Student's t interval."""
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2:
        return from_stderr(float(values.mean()), math.nan, num_samples=len(values))
    stderr = float(values.std(ddof=1)) / math.sqrt(len(values))
    return from_stderr(float(values.mean()), stderr, num_samples=len(values))
