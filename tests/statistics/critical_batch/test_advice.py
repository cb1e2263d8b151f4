"""Ten lines of advice: what they say, and that no number is cut at any width."""

import json
import math
import re

import pytest

from noisescale.statistics.critical_batch.advice import (
    Advice,
    AimedSize,
    ScalingRules,
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


def of_adam(critical=CRITICAL, *, optimizer="adamw", weight_decay=0.1, units=64.0):
    """Advice for an adaptive optimizer, with all that it can have."""
    rules = ScalingRules(
        optimizer=optimizer,
        batch_size=64,
        learning_rate=0.003,
        critical=critical.value,
        beta2=0.95,
        weight_decay=weight_decay,
    )
    return Advice(
        heading="B_crit ≈ 1,234 (123–12,345), by the noise of a run at B = 1,024, lr 0.0032:",
        sizes=aimed_sizes(
            critical,
            population_size=None,
            rate=rules.rate_at,
            measured_at=[64.0],
            beta2=rules.beta2_at,
            weight_decay=rules.weight_decay_at,
        ),
        in_use=in_use_text(1024, critical),
        rules=rules.rules,
        worth=("Plain noise: adamw's B_crit may lie far above (2505.23971); interval: SGD's.",),
        cost="Cost: 4 min 35 s of 5 min: 12 rates, and 123,456 steps to loss 0.256.",
        firmer="noisescale critical-batch --problem folder/my_model.py:make --optimizer adamw"
        " --bs 8 --bs 16 --bs 32 --bs 64 --bs 128 --bs 256",
        units_per_example=units,
    )


def test_what_goes_with_a_batch_size_of_an_adaptive_optimizer():
    small, middle, large = of_adam().sizes
    # up to B_crit = 200 with the root of B/64, and no more beyond
    roots = [math.sqrt(size / 64) for size in (20, 200, 200)]
    rates = [row.learning_rate for row in (small, middle, large)]
    assert rates == pytest.approx([0.003 * root for root in roots], rel=0.05)
    decays = [row.weight_decay for row in (small, middle, large)]
    assert decays == pytest.approx([0.1 * root for root in roots], rel=0.05)
    # the weight of a gradient of n examples ago, β₂^(n/B), is the same at every batch size
    for row in (small, middle, large):
        assert math.log(row.beta2) / row.batch_size == pytest.approx(math.log(0.95) / 64, rel=0.06)
    assert all(row.weight_decay is None for row in of_adam(optimizer="adam").sizes)
    assert all(row.weight_decay is None for row in of_adam(weight_decay=0.0).sizes)
    sgd = ScalingRules(optimizer="sgd", batch_size=64, learning_rate=0.1, critical=200.0)
    assert sgd.rate_at(20) == rate_law(
        "sgd", batch_size=64, learning_rate=0.1, critical=200.0
    ).rate(20)
    assert (sgd.beta2_at(20), sgd.weight_decay_at(20), sgd.rules) == (None, None, ())


def test_a_change_from_above_the_critical_batch_size_follows_the_root_below_it():
    rules = ScalingRules(optimizer="adam", batch_size=800, learning_rate=0.01, critical=200.0)
    assert rules.rate_at(400) == rules.rate_at(200) == 0.01
    assert rules.rate_at(50) == pytest.approx(0.005)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_rate_goes_beyond_the_largest_that_trained(optimizer):
    """A law of the noise knows nothing of the curvature: it told 3.6 where 1 diverges."""
    known = {"optimizer": optimizer, "batch_size": 64, "learning_rate": 0.3, "critical": 700.0}
    rules = ScalingRules(**known, largest_rate=0.6, weight_decay=0.1)
    assert [rules.rate_at(size) for size in (700, 7000)] == [0.6, 0.6]
    assert rules.rate_at(64) == pytest.approx(0.3)
    assert [rules.is_bound_at(size) for size in (16, 64, 700)] == [False, False, True]
    if rules.decays:
        assert rules.weight_decay_at(700) == pytest.approx(0.2)
    assert ScalingRules(**known).rate_at(7000) > 0.9


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("units", [None, 64.0, 4096.0])
@pytest.mark.parametrize("critical", [CRITICAL, between(12_345.0, 1_234.0, 123_456.0)])
def test_the_settings_of_adam_stand_in_the_block(width, units, critical):
    given = of_adam(critical, units=units)
    lines = given.block(width)
    text = " ".join(lines)
    commands = [line for line in lines if "noisescale critical-batch" in line or "--bs" in line]
    assert all(len(line) <= width for line in lines if line not in commands)
    for row in given.sizes:
        for value in (row.batch_size, row.learning_rate, row.beta2, row.weight_decay):
            assert f"{value:,}" in text or f"{value:.12g}" in text
        if units is not None:
            assert f"{row.batch_size * units:,.0f}" in text
    assert "lr ∝ √B 2205.10287, β₂^(B'/B) 2507.07101, decay 2405.13698" in text
    if width >= 80:
        assert len(lines) <= 10
        assert "may lie far above" in text
    assert Advice.from_dict(json.loads(json.dumps(given.to_dict()))) == given


def test_what_is_exact_says_so():
    exact = between(200.0, 200.0, 200.0)
    rows = aimed_sizes(exact, population_size=500, rate=None)
    assert [row.cells()[2] for row in rows] == 3 * ["exact"]
    close = aimed_sizes(between(2.0, 1.9, 2.1), population_size=500, rate=None)
    assert [row.cells()[2] for row in close] == ["1–1", "2–2", "19–21"]  # whole numbers, no errors
    assert in_use_text(100, exact) == (
        "You use 100: 1.5 times the least examples, 3 times the steps."
    )


def test_a_size_of_an_earlier_release_is_read():
    stored = {"aim": "balanced", "batch_size": 8, "low": 4, "high": None, "learning_rate": 0.1}
    assert AimedSize(**stored).to_dict() == stored
