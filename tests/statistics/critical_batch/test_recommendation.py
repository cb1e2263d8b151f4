"""Recommended batch sizes from tables whose answer is known."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.recommendation import recommend


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
    assert [found.batch_size(aim) for aim in ("fewest examples", "balanced", "fewest steps")] == [
        30,
        300,
        2000,
    ]
    assert found.course.gain == pytest.approx(1)
    record = found.to_dict()
    assert [(row["steps"], row["examples"]) for row in record["sizes"]] == [
        pytest.approx((11, 1.1)),
        pytest.approx((2, 2)),
        pytest.approx((1.15, 1 + 2000 / 300)),  # all 2,000 training examples are the most
    ]
    json.dumps(record, allow_nan=False)


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


def test_the_full_noise_scale_is_preferred_where_it_covers_the_run():
    rows = tracked([0, 10, 20, 100], [100.0] * 4, full=[math.nan, 50.0, 50.0, 50.0])
    found = recommend(rows)
    assert found.quantity == "full"
    assert found.course.critical_batch_size == pytest.approx(50)
    assert (found.num_measurements, found.num_unresolved) == (4, 1)
    assert found.covered == pytest.approx(0.9)
    for spoilt in (math.nan, -5.0):
        rows.loc[2, "full"] = spoilt  # two stretches, and nine tenths of the run
        assert recommend(rows).quantity == "simple"


def test_a_bound_below_zero_is_one_of_nothing():
    rows = tracked([0, 10], [100.0, 100.0])
    rows.loc[0, "simple_low"] = -50.0
    found = recommend(rows)
    assert 0 < found.low.critical_batch_size < 50


@pytest.mark.parametrize("spoil", [{"step": [0, 0]}, {"step": [10, 0]}, {"batch_size": [0, 64]}])
def test_a_table_that_makes_no_sense_is_refused(spoil):
    with pytest.raises(MeasurementError, match="do not increase, or a batch size"):
        recommend(tracked([0, 10], [100.0] * 2).assign(**spoil))


def test_an_open_interval_stays_open():
    rows = tracked([0, 10], [100.0, 200.0])
    rows.loc[1, "simple_high"] = math.inf
    record = recommend(rows).to_dict()
    assert record["critical_batch_size"]["high"] is None
    json.dumps(record, allow_nan=False)


def test_nothing_is_recommended_from_one_measurement():
    with pytest.raises(MeasurementError, match="1 of 3 measurements"):
        recommend(tracked([0, 10, 20], [math.nan, 100.0, math.nan]))
