"""A random sample of a population: what its finite size and heavy tails do to errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from noisescale.statistics.estimate import CONFIDENCE, Reach, student_t

# whose mean is estimated: that of the examples there are, or that of fresh ones
Population = Literal["dataset", "distribution"]
# what training examples that are used again tell of a mean gradient: of it, see `RunningNoise`
Measured = Population | Literal["training"]

# Of an estimate, at which the 2.5 % that Student's t misses at an end become half as much again
SKEWED = 0.15
RESAMPLES = 1000  # their 2.5 % points scatter by a twentieth
LARGEST_RESAMPLE = 2000  # of units, for the memory: smaller ones are the more careful
FEWEST_UNITS = 8  # of which fewer say nothing of their tails
FARTHEST = 20.0  # standard errors: where the tail is so long, a sample does not say how long


@dataclass(frozen=True, kw_only=True)
class Sample:
    """n examples drawn at random, without replacement, from the N of a split.

    Attributes:
        num_examples: n.
        population_size: N of the split.
        population: what they are a sample of. "dataset": the split, whose covariance Σ has 1/N.
            "distribution": what the split was itself drawn from, as if N were infinite.
    """

    num_examples: int
    population_size: int
    population: Population

    @property
    def size_of_population(self) -> float:
        """N, infinite for a distribution: every factor below is a formula in n and this."""
        return self.population_size if self.population == "dataset" else math.inf

    @property
    def remaining(self) -> float:
        """1 − n/N, the share not drawn: what a finite population leaves of a sample's variance."""
        return 1 - self.num_examples / self.size_of_population

    @property
    def mean_factor(self) -> float:
        """1/n − 1/N: times the unbiased variance, that of the sample's mean."""
        return 1 / self.num_examples - 1 / self.size_of_population

    @property
    def variance_factor(self) -> float:
        """1 − 1/N: times the unbiased variance, the population's, with 1/N."""
        return 1 - 1 / self.size_of_population

    def of(self, num_examples: int) -> Sample:
        """A sample of another size from the same population."""
        return replace(self, num_examples=num_examples)


class Spread(NamedTuple):
    """What n independent units contribute to the errors of Q estimates.

    Attributes:
        values: (Q, n), of which each estimate errs by the mean's deviation.
        share: of their sampling variance that counts, such as 1 − n/N of a finite population.
    """

    values: np.ndarray
    share: float = 1.0

    def along(self, weights: np.ndarray) -> Spread:
        """That of combinations of the estimates, with these weights (K, Q)."""
        return Spread(values=weights @ self.values, share=self.share)


def with_log_ratio(
    numerator: np.ndarray, denominator: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Weights (3, Q) of two combinations and of the logarithm of their ratio, for `reaches`.

    To first order; of a combination that is zero, the logarithm is left out.

    Args:
        numerator: weights (Q,).
        denominator: weights (Q,).
        values: the estimates (Q,).
    """
    x, y = float(numerator @ values), float(denominator @ values)
    logarithm = (numerator / x if x else 0.0) - (denominator / y if y else 0.0)
    return np.stack([numerator, denominator, np.broadcast_to(logarithm, numerator.shape)])


def reaches(spreads: Sequence[Spread], *, dof: float) -> list[Reach] | None:
    """How many standard errors each of Q intervals reaches, where the estimates err skewly.

    By the first term of Edgeworth's expansion Student's t misses an end by γ(2t² + 1)φ(t)/6, γ the
    skewness of the estimate: of one of n units, over √n. Up to `SKEWED`, and one standard error of
    γ beyond it, t holds. From there on the percentiles of the t statistic are those of resamples of
    m = n^(2/3) of the n units, which are right for heavy tails without a variance too, where
    resamples of n are not (Hall and LePage 1996; Romano and Wolf 1999). No end is nearer than
    Student's t, nor farther than `FARTHEST` standard errors.

    Args:
        spreads: of the Q estimates, each from independent units; the errors add up.
        dof: of Student's t.

    Returns:
        Of each of the Q intervals, once one of them needs it; None: Student's t.
    """
    spreads = [spread for spread in spreads if spread.share > 0]
    fewest = min((spread.values.shape[1] for spread in spreads), default=0)
    if fewest < FEWEST_UNITS:
        return None
    by_chance = math.sqrt(6) / fewest  # standard error of the skewness of normal errors
    if max(_skewness(spreads)) <= SKEWED + by_chance:
        return None
    generator = np.random.default_rng(0)  # the same sample has the same interval
    deviation = variance = 0.0
    for values, share in spreads:
        num_units = values.shape[1]
        resampled = min(round(num_units ** (2 / 3)), LARGEST_RESAMPLE)
        chosen = generator.integers(num_units, size=(RESAMPLES, resampled))
        drawn = values[:, chosen]  # (Q, R, m)
        # scaled to what units as many as there are would give
        deviation += (drawn.mean(2).T - values.mean(1)) * math.sqrt(share * resampled / num_units)
        variance += drawn.var(2, ddof=1).T * share / num_units
    # (R, Q); resamples without any spread reach as far as there is
    statistics = deviation / np.sqrt(np.maximum(variance, np.finfo(float).tiny))
    tail = (1 - CONFIDENCE) / 2
    above, below = np.quantile(statistics, [tail, 1 - tail], axis=0) * [[-1], [1]]
    t = student_t(dof)
    return [
        Reach(below=max(t, min(low, FARTHEST)), above=max(t, min(high, FARTHEST)))
        for low, high in zip(below.tolist(), above.tolist(), strict=True)
    ]


def _skewness(spreads: Sequence[Spread]) -> np.ndarray:
    """|γ| of the Q estimates: variances and third cumulants of the parts of their errors add up."""
    variance = np.sum([values.var(1) / values.shape[1] * share for values, share in spreads], 0)
    stderr = np.where(variance > 0, np.sqrt(variance), 1.0)[:, None]
    cumulant = 0.0
    for values, share in spreads:
        deviations = (values - values.mean(1, keepdims=True)) / stderr
        cumulant += (deviations**3).mean(1) / values.shape[1] ** 2 * share**1.5
    skewness: np.ndarray = np.abs(cumulant)
    return skewness
