"""The fit of steps against batch size: recovery, coverage, bounds, the unresolved, bad input."""

import json
import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from experiments.coverage.critical_batch import Cell, draw
from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.critical_batch.curves.hyperbola import Hyperbola
from noisescale.statistics.critical_batch.curves.overhead import _comparable
from noisescale.statistics.critical_batch.fit import fit_critical_batch

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


def crossed(curves):
    """Runs of seeds that lie on curves of their own exactly, as `fit_critical_batch` takes them."""
    found = np.concatenate([steps(SIZES, **curve) for curve in curves])
    names = np.repeat([f"seed {index}" for index in range(len(curves))], len(SIZES))
    return np.tile(SIZES, len(curves)), found, names


def t_interval(values):
    """Student's t over the logs of values, by its textbook formula."""
    logs = np.log(values)
    half = stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return math.exp(logs.mean() - half), math.exp(logs.mean() + half)


def test_seeds_with_curves_of_their_own_set_the_interval():
    """Each seed's S_min and B_crit is known exactly, so that their t interval is all there is.

    Batch sizes that are taken for independent show nothing of it: all seeds' means lie on a curve.
    """
    criticals, least = [35.0, 45.0, 50.0, 60.0, 70.0], [90.0, 110.0, 100.0, 120.0, 95.0]
    curves = [
        {"critical": critical, "min_steps": few}
        for critical, few in zip(criticals, least, strict=True)
    ]
    sizes, found, names = crossed(curves)
    fit = fit_critical_batch(sizes, found, seeds=names)
    low, high = t_interval(criticals)
    assert [fit.critical_batch_size.low, fit.critical_batch_size.high] == pytest.approx(
        [low, high], rel=0.01
    )
    assert [fit.min_steps.low, fit.min_steps.high] == pytest.approx(t_interval(least), rel=0.01)
    examples = np.multiply(criticals, least)
    assert [fit.min_examples.low, fit.min_examples.high] == pytest.approx(
        t_interval(examples), rel=0.01
    )
    assert fit.num_seeds == 5
    assert "seeds are independent" in fit.assumes
    apart = fit_critical_batch(sizes, found)
    assert apart.critical_batch_size.high / apart.critical_batch_size.low < 1.1
    assert "independent between batch sizes" in apart.assumes


def test_a_seed_that_cannot_be_fitted_alone_leaves_the_jackknife():
    """One of four reaches the goal at three batch sizes; the others' curves still tell the spread.

    The oracle leaves each seed out of the means in turn, and fits them by least squares in logs.
    """
    curves = [{"critical": critical} for critical in (40.0, 50.0, 60.0, 55.0)]
    sizes, found, names = crossed(curves)
    kept = (names != "seed 3") | (sizes >= 512)
    sizes, found, names = sizes[kept], found[kept], names[kept]
    fit = fit_critical_batch(sizes, found, seeds=names)
    logs = []
    for left_out in np.unique(names):
        there = names != left_out
        means = [np.log(found[there & (sizes == size)]).mean() for size in SIZES]
        (plateau, slope), _ = optimize.curve_fit(
            lambda x, u, v: np.logaddexp(u, v - np.log(x)), SIZES, means, p0=np.log([100, 5000])
        )
        logs.append(slope - plateau)
    error = math.sqrt(3 / 4 * np.sum((logs - np.mean(logs)) ** 2))
    half = stats.t.ppf(0.975, 3) * error
    length = math.log(fit.critical_batch_size.high / fit.critical_batch_size.low)
    assert length == pytest.approx(2 * half, rel=0.05)


def test_what_single_runs_do_not_explain_is_added_to_the_seeds():
    """Batch sizes off the curve for all seeds alike: the profile's interval, though seeds agree."""
    off = 0.2 * np.sin(9 * np.arange(12))
    sizes, seeds = np.tile(SIZES, 3), np.repeat([0, 1, 2], 12)
    found = np.tile(steps(SIZES) * np.exp(off), 3)
    found = found * np.exp(1e-3 * np.random.default_rng(0).standard_normal(36))
    fit = fit_critical_batch(sizes, found, seeds=seeds).critical_batch_size
    profile = fit_critical_batch(SIZES, steps(SIZES) * np.exp(off)).critical_batch_size
    assert [fit.low, fit.high] == pytest.approx([profile.low, profile.high], rel=0.02)


def test_the_misfit_is_judged_by_the_interaction_of_seeds_and_batch_sizes():
    """Each seed's own curve does not count as scatter, though it spreads the runs of a batch size.

    The oracle: means about the curve against deviations less their seed's regression, by an F test.
    """
    rng = np.random.default_rng(3)
    drawn = draw(Cell(0.3, 0.15, 4, 12, False), rng)
    fit = fit_critical_batch(drawn.sizes, drawn.steps, seeds=drawn.seeds)
    logs = np.log(drawn.steps).reshape(4, 12)
    means = logs.mean(0)
    critical = fit.critical_batch_size.value
    curve = np.log(fit.min_steps.value * (1 + critical / SIZES))
    about = np.sum((means - curve) ** 2) * 4 / 10
    design = np.stack([np.ones(12), 1 / (1 + SIZES / critical)], axis=1)
    hat = design @ np.linalg.pinv(design)
    within = np.sum(((logs - means) @ (np.eye(12) - hat)) ** 2) / (3 * 10)
    assert fit.lack_of_fit == pytest.approx(stats.f.sf(about / within, 10, 30), rel=1e-3)
    assert fit.lack_of_fit < 1e-3
    apart = fit_critical_batch(drawn.sizes, drawn.steps)
    assert apart.lack_of_fit > 0.05  # hidden by how far the seeds differ


def test_a_fit_that_is_too_good_is_said():
    """Runs that should be independent share their deviations, against one another at random."""
    rng = np.random.default_rng(0)
    noise = 0.2 * rng.standard_normal((2, 12))
    noise = np.concatenate([noise, -noise])
    sizes, seeds = np.tile(SIZES, 4), np.repeat(np.arange(4), 12)
    fit = fit_critical_batch(sizes, np.tile(steps(SIZES), 4) * np.exp(noise.ravel()), seeds=seeds)
    assert fit.lack_of_fit > 0.999
    assert any("suspiciously good" in remark for remark in fit.remarks())


def sharper(sizes, exponent, *, min_steps=100.0, critical=50.0):
    """Solved from ((S/S_min)^a − 1)((E/E_min)^a − 1) = 1 by bisection, not by the closed form."""

    def excess(found, size):
        examples = found * size / (min_steps * critical)
        return ((found / min_steps) ** exponent - 1) * (examples**exponent - 1) - 1

    return np.array(
        [
            optimize.brentq(
                excess,
                max(min_steps, min_steps * critical / size) * (1 + 1e-9),
                min_steps * 1e3 * (1 + critical / size),
                args=(size,),
            )
            for size in sizes
        ]
    )


@pytest.mark.parametrize("exponent", [0.7, 2.0])
def test_a_sharper_or_blunter_bend_is_recognised(exponent):
    rng = np.random.default_rng(5)
    found = sharper(SIZES, exponent) * np.exp(0.01 * rng.standard_normal(12))
    fit = fit_critical_batch(SIZES, found)
    assert fit.exponent.low < exponent < fit.exponent.high
    assert fit.exponent.value == pytest.approx(exponent, rel=0.1)
    assert fit.exponent_critical_batch_size == pytest.approx(50, rel=0.05)
    assert fit.better == "exponent"
    assert fit.correlated
    assert any("free exponent" in remark for remark in fit.remarks())
    plain = fit_critical_batch(SIZES, steps(SIZES) * np.exp(0.01 * rng.standard_normal(12)))
    assert plain.exponent.low < 1 < plain.exponent.high
    assert not any("free exponent" in remark for remark in plain.remarks())


def test_held_out_errors_are_those_of_refits():
    """Each batch size is predicted without it and its neighbours, by SciPy's least squares."""
    found = np.log(steps(SIZES)) + 0.1 * np.cos(3 * np.arange(12))
    fit = fit_critical_batch(SIZES, np.exp(found))

    def hyperbola(x, level, bend):
        return level + np.logaddexp(0, bend - np.log(x))

    def free(x, level, bend, log_exponent):
        exponent = np.exp(log_exponent)
        return level + np.logaddexp(0, exponent * (bend - np.log(x))) / exponent

    for curve, start, error in (
        (hyperbola, [4.6, 3.9], fit.held_out_error),
        (free, [4.6, 3.9, 0.0], fit.exponent_held_out_error),
    ):
        errors = []
        for index in range(12):
            kept = abs(np.arange(12) - index) > 1
            best, _ = optimize.curve_fit(curve, SIZES[kept], found[kept], p0=start, maxfev=10_000)
            errors.append(found[index] - curve(SIZES[index], *best))
        assert error == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=0.02)


def test_the_correlation_of_neighbours_is_that_of_the_residuals():
    off = 0.1 * np.cos(np.arange(12) / 2)
    fit = fit_critical_batch(SIZES, steps(SIZES) * np.exp(off))
    curve = fit.min_steps.value + fit.min_examples.value / SIZES
    residuals = np.log(steps(SIZES)) + off - np.log(curve)
    correlation = residuals[1:] @ residuals[:-1] / (residuals @ residuals)
    assert fit.residual_correlation == pytest.approx(correlation, rel=1e-6)


def test_an_overhead_that_seeds_disagree_on_is_not_resolved():
    """From one seed to the next the plateau of examples ends elsewhere, by factors."""
    curves = [{"critical": critical} for critical in (20.0, 60.0, 400.0)]
    sizes, found, names = crossed(curves)
    fit = fit_critical_batch(sizes, found, seeds=names)
    assert math.isnan(fit.overhead_batch_size.value)
    assert fit.overhead_batch_size.high > 10 * fit.overhead_batch_size.low
    assert any("20 % size is not resolved" in remark for remark in fit.remarks())


def test_a_seed_with_two_runs_at_a_batch_size_is_refused():
    with pytest.raises(SettingError, match="seed 7 has 2 runs at batch size 4"):
        fit_critical_batch([1, 2, 4, 4, 8], [9, 5, 3, 3, 2], seeds=[7] * 5)


@pytest.mark.statistical
@pytest.mark.slow
@pytest.mark.parametrize(("num_seeds", "num_sizes", "bounds"), [(5, 24, False), (3, 12, True)])
def test_intervals_hold_where_seeds_differ(num_seeds, num_sizes, bounds):
    """95 % intervals over 120 draws, seeds that differ by .2 in log S_min and log B_crit.

    The number that hold is binomial: fewer than 106 has a chance of 10⁻³ at .95. Intervals from the
    scatter of batch sizes alone, as if those were independent, hold in half of the draws.
    """
    rng = np.random.default_rng(0)
    fits = []
    for _ in range(120):
        drawn = draw(Cell(0.2, 0.0, num_seeds, num_sizes, bounds), rng)
        fits.append(
            fit_critical_batch(drawn.sizes, drawn.steps, seeds=drawn.seeds, censored=drawn.censored)
        )
    least = special.bdtrik(1e-3, 120, 0.95)
    truth = {"min_steps": 100, "min_examples": 5000, "critical_batch_size": 50}
    for name, value in truth.items():
        held = sum(getattr(fit, name).low <= value <= getattr(fit, name).high for fit in fits)
        assert held >= least, name
    assert sum(fit.lack_of_fit < 0.05 for fit in fits) <= 120 - special.bdtrik(1e-3, 120, 0.95)


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


@pytest.mark.parametrize("confidence", [0, 1, 2, -0.5, math.nan, True, "95 %"])
def test_a_confidence_is_between_0_and_1(confidence):
    with pytest.raises(SettingError, match=r"confidence .*give a number between 0 and 1"):
        fit_critical_batch(SIZES, steps(SIZES), confidence=confidence)


def test_seeds_that_lack_a_run_leave_the_overhead_as_uncertain_as_it_is():
    """The draws of a mean vary as means of so many runs do, whatever the other sizes have."""
    rng = np.random.default_rng(0)
    log_steps = 0.2 * rng.normal(size=(8, 6))
    log_steps[2:, 0] = np.nan  # two seeds
    log_steps[1:, 1] = np.nan  # one
    deviations = log_steps - np.nanmean(log_steps, 0)
    drawn = np.square(_comparable(deviations)).sum(0) / (8 * 7)  # variances of the means
    counts = np.isfinite(log_steps).sum(0)
    squares = np.nansum(deviations**2, 0)
    expected = squares / (counts - 1).clip(min=1) / counts
    expected[1] = squares.sum() / (1 + 4 * 7)  # a run's, by the others
    assert drawn == pytest.approx(expected)
