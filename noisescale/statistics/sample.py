"""A random sample of a population, and the factors by which its finite size changes variances."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

# whose mean is estimated: that of the examples there are, or that of fresh ones
Population = Literal["dataset", "distribution"]


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
