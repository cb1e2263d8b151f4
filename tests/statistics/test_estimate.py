import json
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from noisescale.errors import SettingError
from noisescale.statistics.estimate import (
    Estimate,
    between,
    estimate_of,
    estimate_row,
    exact,
    from_log_samples,
    from_samples,
    from_stderr,
    jsonable,
    quotient,
    ratio,
    undefined,
)
from tests.helpers.markup import cells_of


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


def test_fiellers_interval_ends_where_the_difference_is_just_significant():
    covariance = np.array([[0.04, 0.01], [0.01, 0.02]])
    found = ratio(6.0, 2.0, covariance, num_samples=40, dof=39)
    t = stats.t.ppf(0.975, 39)
    for end in (found.low, found.high):
        spread = math.sqrt(np.array([1, -end]) @ covariance @ np.array([1, -end]))
        assert abs(6 - 2 * end) == pytest.approx(t * spread)
    assert found.low < found.value == 3 < found.high
    assert found.stderr == pytest.approx(math.sqrt(0.04 - 2 * 3 * 0.01 + 9 * 0.02) / 2)


@pytest.mark.parametrize("truth", [4.0, 0.6])  # well resolved, and most often not
def test_fiellers_interval_or_bound_covers_95_times_in_100(truth):
    numerator, covariance = 3.0, np.array([[0.09, 0.02], [0.02, 0.25]])
    draws = np.random.default_rng(2).multivariate_normal([numerator, truth], covariance, size=3000)
    hits, bounds = [], 0
    for x, y in draws:
        found = ratio(x, y, covariance, num_samples=10_000, dof=9_999)
        bounds += math.isnan(found.value)
        hits.append(math.isnan(found.low) or found.low <= numerator / truth <= found.high)
    assert abs(np.mean(hits) - 0.95) < 0.03
    assert bounds == 0 if truth == 4 else bounds > 1500


def test_an_unresolved_ratio_has_a_bound_and_no_value():
    covariance = np.diag([0.01, 1.0])
    for denominator in (0.5, -0.5):
        found = ratio(10.0, denominator, covariance, num_samples=9, dof=8)
        assert math.isnan(found.value)
        assert 0 < found.low < math.inf
        assert found.high == math.inf
        t = stats.t.ppf(0.975, 8)
        distance = abs(10 - max(denominator, 0) * found.low)
        assert distance == pytest.approx(t * math.sqrt(0.01 + found.low**2))
    nothing = ratio(0.01, -9.0, covariance, num_samples=9, dof=8)
    assert nothing.to_dict() == {"value": None, "stderr": None, "low": None, "high": None}


def test_an_exact_ratio_has_no_error_and_an_unknown_one_no_interval():
    assert ratio(6.0, 2.0, np.zeros((2, 2)), num_samples=5, dof=4).to_dict() == exact(3.0).to_dict()
    for x, y in np.random.default_rng(4).lognormal(size=(200, 2)):
        whole = ratio(x, y, np.zeros((2, 2)), num_samples=5, dof=4)
        assert whole.low == whole.value == whole.high == x / y
    unknown = ratio(6.0, 2.0, np.full((2, 2), np.nan), num_samples=5, dof=4)
    assert (unknown.value, math.isnan(unknown.low)) == (3.0, True)


def test_a_quotients_interval_covers():
    """Two independent geometric means of eight lognormal samples, true ratio 2, over 300 draws."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        numerator = from_log_samples(6 * np.exp(0.5 * rng.standard_normal(8)))
        denominator = from_log_samples(3 * np.exp(0.3 * rng.standard_normal(8)))
        found = quotient(numerator, denominator)
        assert found.value == pytest.approx(numerator.value / denominator.value)
        hits += found.low <= 2 <= found.high
    assert 276 <= hits <= 297


def test_a_quotient_by_an_exact_number_scales_the_interval():
    numerator = from_log_samples([1.0, 2.0, 4.0])
    found = quotient(numerator, exact(2.0))
    assert found.low == pytest.approx(numerator.low / 2)
    assert found.high == pytest.approx(numerator.high / 2)
    turned = quotient(exact(2.0), numerator)
    assert turned.low == pytest.approx(2 / numerator.high)


def test_what_is_open_stays_open():
    bounded_below = Estimate(value=5.0, stderr=1.0, low=4.0, high=math.inf, num_samples=9)
    found = quotient(bounded_below, exact(2.0))
    assert found.low == pytest.approx(2.0)
    assert math.isinf(found.high)
    assert quotient(exact(2.0), bounded_below).low == 0.0
    assert math.isnan(quotient(undefined(num_samples=3), exact(2.0)).value)


def test_a_geometric_mean_is_that_of_the_logarithms():
    found = from_log_samples([1.0, 10.0, 100.0])
    of_logs = from_samples(np.log([1.0, 10.0, 100.0]))
    assert found.value == pytest.approx(10.0)
    assert found.low == pytest.approx(math.exp(of_logs.low))
    assert math.isnan(from_log_samples([3.0]).low)


INTERVAL = Estimate(value=1234.5, stderr=20.4, low=1190.0, high=1280.0, num_samples=9)
POINT = from_stderr(7.0, math.nan, num_samples=1)
BOUND = undefined(num_samples=4, low=12.3456)
ABOVE = Estimate(value=math.nan, stderr=math.nan, low=0.0, high=5.0, num_samples=4)
UNDEFINED = undefined(num_samples=4)


@pytest.mark.parametrize(
    ("estimate", "kind", "value", "interval", "both", "stderr", "cells"),
    [
        (exact(3.0), "exact", "3", "3–3", "3", "3", ("3", "", "")),
        (
            INTERVAL,
            "interval",
            "1.23e+03",
            "1.19e+03–1.28e+03",
            "1.23e+03 (1.19e+03–1.28e+03)",
            "1.23e+03 ± 20",
            ("1,234", "20", "1,190 – 1,280"),
        ),
        (POINT, "point", "7", "–", "7", "7", ("7", "unknown", "")),
        (BOUND, "bound", "> 12.3", "12.3–inf", "> 12.3", "> 12.3", ("not resolved", "", "> 12.35")),
        (ABOVE, "bound", "< 5", "0–5", "< 5", "< 5", ("not resolved", "", "< 5")),
        (UNDEFINED, "undefined", "–", "–", "–", "–", ("not resolved", "", "")),
    ],
)
def test_an_estimate_in_words(estimate, kind, value, interval, both, stderr, cells):
    assert estimate.kind == kind
    assert estimate.text("value") == value
    assert estimate.text("interval") == interval
    assert estimate.text() == estimate.text("value (interval)") == both
    assert estimate.text("value ± stderr") == stderr
    assert estimate.cells() == cells


def test_words_take_another_number_format_and_another_word_for_nothing():
    assert INTERVAL.text(number="{:.1f}".format) == "1234.5 (1190.0–1280.0)"
    assert UNDEFINED.text("value", unknown="not found") == "not found"
    tiny = from_stderr(1.0, 1e-9, num_samples=50)
    assert tiny.cells()[1] == "1e-09"


BETWEEN = Estimate(value=math.nan, stderr=math.nan, low=10.0, high=100.0, num_samples=4)
OPEN = Estimate(value=5.0, stderr=math.nan, low=4.0, high=math.inf, num_samples=4)
SIGNED = Estimate(value=-3.0, stderr=1.0, low=-5.0, high=-1.0, num_samples=4)
LOGS = Estimate(value=1e-9, stderr=1e-10, low=8e-10, high=1.2e-9, num_samples=4)
HUGE = Estimate(value=3e11, stderr=2e10, low=1e11, high=5e11, num_samples=4)


@pytest.mark.parametrize(
    ("estimate", "printed", "formatted", "cells"),
    [
        (
            Estimate(value=71.938, stderr=3.072, low=66.388, high=78.542, num_samples=9),
            "71.9 ± 3.1 (66.4–78.5)",
            "71.938 ± 3.072 (66.388–78.542)",
            ("71.9", "3.1", "66.4 – 78.5"),
        ),
        (INTERVAL, "1,234 ± 20 (1,190–1,280)", "1234.500 ± 20.400 (1190.000–1280.000)", None),
        (exact(3.0), "3 (exact)", "3.000 (exact)", ("3", "", "")),
        (POINT, "7 (error unknown)", "7.000 (error unknown)", ("7", "unknown", "")),
        (BOUND, "> 12.35", "> 12.346", None),
        (ABOVE, "< 5", "< 5.000", None),
        (BETWEEN, "not resolved (10–100)", "not resolved (10.000–100.000)", None),
        (UNDEFINED, "undefined", "undefined", ("not resolved", "", "")),
        (OPEN, "5 (4–∞)", "5.000 (4.000–∞)", ("5", "unknown", "4 – ∞")),
        (SIGNED, "-3.0 ± 1.0 (-5.0 to -1.0)", "-3.000 ± 1.000 (-5.000 to -1.000)", None),
        (LOGS, "1e-09 ± 1e-10 (8e-10–1.2e-09)", "0.000 ± 0.000 (0.000–0.000)", None),
        (HUGE, "3e+11 ± 2e+10 (1e+11–5e+11)", None, None),
    ],
)
def test_an_estimate_is_printed_with_what_is_known_and_no_more(estimate, printed, formatted, cells):
    assert str(estimate) == f"{estimate}" == f"{estimate:s}" == printed
    assert repr(estimate) == f"Estimate({printed})"
    assert f"{estimate:.3f}" == formatted or formatted is None
    assert estimate.cells() == cells or cells is None
    assert cells_of(f"<p>{estimate._repr_html_()}</p>") == [("p", printed)]


def test_a_format_is_of_the_numbers_and_a_width_of_the_whole():
    estimate = Estimate(value=71.938, stderr=3.072, low=66.388, high=78.542, num_samples=9)
    assert f"{estimate:.2g}" == "72 ± 3.1 (66–79)"
    assert f"{estimate:30}" == f"{estimate:>30}" == "        71.9 ± 3.1 (66.4–78.5)"
    assert f"{estimate:*<25}" == "71.9 ± 3.1 (66.4–78.5)***"
    assert f"{estimate:^20.0f}" == "   72 ± 3 (66–79)   "
    assert f"{INTERVAL:,.1f}" == "1,234.5 ± 20.4 (1,190.0–1,280.0)"
    assert f"{estimate.scaled(0.01):.1%}" == "71.9% ± 3.1% (66.4%–78.5%)"
    with pytest.raises(SettingError, match=r"format 'q' of an estimate: give one of a number"):
        f"{estimate:q}"


def test_an_estimate_is_its_value_where_a_number_is_wanted():
    assert float(INTERVAL) == 1234.5
    assert isinstance(float(exact(np.float64(3))), float)
    assert math.isnan(float(BOUND))
    assert replace(INTERVAL) == INTERVAL
    assert exact(3.0) != 3.0  # it compares as before: with estimates alone


def test_a_stderr_from_an_interval_is_its_length_in_logs_or_plainly():
    found = Estimate.from_interval(2.0, 1.0, 4.0, num_samples=5)
    assert found.stderr == pytest.approx(2 * math.log(4) / 4)
    assert Estimate.from_interval(2.0, 1.0, 4.0, num_samples=5, scale="linear").stderr == 0.75
    t = stats.t.ppf(0.975, 4)
    logs = from_log_samples([1.0, 2.0, 4.0, 5.0, 9.0])
    again = Estimate.from_interval(
        logs.value, logs.low, logs.high, num_samples=5, widths=2 * float(t)
    )
    assert again.stderr == pytest.approx(logs.stderr)


@pytest.mark.parametrize(("low", "high"), [(0.0, 4.0), (1.0, math.inf)])
def test_an_open_interval_has_no_stderr_in_logs(low, high):
    assert math.isnan(Estimate.from_interval(2.0, low, high, num_samples=5).stderr)


def test_a_row_gives_back_its_estimate():
    row = {"other": 1.0, **estimate_row("loss", INTERVAL)}
    assert estimate_of(row, "loss", num_samples=9) == INTERVAL
    without = estimate_of({"loss": 2.0, "loss_low": 1.0, "loss_high": 3.0}, "loss")
    assert (without.value, without.low, without.kind) == (2.0, 1.0, "interval")
    assert math.isnan(without.stderr)


class Pair(NamedTuple):
    first: float
    second: object


@dataclass
class Record:
    values: np.ndarray
    pair: Pair


def test_anything_becomes_strict_json():
    record = {
        1: math.inf,
        "record": Record(np.array([1.0, math.nan]), Pair(math.nan, (np.int64(3), True))),
        "estimate": exact(2.0),
        "table": pd.DataFrame({"name": ["a", "b"], "value": [math.nan, 2.0]}),
        "text": "nan",
        "nothing": None,
    }
    assert json.loads(json.dumps(jsonable(record), allow_nan=False)) == {
        "1": None,
        "record": {"values": [1.0, None], "pair": {"first": None, "second": [3, True]}},
        "estimate": {"value": 2.0, "stderr": 0.0, "low": 2.0, "high": 2.0},
        "table": [{"name": "a", "value": None}, {"name": "b", "value": 2.0}],
        "text": "nan",
        "nothing": None,
    }


def test_between_two_estimates_is_half_way_and_reaches_beyond_both():
    t = stats.t.ppf(0.975, 15)
    plain = between(3.0, 2.0, 0.1, num_samples=16)
    assert (plain.value, plain.num_samples) == (2.5, 16)
    assert plain.low == pytest.approx(2 - 0.1 * t)
    assert plain.high == pytest.approx(3 + 0.1 * t)
    assert plain.stderr == pytest.approx(0.1 + 0.5 / t)
    in_logs = between(3.0, 2.0, 0.3, num_samples=16, one_sign=True)
    assert in_logs.low == pytest.approx(2 * math.exp(-0.1 * t))
    assert in_logs.high == pytest.approx(3 * math.exp(0.1 * t))
    mirrored = between(-3.0, -2.0, 0.3, num_samples=16, one_sign=True)
    assert (mirrored.low, mirrored.high) == pytest.approx((-in_logs.high, -in_logs.low))
    across = between(3.0, -2.0, 0.1, num_samples=16, one_sign=True)
    assert (across.low, across.high) == pytest.approx((-2 - 0.1 * t, 3 + 0.1 * t))
    assert between(3.0, 2.0, math.nan, num_samples=1).kind == "point"
