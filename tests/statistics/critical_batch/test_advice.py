"""Ten lines of advice: what they say, and that no number is cut at any width."""

import json
import math
import re

import pytest

from noisescale.statistics.critical_batch.advice import (
    Advice,
    aimed_sizes,
    differ,
    in_use_text,
    rate_between,
    rate_law,
)
from noisescale.statistics.critical_batch.learning_rate_law import LearningRateLaw
from noisescale.statistics.estimate import Estimate


def between(value, low, high):
    return Estimate.from_interval(value, low, high, num_samples=5)


CRITICAL = between(200.0, 50.0, 800.0)


def advice(critical=CRITICAL, *, in_use=128, population=None, optimizer="sgd"):
    law = rate_law(optimizer, batch_size=64, learning_rate=0.1, critical=critical.value)
    return Advice(
        heading="B_crit ≈ 1,234 (123–12,345), by the noise scale of a run at B = 1,024, lr 0.0032:",
        sizes=aimed_sizes(critical, population_size=population, rate=law.rate, measured_at=[64.0]),
        in_use=in_use_text(in_use, critical),
        worth=(
            "Sizes: calibrated on MNIST. Rates: tried at B = 1,024, else ∝ 1/(1+B_crit/B).",
            "A second sentence, which is left out where there is no room for it any more.",
        ),
        cost="Cost: 4 min 35 s of 5 min: 12 rates, and 123,456 steps to loss 0.256.",
        firmer="noisescale critical-batch --problem folder/my_model.py:make --optimizer adamw"
        " --bs 8 --bs 16 --bs 32 --bs 64 --bs 128 --bs 256",
    )


def test_the_sizes_are_a_tenth_of_the_critical_one_itself_and_ten_times_it():
    rows = advice().sizes
    assert [row.aim for row in rows] == ["fewest examples", "balanced", "fewest steps"]
    assert [(row.low, row.batch_size, row.high) for row in rows] == [
        (5, 20, 80),
        (50, 200, 800),
        (500, 2000, 8000),
    ]
    assert [row.worth for row in rows] == ["measured near it"] * 2 + ["extrapolated ×31"]


def test_no_batch_holds_less_than_one_example_or_more_than_all():
    rows = advice(between(4.0, 1.0, 90.0), population=30).sizes
    assert [(row.low, row.batch_size, row.high) for row in rows] == [
        (1, 1, 9),
        (1, 4, 30),
        (10, 30, 30),
    ]
    assert rows[0].worth == "bound: one example"
    assert rows[2].worth == "bound: all examples"


def test_an_open_interval_has_no_upper_end():
    rows = advice(Estimate.from_interval(200.0, 50.0, math.inf, num_samples=5)).sizes
    assert [row.high for row in rows] == [None] * 3
    assert "5 or more" in "\n".join(advice(between(200.0, 50.0, math.inf)).block())


def test_the_rate_of_sgd_follows_the_law_and_that_of_adam_the_root():
    sgd = [row.learning_rate for row in advice().sizes]
    # ε(B) = 0.1·(1 + 200/64)/(1 + 200/B)
    assert sgd == pytest.approx(
        [0.1 * 4.125 / (1 + 200 / size) for size in (20, 200, 2000)], rel=0.05
    )
    adam = [row.learning_rate for row in advice(optimizer="adam").sizes]
    assert adam == pytest.approx([0.1 * math.sqrt(size / 64) for size in (20, 200, 2000)], rel=0.05)
    law = rate_law("sgd", batch_size=64, learning_rate=0.1, critical=200.0)
    assert law.rate(64) == pytest.approx(0.1)


def test_what_is_in_use_is_held_against_the_least():
    text = in_use_text(120, between(200.0, 100.0, 600.0))
    assert text == ("You use 120: 1.6 times the least examples (1.2–2.2), 2.7 times the steps.")


def test_measured_rates_are_followed_between_and_by_the_law_beyond():
    law = LearningRateLaw(
        name="power", scale=0.01, bend=math.nan, power=1.0, batch_size=None, held_out_error=0.1
    )
    rate = rate_between([10.0, 1000.0], [0.1, 1.0], law)
    assert rate(100) == pytest.approx(math.sqrt(0.1))
    assert rate(1) == pytest.approx(0.01)  # a tenth of the nearest, as the law says
    assert rate_between([10.0, 1000.0], [0.1, 1.0], None)(1) == pytest.approx(0.1)


def test_two_values_differ_where_they_lead_to_other_choices():
    assert not differ(between(50.0, 30.0, 90.0), between(80.0, 40.0, 160.0))
    assert differ(between(50.0, 30.0, 90.0), between(170.0, 40.0, 600.0))  # more than a factor of 3
    assert differ(between(50.0, 45.0, 55.0), between(100.0, 90.0, 110.0))  # outside each other
    assert not differ(between(50.0, 49.0, 51.0), between(53.0, 52.0, 54.0))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("critical", [CRITICAL, between(12_345.0, 1_234.0, 123_456.0)])
def test_no_line_is_wider_and_no_number_is_lost(width, critical):
    given = advice(critical, in_use=1024)
    lines = given.block(width)
    commands = [line for line in lines if "noisescale critical-batch" in line or "--bs" in line]
    assert all(len(line) <= width for line in lines if line not in commands)
    text = " ".join(lines)
    assert "…" not in text
    for row in given.sizes:
        assert {f"{row.batch_size:,}", f"{row.low:,}", f"{row.high:,}"} <= set(
            re.findall(r"[\d,]*\d", text)
        )
        assert f"{row.learning_rate:g}" in text
    if width >= 80:
        assert len(lines) <= 10


def test_a_command_of_two_lines_is_one_to_a_shell():
    first, second = advice().block()[-2:]
    assert first.startswith("Firmer: noisescale critical-batch")
    joined = f"{first}\n{second}".replace("\\\n ", "")
    assert joined.split() == f"Firmer: {advice().firmer}".split()


def test_what_is_not_resolved_says_why_and_what_would():
    given = Advice(heading="B_crit:", reason="too few examples; give more", cost="Cost: 3 s.")
    assert given.block() == ["B_crit:", "Not resolved: too few examples; give more.", "Cost: 3 s."]


def test_it_comes_back_from_json():
    given = advice()
    text = json.dumps(given.to_dict(), allow_nan=False)
    assert Advice.from_dict(json.loads(text)) == given
    entry = given.sizes[0].to_dict()
    assert list(entry) == ["aim", "batch_size", "low", "high", "learning_rate"]
