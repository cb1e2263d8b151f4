"""The finite-population factors, by enumeration of all subsets."""

import itertools

import numpy as np
import pytest

from noisescale.statistics.sample import Sample

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
