"""Intervals that the tables on batch sizes share, of a nominal 95 %."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from noisescale.statistics.estimate import CONFIDENCE, Estimate, from_samples

DRAWS = 2000  # of a bootstrap: its ends are then good to a tenth of the interval


def median_interval(values: ArrayLike) -> tuple[float, float, float]:
    """The median and the order statistics that hold it with 95 % confidence or more.

    Of independent values of any distribution; of five or fewer the smallest and the largest, which
    hold it with less.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    number = len(ordered)
    # P(X < k) for a binomial X: that fewer than k of them lie below the median
    outside = int(stats.binom.ppf((1 - CONFIDENCE) / 2, number, 0.5))
    place = max(outside - 1, 0)
    return float(np.median(ordered)), float(ordered[place]), float(ordered[number - 1 - place])


def bootstrap_interval(
    by_seed: np.ndarray, statistic: Callable[[np.ndarray], float], *, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic of runs by seed, and its percentile interval over draws of the seeds.

    Of few seeds it holds less: a normal mean 75 % of the time with three, 83 % with five and 88 %
    with eight, by simulation.

    Args:
        by_seed: (S, …), a row for each seed.
        statistic: of rows of seeds.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(by_seed), size=(DRAWS, len(by_seed)))
    values = [statistic(by_seed[draw]) for draw in draws]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(statistic(by_seed)), float(low), float(high)


def paired(differences: ArrayLike) -> Estimate:
    """The mean difference over seeds, with Student's t."""
    return from_samples(np.asarray(differences, dtype=np.float64))


def p_value(differences: ArrayLike) -> float:
    """Of a mean difference of zero, two-sided, by Student's t; nan of fewer than two."""
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or not values.std():
        return float("nan")
    # not by scipy's ttest_1samp, which warns where seeds agree to rounding
    distance = abs(values.mean()) / (values.std(ddof=1) / np.sqrt(len(values)))
    return float(2 * stats.t.sf(distance, len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given; nan counts for no comparison."""
    known = [index for index, value in enumerate(p_values) if value == value]
    adjusted = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(known, key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted
