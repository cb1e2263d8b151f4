import json
import math

import numpy as np
import pytest
from scipy import stats

from noisescale.estimate import exact, from_samples, from_stderr


def test_mean_stderr_and_interval_are_scipys():
    samples = np.random.default_rng(0).normal(3, 2, size=12)
    estimate = from_samples(samples)
    low, high = stats.ttest_1samp(samples, 0).confidence_interval(0.95)
    assert estimate.value == pytest.approx(samples.mean())
    assert estimate.stderr == pytest.approx(stats.sem(samples))
    assert (estimate.low, estimate.high) == pytest.approx((low, high))
    assert estimate.num_samples == 12


def test_the_interval_covers_the_mean_95_times_in_100():
    draws = np.random.default_rng(1).normal(1, 5, size=(2000, 5))
    hits = [estimate.low <= 1 <= estimate.high for estimate in map(from_samples, draws)]
    assert abs(np.mean(hits) - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(hits))


def test_one_sample_has_no_error():
    estimate = from_samples([2.0])
    assert estimate.value == 2
    assert math.isnan(estimate.stderr)
    assert json.loads(json.dumps(estimate.to_dict(), allow_nan=False)) == {
        "value": 2.0,
        "stderr": None,
        "low": None,
        "high": None,
    }


def test_an_exact_number_has_error_zero():
    assert exact(4.0).to_dict() == {"value": 4.0, "stderr": 0.0, "low": 4.0, "high": 4.0}
    assert from_stderr(4.0, 0.0, num_samples=3).low == 4
