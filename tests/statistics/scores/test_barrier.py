import math

import numpy as np
import pytest

from noisescale.statistics.scores.barrier import line_barrier

ALPHAS = np.array([-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5])


def test_it_is_a_plain_loop_over_the_points_between():
    rng = np.random.default_rng(0)
    losses = rng.gamma(2, size=(7, 50)) + np.array([9, 0, 1, 3, 0, 1, 9])[:, None]
    rises = {a: losses[k] - (1 - a) * losses[1] - a * losses[5] for k, a in enumerate(ALPHAS)}
    best = max((0.25, 0.5, 0.75), key=lambda alpha: rises[alpha].mean())  # the ends do not count
    height, alpha = line_barrier(losses, ALPHAS)
    assert alpha == best == 0.5
    assert height.value == pytest.approx(rises[best].mean())
    assert height.stderr == pytest.approx(rises[best].std(ddof=1) / math.sqrt(50))


def test_what_examples_have_in_common_along_the_line_is_no_error():
    hard = np.random.default_rng(1).gamma(1, size=400)
    curve = 4 * ALPHAS * (1 - ALPHAS)  # 1 at α = ½
    height, alpha = line_barrier(hard + curve[:, None], ALPHAS)
    assert (height.value, alpha) == (pytest.approx(1), 0.5)
    assert height.stderr < 1e-12


def test_of_a_convex_line_it_is_below_zero():
    height, alpha = line_barrier(np.square(ALPHAS[:, None] - np.linspace(0, 1, 9)), ALPHAS)
    assert height.value == pytest.approx(-0.25 * 0.75)
    assert alpha in (0.25, 0.75)


def test_weights_are_those_of_the_mean():
    rng = np.random.default_rng(2)
    losses, counts = rng.gamma(2, size=(7, 40)), rng.integers(1, 4, size=40)
    repeated = np.repeat(losses, counts, axis=1)
    height, alpha = line_barrier(losses, ALPHAS, weights=counts)
    assert height.value == pytest.approx(line_barrier(repeated, ALPHAS).height.value)
    assert alpha == line_barrier(repeated, ALPHAS).alpha


def test_intervals_hold_the_truth():
    rng = np.random.default_rng(3)
    num_draws, held = 400, 0
    rise = 4 * ALPHAS * (1 - ALPHAS)
    for _ in range(num_draws):
        own = rng.exponential(size=200)  # each example's own height, 1 on average
        noise = 0.2 * rng.standard_normal((7, 200))
        height = line_barrier(rise[:, None] * own + noise, ALPHAS).height
        held += height.low <= 1 <= height.high
    assert abs(held / num_draws - 0.95) < 4 * math.sqrt(0.95 * 0.05 / num_draws)


def test_a_loss_that_is_not_finite_between_the_ends_has_no_height():
    losses = np.ones((7, 5))
    losses[0] = np.inf  # beyond the ends
    assert line_barrier(losses, ALPHAS).height.kind == "exact"
    losses[3, 2] = np.inf
    height, alpha = line_barrier(losses, ALPHAS)
    assert (height.kind, alpha) == ("undefined", 0.5)
