"""The fit of steps against batch size: recovery, coverage, bounds, the unresolved, bad input."""

import json
import math

import numpy as np
import pytest
from scipy import optimize

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.critical_batch.fit import (
    fit_critical_batch,
)
from noisescale.statistics.critical_batch.curves.hyperbola import Hyperbola

SIZES = 2.0 ** np.arange(12)


def steps(sizes, *, min_steps=100.0, critical=50.0):
    return min_steps * (1 + critical / np.asarray(sizes, dtype=float))


def test_exact_values_are_recovered():
    fit = fit_critical_batch(SIZES, steps(SIZES))
    assert fit.resolved
    assert fit.definition == "pareto"
    for estimate, value in (
        (fit.min_steps, 100),
        (fit.min_examples, 5000),
        (fit.critical_batch_size, 50),
    ):
        assert estimate.value == pytest.approx(value, rel=1e-6)
        assert estimate.low == pytest.approx(value, rel=1e-3)
        assert estimate.high == pytest.approx(value, rel=1e-3)
    assert fit.steps(25) == pytest.approx(300, rel=1e-6)
    assert fit.scatter < 1e-6


def test_a_bound_that_the_curve_exceeds_changes_nothing():
    sizes = np.append(SIZES, [0.5])
    found = fit_critical_batch(
        sizes, np.append(steps(SIZES), [2000.0]), censored=[False] * 12 + [True]
    )
    assert found.num_censored == 1
    assert found.num_batch_sizes == 13
    assert found.critical_batch_size.value == pytest.approx(50, rel=1e-5)


def test_a_bound_taken_for_a_value_would_have_misled():
    """Runs at B = 1 and 2 stopped at 1,500 steps, of the 5,100 and 2,600 they take."""
    capped = np.minimum(steps(SIZES), 1500.0)
    honest = fit_critical_batch(SIZES, capped, censored=capped == 1500.0)
    naive = fit_critical_batch(SIZES, capped)
    assert honest.critical_batch_size.value == pytest.approx(50, rel=1e-4)
    assert naive.critical_batch_size.value < 40


def test_the_most_likely_curve_is_that_of_least_squares():
    """The peer: SciPy's least squares in logs, and its linear error against half the interval."""
    rng = np.random.default_rng(1)
    found = steps(SIZES) * np.exp(0.1 * rng.standard_normal(12))
    fit = fit_critical_batch(SIZES, found)
    (plateau, slope), covariance = optimize.curve_fit(
        lambda x, u, v: np.logaddexp(u, v - np.log(x)), SIZES, np.log(found), p0=np.log([100, 5000])
    )
    assert fit.min_steps.value == pytest.approx(math.exp(plateau), rel=1e-3)
    assert fit.min_examples.value == pytest.approx(math.exp(slope), rel=1e-3)
    assert fit.critical_batch_size.value == pytest.approx(math.exp(slope - plateau), rel=1e-3)
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert fit.critical_batch_size.stderr == pytest.approx(
        fit.critical_batch_size.value * error, rel=0.1
    )


def test_the_gradient_of_the_likelihood_is_its_derivative():
    bounds = np.arange(12) % 5 == 0
    problem = Hyperbola(SIZES, steps(SIZES) * np.exp(0.3 * np.sin(np.arange(12))), bounds)
    at = np.array([4.0, 8.0, -1.0])
    numerical = optimize.approx_fprime(at, lambda params: problem._deviance(params)[0], 1e-6)
    assert problem._deviance(at)[1] == pytest.approx(numerical, rel=1e-4, abs=1e-3)


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(
    ("scatter", "seeds", "capped"), [(0.1, 1, False), (0.15, 1, True), (0.2, 3, True)]
)
def test_coverage_of_the_intervals(scatter, seeds, capped):
    """90 % intervals over 200 draws, the outermost batches often stopped before the goal."""
    rng = np.random.default_rng(0)
    sizes = np.repeat(SIZES, seeds)
    truth = {"min_steps": 100, "min_examples": 5000, "critical_batch_size": 50}
    hits = dict.fromkeys(truth, 0)
    for _ in range(200):
        found = steps(sizes) * np.exp(scatter * rng.standard_normal(len(sizes)))
        limits = np.where(sizes <= 2, steps(sizes), np.where(sizes >= 1024, 103.0, np.inf))
        limits = limits if capped else np.full(len(sizes), np.inf)
        fit = fit_critical_batch(
            sizes, np.minimum(found, limits), censored=found > limits, confidence=0.9
        )
        for name, value in truth.items():
            hits[name] += getattr(fit, name).low <= value <= getattr(fit, name).high
    assert all(170 <= count <= 196 for count in hits.values()), hits


@pytest.mark.statistical
@pytest.mark.slow
def test_coverage_of_the_overhead_size():
    """Its truth relative to the smallest batch size: 1 + B/B_crit = 1.2·(1 + 1/B_crit)."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        sizes = np.repeat(SIZES, 3)
        found = steps(sizes) * np.exp(0.08 * rng.standard_normal(len(sizes)))
        overhead = fit_critical_batch(sizes, found, confidence=0.9).overhead_batch_size
        hits += overhead.low <= 11.2 <= overhead.high
    assert hits >= 170


@pytest.mark.parametrize(
    ("sizes", "word"), [(2.0 ** np.arange(-6, 1), "larger"), (2.0 ** np.arange(11, 19), "smaller")]
)
def test_batch_sizes_on_one_side_of_the_bend_leave_it_unresolved(sizes, word):
    rng = np.random.default_rng(0)
    fit = fit_critical_batch(sizes, steps(sizes) * np.exp(0.05 * rng.standard_normal(len(sizes))))
    assert not fit.resolved
    assert math.isnan(fit.critical_batch_size.value)
    assert word in fit.reason
    assert fit.critical_batch_size.low <= 50 <= fit.critical_batch_size.high
    settled = fit.min_examples if word == "larger" else fit.min_steps
    assert settled.low <= (5000 if word == "larger" else 100) <= settled.high


def test_steps_that_follow_no_curve_are_said_to_scatter():
    fit = fit_critical_batch(SIZES, 100 * SIZES)
    assert not fit.resolved
    assert "scatter too much" in fit.reason


def test_an_exact_curve_is_not_extrapolated():
    fit = fit_critical_batch([100, 200, 400, 800], steps([100, 200, 400, 800]))
    assert not fit.resolved
    assert "outside" in fit.reason
    assert "smaller" in fit.reason


def test_the_overhead_is_read_from_the_curve():
    """Flat up to 64, then examples grow in proportion: the fit's 0.2·B_crit is elsewhere."""
    examples = np.where(SIZES <= 64, 1000.0, 1000.0 * SIZES / 64)
    fit = fit_critical_batch(SIZES, examples / SIZES)
    assert fit.overhead_batch_size.value == pytest.approx(
        64 * 2 ** (math.log(1.2) / math.log(2)), rel=0.02
    )
    assert abs(fit.overhead_batch_size.value / (0.2 * fit.critical_batch_size.value) - 1) > 0.5


def test_an_overhead_beyond_the_largest_batch_is_a_bound():
    sizes = [1, 2, 4, 8]
    fit = fit_critical_batch(sizes, 1000 / np.array(sizes))
    assert math.isnan(fit.overhead_batch_size.value)
    assert fit.overhead_batch_size.low == pytest.approx(8)


def test_seeds_are_averaged_and_tell_whether_the_curve_fits():
    rng = np.random.default_rng(2)
    sizes = np.repeat(SIZES, 5)
    noise = 0.03 * rng.standard_normal(len(sizes))
    good = fit_critical_batch(sizes, steps(sizes) * np.exp(noise))
    bent = fit_critical_batch(sizes, steps(sizes) ** 0.7 * np.exp(noise))
    assert good.num_batch_sizes == 12
    assert good.lack_of_fit > 0.01
    assert bent.lack_of_fit < 1e-4
    assert math.isnan(fit_critical_batch(SIZES, steps(SIZES)).lack_of_fit)


def test_a_seed_that_is_stopped_makes_its_batch_size_a_bound():
    sizes, found = np.repeat(SIZES, 2), np.repeat(steps(SIZES), 2)
    stopped = np.arange(24) == 0
    fit = fit_critical_batch(sizes, np.where(stopped, 10.0, found), censored=stopped)
    assert fit.num_censored == 1
    assert fit.critical_batch_size.value == pytest.approx(50, rel=1e-5)


def test_too_few_that_reach_the_goal_resolve_nothing():
    fit = fit_critical_batch(SIZES, steps(SIZES), censored=np.arange(12) > 1)
    assert not fit.resolved
    assert fit.reason.startswith("2 of 12")
    assert math.isnan(fit.min_steps.value)
    assert fit.num_censored == 10


def test_the_record_is_strict_json():
    fit = fit_critical_batch(SIZES, steps(SIZES), censored=np.arange(12) > 1)
    record = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    assert record["critical_batch_size"]["value"] is None
    assert record["definition"] == "pareto"


@pytest.mark.parametrize(
    ("sizes", "found", "message"),
    [
        ([1, 2, 4], [3, 2, 1], "3 batch sizes .1, 2, 4."),
        ([1, 1, 1, 2, 4], [3, 3, 3, 2, 1], "3 batch sizes"),
        ([1, 2, 4, 0], [3, 2, 1, 1], "batch size 0"),
        ([1, 2, 4, 8], [3, 2, -1, 1], "steps -1"),
        ([1, 2, 4, 8], [3, 2, math.nan, 1], "steps nan"),
        ([1, 2, 4, 8], [3, 2, 1], "one of each"),
        ([], [], "0 batch sizes"),
    ],
)
def test_bad_input_gets_one_message(sizes, found, message):
    with pytest.raises(SettingError, match=message):
        fit_critical_batch(sizes, found)


def test_a_hyperbola_of_bounds_alone_is_refused():
    with pytest.raises(MeasurementError, match="2 of 4 values are known"):
        Hyperbola(SIZES[:4], steps(SIZES[:4]), np.array([False, False, True, True]))


def test_the_bootstrap_does_not_depend_on_when_it_is_called():
    noisy = steps(SIZES) * np.exp(0.1 * np.sin(7 * np.arange(12)))
    first = fit_critical_batch(SIZES, noisy)
    np.random.default_rng().random(3)
    assert fit_critical_batch(SIZES, noisy).overhead_batch_size == first.overhead_batch_size
