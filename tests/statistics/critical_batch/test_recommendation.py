"""Recommended batch sizes from tables whose answer is known."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.critical_batch.calibration.model import Calibration, measured
from noisescale.statistics.critical_batch.curves.steps_vs_examples import Tradeoff
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.statistics.estimate import Estimate, exact
from noisescale.statistics.gradient_noise import NoiseScale


def tracked(steps, simple, *, batch_size=64, full=None, spread=0.1):
    """Rows of noise.csv as far as a recommendation reads them."""
    table = pd.DataFrame({"step": steps, "batch_size": batch_size, "simple": simple})
    table = table.assign(num_examples=500, population_size=2000)
    table["full"] = math.nan if full is None else full
    for name in ("simple", "full"):
        table[f"{name}_stderr"] = spread / 2 * table[name]
        table[f"{name}_low"] = (1 - spread) * table[name]
        table[f"{name}_high"] = (1 + spread) * table[name]
    return table


def test_a_constant_noise_scale_is_the_critical_batch_size():
    found = recommend(tracked([0, 10, 100], [300.0] * 3))
    assert found.quantity == "simple"
    assert found.course.critical_batch_size == pytest.approx(300)
    assert (found.low.critical_batch_size, found.high.critical_batch_size) == pytest.approx(
        (270, 330)
    )
    assert found.course.gain == pytest.approx(1)
    by_progress = found.by_progress
    assert (by_progress.value, by_progress.low, by_progress.high) == pytest.approx((300, 270, 330))


def test_batch_sizes_are_those_of_the_critical_one():
    found = recommend(tracked([0, 10, 100], [300.0] * 3))
    critical = found.critical_batch_size.value
    record = found.to_dict()
    assert [row["batch_size"] for row in record["sizes"]] == [
        round(float(f"{critical / 10:.2g}")),
        round(float(f"{critical:.2g}")),
        round(float(f"{10 * critical:.2g}")),
    ]
    assert [(row["steps"], row["examples"]) for row in record["sizes"]] == [
        pytest.approx((11, 1.1), rel=0.05),
        pytest.approx((2, 2), rel=0.05),
        pytest.approx((1.1, 11), rel=0.05),
    ]
    json.dumps(record, allow_nan=False)
    few = recommend(tracked([0, 10, 100], [300.0] * 3).assign(population_size=500))
    assert few.batch_size("fewest steps") == 500  # all training examples are the most


def test_a_growing_one_is_averaged_over_the_progress_made():
    steps = np.arange(4001)
    scale = 20 + steps  # so that the integrals of ds = dt·B/(B + 𝓑) are logarithms
    found = recommend(tracked(steps, scale.astype(float)))
    min_steps = 64 * math.log((64 + 4020) / (64 + 20))
    min_examples = 64 * (4000 - min_steps)  # ∫ 𝓑 B/(B + 𝓑) dt = B (T − S_min)
    assert found.course.min_steps == pytest.approx(min_steps, rel=1e-4)
    assert found.course.min_examples == pytest.approx(min_examples, rel=1e-4)
    ends = (found.start, found.end, found.average)
    assert [one.value for one in ends] == pytest.approx([20, 4020, 2020])
    assert (found.average.low, found.average.high) == pytest.approx((0.9 * 2020, 1.1 * 2020))
    assert found.course.gain < 0.9


def test_an_adaptive_run_counts_each_stretch_at_its_own_batch_size():
    found = recommend(tracked([0, 100, 200], [100.0] * 3, batch_size=[100, 300, 300]))
    assert found.course.min_steps == pytest.approx(100 / 2 + 100 / (1 + 1 / 3))


def test_the_full_noise_scale_stands_beside_where_it_covers_the_run():
    """B_crit follows from B_simple, by which measured ones are told to half the factor."""
    rows = tracked([0, 10, 20, 100], [100.0] * 4, full=[math.nan, 50.0, 50.0, 50.0])
    found = recommend(rows)
    assert found.quantity == "simple"
    assert found.course.critical_batch_size == pytest.approx(100)
    assert found.full_by_progress.value == pytest.approx(50)
    asked = recommend(rows, quantity="full")
    assert asked.quantity == "full"
    assert asked.course.critical_batch_size == pytest.approx(50)
    assert (asked.num_measurements, asked.num_unresolved) == (4, 1)
    assert asked.covered == pytest.approx(0.9)
    for spoilt in (math.nan, -5.0):
        rows.loc[2, "full"] = spoilt  # two stretches, and nine tenths of the run
        assert recommend(rows).full_by_progress is None


def test_a_bound_below_zero_is_one_of_nothing():
    rows = tracked([0, 10], [100.0, 100.0])
    rows.loc[0, "simple_low"] = -50.0
    found = recommend(rows)
    assert 0 < found.low.critical_batch_size < 50


@pytest.mark.parametrize("spoil", [{"step": [0, 0]}, {"step": [10, 0]}, {"batch_size": [0, 64]}])
def test_a_table_that_makes_no_sense_is_refused(spoil):
    with pytest.raises(MeasurementError, match="do not increase, or a batch size"):
        recommend(tracked([0, 10], [100.0] * 2).assign(**spoil))


def test_an_interval_open_throughout_stays_open():
    """An end that is open is 1/𝓑 = 0: at one measurement it takes progress, not all of it."""
    rows = tracked([0, 10], [100.0, 200.0])
    rows.loc[1, "simple_high"] = math.inf
    assert recommend(rows).high.critical_batch_size == pytest.approx(2 * 110)  # 1/𝓑 from 1/110 to 0
    rows["simple_high"] = math.inf
    record = recommend(rows).to_dict()
    assert record["critical_batch_size"]["high"] is None
    assert record["by_progress"]["high"] is None
    json.dumps(record, allow_nan=False)


def test_nothing_is_recommended_from_a_run_that_makes_no_progress():
    rows = tracked([0, 10, 20], [50.0, 60.0, 70.0])
    assert recommend(rows.assign(loss=[2.0, 1.5, 1.9])).critical_batch_size.value > 0
    with pytest.raises(MeasurementError, match="at the end is 16 times that at the start"):
        recommend(rows.assign(loss=[0.33, 1.0, 5.28]))


def test_nothing_is_recommended_from_one_measurement():
    with pytest.raises(MeasurementError, match="1 of 3 measurements"):
        recommend(tracked([0, 10, 20], [math.nan, 100.0, math.nan]))


def test_a_noise_scale_without_neighbours_is_none():
    """Alternating measurements cover no stretch: once 100 % of the steps were bridged there."""
    rows = tracked([0, 10, 20, 30], [100.0] * 4, full=[50.0, math.nan, 50.0, math.nan])
    with pytest.raises(MeasurementError, match=r"2 of 4 measurements.*2 neighbours"):
        recommend(rows, quantity="full")


def test_what_is_not_resolved_is_averaged_all_the_same():
    """Of a constant 𝓑, with |G|² known to 50 %: without what is unresolved it comes out at 223."""
    generator, scale, error = np.random.default_rng(0), 300.0, 0.5
    steps = np.unique(np.round(10 ** (np.arange(28) / 8)))
    logs = []
    for _ in range(200):
        norm = (1 + error * generator.normal(size=len(steps))) / scale  # |G|², of tr Σ = 1
        norm[:2] = 1 / scale
        resolved = norm > 1.96 * error / scale
        rows = tracked(steps, np.where(resolved, 1 / norm, math.nan))
        rows = rows.assign(
            squared_gradient_norm=norm,
            squared_gradient_norm_low=norm - 1.96 * error / scale,
            squared_gradient_norm_high=norm + 1.96 * error / scale,
            gradient_variance=1.0,
        )
        logs.append(math.log(recommend(rows).course.critical_batch_size))
    assert math.exp(np.mean(logs)) == pytest.approx(scale, rel=0.1)


def test_negative_curvature_has_no_noise_scale():
    """𝓑 = 100 before and after: the steps between, at which no step is the best, change nothing."""
    full = np.array([100.0, 100.0, math.nan, math.nan, 100.0, 100.0])
    rows = tracked([0, 10, 20, 40, 80, 160], [100.0] * 6, full=full).assign(
        gradient_curvature=[1.0, 1.0, -2.0, -3.0, 1.0, 1.0],
        gradient_curvature_low=[0.9, 0.9, -2.5, -4.0, 0.9, 0.9],
        gradient_curvature_high=[1.1, 1.1, -1.5, -2.0, 1.1, 1.1],
        hessian_covariance_trace=100.0,
    )
    found = recommend(rows, quantity="full")
    assert found.course.critical_batch_size == pytest.approx(100)
    assert found.course.min_steps == pytest.approx(160 / (1 + 100 / 64))
    assert found.negative_curvature == pytest.approx(60 / 160)
    assert any("38 % of the steps" in warning for warning in found.warnings)
    zero = rows.assign(gradient_curvature_high=1.0, gradient_curvature=0.0)
    assert recommend(zero, quantity="full").course.critical_batch_size > 100  # taken in as it is


def test_noise_alone_takes_examples_and_makes_no_step():
    course = Tradeoff().after(math.inf, batch_size=32, steps=5)
    assert (course.min_steps, course.min_examples, course.root) == (0, 160, 0)
    assert course.critical_batch_size == math.inf
    near = Tradeoff().after(1e12, batch_size=32, steps=5)
    assert near.min_examples == pytest.approx(160)


# 784–256–256–10 on MNIST to a loss of 0.4: batch size, rate, noise scale by progress
ONE_RUN = [(128, 0.01, 417), (128, 0.01, 321), (128, 0.1, 122), (128, 0.1, 89)]
ONE_RUN += [(256, 0.5, 89), (256, 0.5, 53), (16, 0.1, 81), (16, 0.1, 68)]


def run_of(batch_size, scale):
    """A constant noise scale, known to a tenth, along a run that begins as that network's do."""
    rows = tracked([0, 100, 1000], [float(scale)] * 3, batch_size=batch_size)
    return rows.assign(loss=2.31, squared_gradient_norm=0.29, gradient_variance=31.0)


@pytest.mark.parametrize(("batch_size", "rate", "scale"), ONE_RUN)
def test_the_interval_holds_the_critical_batch_size_that_was_measured(batch_size, rate, scale):
    """60 (39–92) by the fronts: the interval of the noise scale alone holds it in none of these.

    They are runs that no row of the table is of, at rates from .03 times the best one.
    """
    rows = run_of(batch_size, scale).assign(loss=[2.31, 0.8, 0.4])
    found = recommend(rows, learning_rate=rate, optimizer="sgd")
    assert found.critical_batch_size.low < 60 < found.critical_batch_size.high
    assert not found.by_progress.low < 60 < found.by_progress.high
    assert any("is not known, as it is after a search" in warning for warning in found.warnings)


@pytest.mark.parametrize("with_rate", [True, False])
@pytest.mark.parametrize(
    ("quantity", "block"), [("simple", "goal"), ("simple", "batch_size"), ("full", "goal")]
)
def test_intervals_hold_what_was_left_out(quantity, block, with_rate):
    """By rows of measured.csv, none of whose goal, or batch size, was in the fit."""
    rows = measured()
    rows, held = rows[rows["quantity"] == quantity], []
    for left_out, own in rows.groupby(block):
        model = Calibration.fitted(rows[rows[block] != left_out], with_rate=with_rate)
        for row in own.to_dict("records"):
            found = model.critical_batch_size(exact(row["noise_scale"]), row["relative_decrease"])
            held.append(found.low < row["critical_batch_size"] < found.high)
    assert np.mean(held) > 0.9


def test_the_interval_is_that_of_a_regression():
    """Against the textbook: prediction of one more value, as if each block were one."""
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=6), generator.normal(size=6)
    rows = pd.DataFrame(
        {
            "task": "any",
            "goal": np.arange(6.0),
            "noise_scale": np.exp(y),
            "critical_batch_size": 1.0,
            "relative_decrease": np.exp(x),
            "rate_over_best": np.exp(x),
        }
    )
    fit = stats.linregress(x, y)
    residuals = y - fit.intercept - fit.slope * x
    at = 0.7
    spread = math.sqrt(residuals @ residuals / 4)
    error = spread * math.sqrt(1 + 1 / 6 + (at - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 4) * error
    model = Calibration.fitted(rows, with_rate=True)
    found = model.critical_batch_size(exact(10.0), math.exp(at))
    middle = math.log(10) - fit.intercept - fit.slope * at
    ends = (found.low, found.value, found.high)
    assert np.log(ends) == pytest.approx((middle - half, middle, middle + half))
    assert model.unit == pytest.approx(1)


def noise_scales(values, *, num_examples=500, spread=0.1):
    """What measure_noise gives at points along a run, as far as a recommendation reads it."""
    return [
        NoiseScale(
            squared_gradient_norm=exact(1.0),
            gradient_variance=exact(value),
            simple=Estimate(
                value=value,
                stderr=spread / 2 * value,
                low=(1 - spread) * value,
                high=(1 + spread) * value,
                num_samples=num_examples,
            ),
            population="dataset",
            num_examples=num_examples,
            population_size=2000,
            resolved=True,
            loss=exact(2.3),
        )
        for value in values
    ]


def test_a_list_of_noise_scales_is_the_table_it_makes():
    values, steps = [100.0, 300.0, 900.0], [0, 10, 100]
    of_list = recommend(noise_scales(values), steps=steps, batch_size=64)
    assert of_list.by_progress == recommend(tracked(steps, values)).by_progress
    assert of_list.population_size == 2000
    # B_crit does not depend on the unit of steps, so that equal distances need none
    even = recommend(noise_scales(values), batch_size=64)
    assert even.by_progress.value == pytest.approx(
        recommend(tracked([0, 50, 100], values)).by_progress.value
    )
    with_rate = recommend(noise_scales(values), steps=steps, batch_size=64, learning_rate=0.1)
    assert with_rate.relative_decrease == pytest.approx(0.1 * (1 + 100 / 64) / 2.3)


def test_a_rate_that_a_search_found_narrows_the_interval():
    table = tracked([0, 10, 100], [300.0] * 3)
    unknown, best, low = (
        recommend(table, rate_over_best=rate).critical_batch_size for rate in (None, 1.0, 0.1)
    )
    assert best.high / best.low < unknown.high / unknown.low
    assert low.value < best.value  # far below the best rate the noise scale comes out larger
    assert recommend(table, rate_over_best=1.0).warnings == ()
    assert recommend(table, rate_over_best=0.1).warnings


@pytest.mark.parametrize(
    ("given", "options", "says"),
    [
        (pd.DataFrame({"step": [0], "simple": [1.0]}), {}, "has no column batch_size"),
        (tracked([0, 10], [3.0, 3.0]), {"batch_size": 3}, "go with a list"),
        ([{"simple": 3.0}], {"batch_size": 3}, "a list of dict: give what measure_noise returns"),
        (noise_scales([3.0, 4.0]), {}, "give the batch_size"),
        (noise_scales([3.0, 4.0]), {"batch_size": 0}, "batch size 0"),
        (noise_scales([3.0, 4.0]), {"batch_size": 3, "steps": [1]}, "1 steps for 2 noise scales"),
    ],
)
def test_what_is_no_run_is_refused_in_one_message(given, options, says):
    with pytest.raises(SettingError, match=says):
        recommend(given, **options)


@pytest.mark.parametrize("values", [[], [5.0]])
def test_a_list_too_short_has_no_recommendation(values):
    with pytest.raises(MeasurementError, match="it takes 2 neighbours"):
        recommend(noise_scales(values), batch_size=8)
