"""The best learning rate of a batch size, and the laws of ε(B)."""

import math

import numpy as np
import pytest
from scipy import optimize

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.critical_batch.learning_rate_law import best_rate, fit_learning_rate_laws

SIZES = 2.0 ** np.arange(10)
LAWS = {
    "noise": 0.5 / (1 + 30 / SIZES),
    "sqrt": 0.02 * np.sqrt(SIZES),
    "linear": 0.003 * SIZES,
    "capped": np.minimum(0.01 * SIZES, 0.4),
    "power": 0.02 * SIZES**0.7,
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
    if name in ("noise", "capped"):
        bend, scale = {"noise": (30, 0.5), "capped": (40, 0.4)}[name]
        assert found.batch_size.low < bend < found.batch_size.high
        assert found.bend == pytest.approx(bend, rel=0.25)
        assert found.scale == pytest.approx(scale, rel=0.1)
    else:
        assert found.batch_size is None
        assert found.power == pytest.approx(
            {"sqrt": 0.5, "linear": 1, "power": 0.7}[name], abs=0.02
        )


def test_held_out_error_is_that_of_refits():
    rates = LAWS["noise"] * np.exp(0.3 * np.cos(3 * np.arange(10)))
    (law,) = [law for law in fit_learning_rate_laws(SIZES, rates) if law.name == "sqrt"]
    errors = []
    for index in range(10):
        kept = np.arange(10) != index
        scale = np.exp(np.mean(np.log(rates[kept] / np.sqrt(SIZES[kept]))))
        errors.append(math.log(rates[index] / (scale * math.sqrt(SIZES[index]))))
    assert law.held_out_error == pytest.approx(math.sqrt(np.mean(np.square(errors))), rel=1e-9)


def test_the_law_of_two_parameters_is_that_of_least_squares():
    """The peer: SciPy's weighted least squares in logs; errors so large that no scatter is left."""
    rng = np.random.default_rng(0)
    errors = 0.3 * rng.uniform(0.5, 3, 10)
    rates = LAWS["noise"] * np.exp(0.2 * errors * rng.standard_normal(10))
    laws = {law.name: law for law in fit_learning_rate_laws(SIZES, rates, log_errors=errors)}
    (level, bend), _ = optimize.curve_fit(
        lambda x, level, bend: level - np.logaddexp(0, bend - np.log(x)),
        SIZES,
        np.log(rates),
        p0=[-1, 3],
        sigma=errors,
    )
    assert laws["noise"].scale == pytest.approx(math.exp(level), rel=1e-3)
    assert laws["noise"].bend == pytest.approx(math.exp(bend), rel=1e-3)
    slope = np.polyfit(np.log(SIZES), np.log(rates), 1, w=1 / errors)[0]
    assert laws["power"].power == pytest.approx(slope, rel=1e-6)


def test_a_rate_that_is_known_badly_weighs_little():
    rates = LAWS["noise"].copy()
    rates[3] *= 5
    errors = np.where(np.arange(10) == 3, 2.0, 0.02)
    weighted, equal = (
        next(
            law
            for law in fit_learning_rate_laws(SIZES, rates, log_errors=given)
            if law.name == "noise"
        )
        for given in (errors, None)
    )
    assert weighted.bend == pytest.approx(30, rel=0.01)
    assert abs(equal.bend / 30 - 1) > 0.2
    unknown = np.where(np.arange(10) == 3, np.nan, errors)  # counts as the largest known
    assert fit_learning_rate_laws(SIZES, rates, log_errors=unknown)


def test_rates_on_which_seeds_agree_by_chance_do_not_decide_alone():
    """Two errors far smaller than what the rates lie off any law weigh no more than the others."""
    off = 0.3 * np.cos(3 * np.arange(10))
    errors = np.full(10, 0.1)
    errors[[2, 7]] = 1e-6
    rates = LAWS["noise"] * np.exp(off)
    given, equal = (
        next(
            law
            for law in fit_learning_rate_laws(SIZES, rates, log_errors=some)
            if law.name == "noise"
        )
        for some in (errors, None)
    )
    assert given.bend == pytest.approx(equal.bend, rel=0.1)


def test_laws_take_four_batch_sizes():
    with pytest.raises(MeasurementError, match="3 batch sizes"):
        fit_learning_rate_laws(SIZES[:3], SIZES[:3])


@pytest.mark.parametrize("rates", [[0.05, 0.1, 0.2, 0.4], [0.02, 0.1, 0.3, 0.4]])
def test_the_vertex_is_found_between_the_rates_tried(rates):
    found = best_rate([course(0.13, rates), course(0.13, rates, width=0.5)])
    assert found.value == pytest.approx(0.13, rel=1e-6)
    assert found.low == pytest.approx(0.13, rel=1e-6)
    assert found.num_samples == 2


def test_of_equally_fast_rates_one_at_an_end_is_no_bound():
    tied = {0.1: 10.0, 0.2: 10.0, 0.4: 25.0}
    found = best_rate([tied])
    assert found.value == pytest.approx(best_rate([tied | {0.1: 10.001}]).value, rel=1e-3)
    assert 0.1 < found.value < 0.2
    mirrored = {1 / rate: steps for rate, steps in tied.items()}
    assert best_rate([mirrored]).value == pytest.approx(1 / found.value)
    flat = {0.1: 300.0, 0.2: 300.0, 0.4: 300.0, 0.8: 700.0}
    assert best_rate([flat]).value == 0.2


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


def test_seeds_whose_best_rate_is_at_an_end_are_bounds():
    """Left out, as they once were, they would leave the mean of those that prefer smaller rates."""
    rates = [0.05, 0.1, 0.2, 0.4]
    falling = {rate: 1 / rate for rate in rates}
    inside = [course(best, rates) for best in (0.09, 0.12, 0.15)]
    found = best_rate([*inside, falling])
    assert found.value == pytest.approx(math.sqrt(0.12 * 0.15), rel=1e-6)
    assert found.low == pytest.approx(0.09, rel=1e-6)
    assert math.isinf(found.high)
    assert found.num_samples == 4
    assert math.isnan(best_rate([inside[0], falling, falling]).value)


@pytest.mark.parametrize(
    "steps", [{}, {0.1: 5.0}, {0.1: 5.0, 0.2: 6.0}, {0.1: math.inf, 0.2: math.inf, 0.4: math.inf}]
)
def test_a_best_rate_at_an_end_is_none(steps):
    found = best_rate([steps])
    assert math.isnan(found.value)
    assert found.num_samples == 0


@pytest.mark.parametrize(
    "seed", [{0.0: 3, 1.0: 2}, {-1.0: 3, 1.0: 2}, {math.inf: 3, 1.0: 2}, {0.1: 0, 1.0: 2}]
)
def test_a_rate_and_its_steps_are_above_0(seed):
    with pytest.raises(SettingError, match="give numbers above 0"):
        best_rate([course(0.5, [0.25, 0.5, 1.0]), seed])


@pytest.mark.parametrize(
    ("sizes", "rates", "message"),
    [
        ([1, 4, 16, 64], [0.1, 0.2, math.nan, 0.4], "give finite numbers above 0"),
        ([0, 4, 16, 64], [0.1, 0.2, 0.3, 0.4], "give finite numbers above 0"),
        ([1, 4, 16, 64], [0.1, 0.2, 0.3, 0.0], "give finite numbers above 0"),
        ([1, 4, 16, 64], [0.1, 0.2, 0.3], r"shapes \(3,\), \(4,\): give as many of each"),
        ([8, 8, 8, 8], [0.1, 0.2, 0.3, 0.4], "1 batch sizes"),
    ],
)
def test_what_no_law_can_be_fitted_to_is_refused(sizes, rates, message):
    with pytest.raises((SettingError, MeasurementError), match=message):
        fit_learning_rate_laws(sizes, rates, log_errors=[0.1] * 4)
