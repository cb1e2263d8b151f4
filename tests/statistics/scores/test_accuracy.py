import math

import numpy as np
import pytest
from scipy import optimize, stats

from noisescale.errors import SettingError
from noisescale.statistics.scores.accuracy import accuracy_estimate


@pytest.mark.parametrize(("correct", "examples"), [(0, 5), (1, 7), (93, 100), (1940, 2000), (9, 9)])
def test_the_interval_is_wilsons(correct, examples):
    theirs = stats.binomtest(correct, examples).proportion_ci(method="wilson")
    ours = accuracy_estimate(correct, examples)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.low <= float(ours) == correct / examples <= ours.high
    assert ours.kind == "interval"  # where all are right too


def test_its_ends_are_the_shares_from_which_the_count_is_two_standard_errors_away():
    z, n, k = stats.norm.ppf(0.975), 40, 33
    ends = [
        optimize.brentq(lambda p: (k / n - p) ** 2 - z**2 * p * (1 - p) / n, *bracket)
        for bracket in ((0.01, k / n), (k / n, 0.999))
    ]
    estimate = accuracy_estimate(k, n)
    assert (estimate.low, estimate.high) == pytest.approx(ends, rel=1e-9)


def test_it_holds_the_truth_as_often_as_it_says():
    n, p = 250, 0.95
    counts = np.arange(n + 1)
    held = [
        accuracy_estimate(int(k), n).low <= p <= accuracy_estimate(int(k), n).high for k in counts
    ]
    assert 0.93 < stats.binom.pmf(counts, n, p)[held].sum() < 0.97


def test_of_no_examples_there_is_none():
    assert math.isnan(float(accuracy_estimate(0, 0)))


def test_more_right_answers_than_examples_are_refused():
    with pytest.raises(SettingError, match="5 right answers of 3: give 0 to 3"):
        accuracy_estimate(5, 3)
