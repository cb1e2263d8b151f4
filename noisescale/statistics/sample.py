"""A random sample of a population: what its size, heavy tails and weights do to errors.

The noise of a weighted mean gradient Σ w_i g_i/Σ w_i, as of a mean loss over all tokens of a batch.
With r_i = w_i/w̄ and ĝ_i = r_i g_i, G = Σ w g/Σ w is the mean of the ĝ_i, and to first order in 1/B
the gradient of a batch of B examples errs by the mean of its d_i = r_i (g_i − G) = ĝ_i − r_i G: it
is a ratio of two means, and d_i is the influence of an example on it. So Σ = E[d dᵀ], and B_simple
= tr Σ/|G|² is in examples. What that leaves out is of relative order 1/B: of a batch of one the
gradient is g_i itself.
"""

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


class Weighting(NamedTuple):
    """What n examples count for in a mean, and q = (1/n) Σ r_i ĝ_i, the mean by twice the weight.

    Attributes:
        relative: r_i = w_i/w̄ (n,), whose mean is 1.
        on_mean: q·G of each of L parameter tensors (L,).
        on_examples: ĝ_i·q (n,), or by parameter tensor (n, L); it tells how tr Σ moves with G.
            None: without standard errors.
    """

    relative: np.ndarray
    on_mean: np.ndarray
    on_examples: np.ndarray | None = None

    @property
    def total(self) -> Weighting:
        """That of all parameter tensors together, as of one."""
        along = self.on_examples
        if along is not None and along.ndim == 2:
            along = along.sum(1)
        return Weighting(self.relative, self.on_mean.sum(keepdims=True), along)

    def of_tensor(self, index: int) -> Weighting:
        """That of one parameter tensor; without standard errors where they are of all together.

        Args:
            index: of the tensor.
        """
        along = self.on_examples
        along = along[:, index] if along is not None and along.ndim == 2 else None
        return Weighting(self.relative, self.on_mean[index : index + 1], along)


def squared_deviations(
    squared_norms: np.ndarray,
    projections: np.ndarray,
    mean_square: float,
    weighting: Weighting | None = None,
) -> np.ndarray:
    """|d_i|² (n,), without weights |g_i − ḡ|².

    Args:
        squared_norms: |ĝ_i|² (n,).
        projections: ĝ_i·G (n,).
        mean_square: |G|² of these examples, not corrected.
        weighting: of the examples; None: all count alike.
    """
    relative = 1.0 if weighting is None else weighting.relative
    deviations: np.ndarray = squared_norms - 2 * relative * projections + relative**2 * mean_square
    return deviations


class Excess(NamedTuple):
    """tr Σ̂ with 1/(n − 1), and what n·(|Ĝ|² − |G|²) is on average, Ĝ the mean of n examples.

    The two are one for a plain mean. A ratio is biased, E[Ĝ] = G − E[r_i d_i]/n + O(1/n²), so that
    the second is tr Σ − 2·E[r_i d_i·G].
    """

    variance: float
    of_norm: float


def excess(
    squared_norms: np.ndarray, mean_square: float, weighting: Weighting | None = None
) -> Excess:
    """What the noise of n examples adds to |G|², and their variance.

    Args:
        squared_norms: as for `squared_deviations`.
        mean_square: likewise.
        weighting: of the examples, as of one tensor; None: all count alike.
    """
    n = len(squared_norms)
    if weighting is None:
        plain = (float(squared_norms.mean()) - mean_square) * n / (n - 1)
        return Excess(plain, plain)
    on_mean = float(weighting.on_mean[0])  # E[r_i ĝ_i·G]
    drift = on_mean - float((weighting.relative**2).mean()) * mean_square  # E[r_i d_i·G]
    variance = float(squared_norms.mean()) - on_mean - drift
    return Excess(variance * n / (n - 1), (variance - 2 * drift) * n / (n - 1))


def weighted_influences(
    squared_norms: np.ndarray,
    projections: np.ndarray,
    mean_square: float,
    weighting: Weighting,
) -> np.ndarray | None:
    """What each example contributes to the errors of tr Σ and |G|², (2, n), to first order.

    tr Σ moves with an example as |d_i|² and, through w̄ and G, as −2 tr Σ·(r_i − 1) − 2 m·d_i, with
    m = E[r d]; |G|² as 2 d_i·G, here with G of the other examples.

    Args:
        squared_norms: as for `squared_deviations`.
        projections: likewise.
        mean_square: likewise.
        weighting: with its `on_examples`, without which there is no answer.
    """
    if weighting.on_examples is None:
        return None
    n, relative = len(squared_norms), weighting.relative
    deviations = squared_deviations(squared_norms, projections, mean_square, weighting)
    on_mean = projections - relative * mean_square  # d_i·G
    # m = q − E[r²]·G
    on_double = weighting.on_examples - relative * float(weighting.on_mean[0])  # d_i·q
    on_drift = on_double - (relative**2).mean() * on_mean  # d_i·m
    of_variance = deviations - 2 * deviations.mean() * (relative - 1) - 2 * on_drift
    of_norm = 2 * (on_mean - deviations / (n - relative))
    return np.stack([of_variance, of_norm])
