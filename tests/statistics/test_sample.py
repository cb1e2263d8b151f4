"""The finite-population factors, by enumeration of all subsets."""

import itertools

import numpy as np
import pytest

from noisescale.statistics.estimate import student_t
from noisescale.statistics.sample import FARTHEST, Sample, Spread, reaches

VALUES = np.array([1.0, 2.0, 4.0, 5.0, 9.0])
N, DRAWN = len(VALUES), 3


def sample(population, num_examples=DRAWN):
    return Sample(num_examples=num_examples, population_size=N, population=population)


def test_a_samples_mean_scatters_by_the_mean_factor():
    """Over all subsets, the mean's variance is (1/n − 1/N) times the unbiased variance."""
    subsets = np.array(list(itertools.combinations(VALUES, DRAWN)))
    found = sample("dataset")
    spread = subsets.mean(1).var()
    assert spread == pytest.approx(found.mean_factor * VALUES.var(ddof=1))
    assert spread == pytest.approx(found.remaining * VALUES.var(ddof=1) / DRAWN)
    variances = found.variance_factor * subsets.var(1, ddof=1)
    assert variances.mean() == pytest.approx(VALUES.var())


def test_a_draw_from_a_distribution_has_no_end():
    """Over all draws with replacement of a uniform distribution on the values."""
    draws = np.array(list(itertools.product(VALUES, repeat=DRAWN)))
    found = sample("distribution")
    assert (found.remaining, found.variance_factor) == (1.0, 1.0)
    assert draws.mean(1).var() == pytest.approx(found.mean_factor * VALUES.var())
    assert (found.variance_factor * draws.var(1, ddof=1)).mean() == pytest.approx(VALUES.var())


def test_all_of_a_data_set_leaves_nothing_to_chance():
    whole = sample("dataset").of(N)
    assert whole.remaining == whole.mean_factor == 0


def test_symmetric_errors_keep_students_interval():
    values = np.random.default_rng(0).standard_normal((2, 100))
    assert reaches([Spread(values)], dof=99) is None
    assert reaches([Spread(values[:, :5] ** 4)], dof=4) is None  # too few to tell
    assert reaches([Spread(np.exp(3 * values), share=0.0)], dof=99) is None  # all of a data set


def test_skew_errors_reach_farther_where_the_tail_is_missing():
    """Of positive values, above; of their negatives, below; whatever their unit."""
    values = np.exp(1.5 * np.random.default_rng(0).standard_normal((1, 100)))
    t = student_t(99)
    (reach,) = reaches([Spread(values)], dof=99)
    assert reach.below == t
    assert 1.5 * t < reach.above < FARTHEST
    (mirrored,) = reaches([Spread(-1e-9 * values)], dof=99)
    assert mirrored == pytest.approx((reach.above, reach.below))
    # what errs beside it makes it less skew
    noise = Spread(10 * np.random.default_rng(1).standard_normal((1, 100)))
    assert reaches([Spread(values), noise], dof=99) is None or (
        reaches([Spread(values), noise], dof=99)[0].above < reach.above
    )
    outlier = np.where(np.arange(100) == 0, 1.0, 0.0)[None]
    assert reaches([Spread(outlier)], dof=99)[0].above == FARTHEST


def test_reaches_are_the_percentiles_of_resampled_t_statistics():
    """By a plain loop over resamples of n^(2/3) of the units."""
    values = np.random.default_rng(2).exponential(size=125) ** 2
    generator = np.random.default_rng(3)
    statistics = []
    for _ in range(4000):
        drawn = generator.choice(values, 25)
        statistics.append((drawn.mean() - values.mean()) / (drawn.std(ddof=1) / 5))
    (reach,) = reaches([Spread(values[None])], dof=124)
    assert reach.above == pytest.approx(-np.quantile(statistics, 0.025), rel=0.15)  # 1,000 of them
    assert reach.below == student_t(124)  # nearer by the resamples
    assert np.quantile(statistics, 0.975) < student_t(124)
