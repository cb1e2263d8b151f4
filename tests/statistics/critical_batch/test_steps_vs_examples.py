"""Steps against examples, against brute force over a course of known noise scales."""

import math

import numpy as np
import pytest

from noisescale.statistics.critical_batch.curves.steps_vs_examples import Tradeoff

SCALES = np.geomspace(20, 2000, 50)  # along 50 noiseless steps


def course(batch_sizes):
    """The course as a run at these sizes sees it, each noiseless step taking 1 + 𝓑/B updates."""
    found = Tradeoff()
    for scale, size in zip(SCALES, batch_sizes, strict=True):
        found = found.after(scale, batch_size=size, steps=1 + scale / size)
    return found


def spent(batch_sizes):
    """Updates and examples that the course takes at these batch sizes, by definition."""
    updates = 1 + SCALES / batch_sizes
    return updates.sum(), (updates * batch_sizes).sum()


@pytest.mark.parametrize("sizes", [np.full(50, 64.0), np.sqrt(300 * SCALES), SCALES[::-1]])
def test_the_course_does_not_depend_on_the_batch_sizes_it_was_seen_at(sizes):
    found = course(sizes)
    assert found.min_steps == pytest.approx(50, rel=1e-12)
    assert found.min_examples == pytest.approx(SCALES.sum(), rel=1e-12)
    assert found.root == pytest.approx(np.sqrt(SCALES).sum(), rel=1e-12)


@pytest.mark.parametrize("batch_size", [1, 300, 5000])
def test_a_fixed_batch_size_takes_what_is_predicted(batch_size):
    found = course(np.full(50, 64.0))
    steps, examples = spent(np.full(50, float(batch_size)))
    predicted = found.fixed(batch_size)
    assert predicted == pytest.approx(
        (steps / found.min_steps, examples / found.min_examples), rel=1e-12
    )
    assert (predicted[0] - 1) * (predicted[1] - 1) == pytest.approx(1)
    assert found.fixed(found.critical_batch_size) == pytest.approx((2, 2))


@pytest.mark.parametrize("exchange_rate", [10.0, 300.0, 1e4])
def test_an_adaptive_one_takes_what_is_predicted_and_no_other_less(exchange_rate):
    found = course(np.full(50, 64.0))
    best = np.sqrt(exchange_rate * SCALES)
    steps, examples = spent(best)
    predicted = found.adaptive(exchange_rate)
    assert predicted == pytest.approx(
        (steps / found.min_steps, examples / found.min_examples), rel=1e-12
    )
    assert (predicted[0] - 1) * (predicted[1] - 1) == pytest.approx(found.gain)
    generator = np.random.default_rng(0)
    for _ in range(100):
        other_steps, other_examples = spent(best * generator.lognormal(0, 0.3, 50))
        assert examples + exchange_rate * steps < other_examples + exchange_rate * other_steps
    sizes = np.geomspace(1, 1e5, 20_001)  # the fixed one that takes as many examples
    fixed = np.array([spent(np.full(50, size)) for size in sizes])
    steps_there = np.interp(examples, fixed[:, 1], fixed[:, 0])
    assert found.steps_saved(exchange_rate) == pytest.approx(1 - steps / steps_there, rel=1e-4)


def test_at_the_natural_exchange_rate_both_are_one_and_the_root_of_the_gain():
    found = course(np.full(50, 64.0))
    assert found.adaptive(found.critical_batch_size) == pytest.approx(
        [1 + math.sqrt(found.gain)] * 2
    )
    assert found.gain < 1


def test_a_constant_noise_scale_leaves_nothing_to_gain():
    found = Tradeoff().after(100.0, batch_size=10, steps=70).after(100.0, batch_size=500, steps=3)
    assert found.gain == pytest.approx(1)
    assert found.steps_saved(50.0) == pytest.approx(0, abs=1e-12)


def test_savings_do_not_cancel_at_extreme_exchange_rates():
    found = course(np.full(50, 64.0))
    # (1 + x)/(1 + y) with x y = 1/γ: as r falls, the ratio of steps goes to γ
    assert found.steps_saved(1e-30) == pytest.approx(1 - found.gain, rel=1e-6)


def test_a_course_without_progress_or_without_noise_has_no_ratios_that_are_numbers():
    nothing = Tradeoff()
    assert math.isnan(nothing.gain)
    assert nothing.fixed(64) == (math.inf, 1.0)
    assert all(map(math.isnan, nothing.adaptive(300)))
    noiseless = nothing.after(0.0, batch_size=32, steps=10)
    assert noiseless.fixed(64) == (1.0, math.inf)
    assert math.isnan(noiseless.gain)
    assert math.isnan(noiseless.steps_saved(300))
