"""The best learning rate of a batch size, and the laws of ε(B)."""

import math

import numpy as np
import pytest

from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.learning_rate_law import best_rate, fit_learning_rate_laws

SIZES = 2.0 ** np.arange(10)
LAWS = {
    "noise": 0.5 / (1 + 30 / SIZES),
    "sqrt": 0.02 * np.sqrt(SIZES),
    "linear": 0.003 * SIZES,
}


def course(best, rates, *, width=1.0):
    """Steps that are a parabola in logs around `best`."""
    return {rate: 100 * math.exp(width * math.log(rate / best) ** 2) for rate in rates}


@pytest.mark.parametrize("name", list(LAWS))
def test_the_right_law_wins_and_is_recovered(name):
    noise = 0.05 * np.sin(5 * np.arange(10))
    laws = fit_learning_rate_laws(SIZES, LAWS[name] * np.exp(noise))
    found = next(law for law in laws if law.name == name)
    # laws of two parameters contain those of one: with B_c beyond all batch sizes, or that power
    wider = {"linear": {"noise", "capped", "power"}, "sqrt": {"power"}}
    assert laws[0].name in {name} | wider.get(name, set())
    assert found.held_out_error < 0.1
    for size, rate in zip(SIZES, LAWS[name], strict=True):
        assert found.rate(size) == pytest.approx(rate, rel=0.1)
    if name == "noise":
        assert found.batch_size.low < 30 < found.batch_size.high
        assert found.scale == pytest.approx(0.5, rel=0.1)
    else:
        assert found.batch_size is None


def test_held_out_error_is_that_of_refits():
    rates = LAWS["noise"] * np.exp(0.3 * np.cos(3 * np.arange(10)))
    (law,) = [law for law in fit_learning_rate_laws(SIZES, rates) if law.name == "sqrt"]
    errors = []
    for index in range(10):
        kept = np.arange(10) != index
        scale = np.exp(np.mean(np.log(rates[kept] / np.sqrt(SIZES[kept]))))
        errors.append(math.log(rates[index] / (scale * math.sqrt(SIZES[index]))))
    assert law.held_out_error == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=1e-9)


def test_laws_take_four_batch_sizes():
    with pytest.raises(MeasurementError, match="3 batch sizes"):
        fit_learning_rate_laws(SIZES[:3], SIZES[:3])


def test_the_vertex_is_found_between_the_rates_tried():
    rates = [0.05, 0.1, 0.2, 0.4]
    found = best_rate([course(0.13, rates), course(0.13, rates, width=0.5)])
    assert found.value == pytest.approx(0.13, rel=1e-6)
    assert found.low == pytest.approx(0.13, rel=1e-6)
    assert found.num_samples == 2


def test_seeds_give_the_interval():
    rates = [0.05, 0.1, 0.2, 0.4]
    found = best_rate([course(best, rates) for best in (0.11, 0.13, 0.16)])
    assert found.low < 0.13 < found.high
    assert found.value == pytest.approx((0.11 * 0.13 * 0.16) ** (1 / 3), rel=1e-6)


def test_one_seed_is_known_to_lie_between_its_neighbours():
    found = best_rate([course(0.13, [0.05, 0.1, 0.2])])
    assert (found.low, found.high) == (pytest.approx(0.05), pytest.approx(0.2))
    assert math.isnan(found.stderr)


def test_a_neighbour_that_diverged_leaves_the_grid_rate():
    found = best_rate([{0.1: 20.0, 0.2: 10.0, 0.4: math.inf}])
    assert [found.value, found.low, found.high] == pytest.approx([0.2, 0.1, 0.4])


def test_seeds_that_agree_on_a_grid_rate_are_no_more_certain_than_the_grid():
    found = best_rate([{0.1: 20.0, 0.2: 10.0, 0.4: math.inf}] * 3)
    assert [found.value, found.low, found.high] == pytest.approx([0.2, 0.1, 0.4])
    assert found.num_samples == 3


@pytest.mark.parametrize(
    "steps", [{}, {0.1: 5.0}, {0.1: 5.0, 0.2: 6.0}, {0.1: math.inf, 0.2: math.inf, 0.4: math.inf}]
)
def test_a_best_rate_at_an_end_is_none(steps):
    found = best_rate([steps])
    assert math.isnan(found.value)
    assert found.num_samples == 0
