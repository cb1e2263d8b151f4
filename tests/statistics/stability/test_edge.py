"""Labels by their stated rule, the edge against thresholds of a known distribution, scores."""

import math
from dataclasses import replace

import numpy as np
import pytest

from noisescale.errors import SettingError
from noisescale.statistics.stability.edge import (
    Threshold,
    Trajectory,
    edge_of,
    fit_edge,
    monotone,
    score_prediction,
    seed_threshold,
)

GOOD = Trajectory(
    start=2.3, largest=2.3, final=0.2, chance=2.3, largest_share=0.15, diverged_at_step=None
)


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({}, "converged"),
        ({"final": 1.2}, "slow"),
        ({"final": 2.29, "largest_share": 0.95}, "slow"),  # has hardly begun
        ({"largest": 5.0}, "catapult"),
        ({"largest": 5.0, "final": 2.1}, "slow"),
        ({"largest": 5.0, "final": 2.4}, "slow"),
        ({"largest": 5.0, "final": 2.4, "largest_share": 0.95}, "dead"),
        ({"start": 40.0, "largest": 40.0, "final": 2.3, "largest_share": 1.0}, "dead"),
        ({"largest": 1e6, "final": 24.0}, "diverged"),
        ({"largest": 5.0, "final": 4.7}, "diverged"),  # stayed above twice its start
        ({"largest": 5.0, "final": 4.5, "largest_share": 1.0}, "dead"),  # its biases shaken
        (
            {"largest": 24.0, "final": 2.3, "largest_share": 1.0},
            "diverged",
        ),  # blown up, then one class
        ({"largest": 22.0, "final": 2.3, "largest_share": 1.0}, "dead"),
        ({"largest": 1e6, "final": 2.1}, "slow"),  # come back, if not far
        ({"largest": 1e6, "final": 0.2}, "catapult"),
        ({"start": 40.0, "largest": 399.0, "final": 2.3, "largest_share": 1.0}, "dead"),
        ({"start": 40.0, "largest": 401.0, "final": 2.3, "largest_share": 1.0}, "diverged"),
        ({"largest": math.inf, "final": math.inf}, "diverged"),
        ({"final": math.nan}, "diverged"),
        ({"diverged_at_step": 3}, "diverged"),
        ({"start": 1e-4, "largest": 1.5e-4, "final": 1.2e-4}, "converged"),  # stayed at its minimum
        ({"start": 1e-4, "largest": 1.0, "final": 0.5e-4}, "catapult"),
        ({"start": 1e-4, "largest": 1.0, "final": 0.5}, "slow"),
    ],
)
def test_labels(changes, label):
    assert replace(GOOD, **changes).label == label


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"largest": 22.9}, False),
        ({"largest": 23.1}, True),
        ({"largest": math.inf}, True),
        ({"largest": math.nan}, True),
        ({"diverged_at_step": 1}, True),
    ],
)
def test_leaving_a_minimum_is_a_tenfold_loss(changes, left):
    assert replace(GOOD, **changes).left is left


@pytest.mark.parametrize(
    ("outcomes", "low", "high"),
    [
        ({1: False, 2: False, 4: True, 8: True}, 2, 4),
        ({1: False, 2: False}, 2, math.inf),
        ({1: True, 2: True}, 0, 1),
        (
            {1: False, 2: True, 4: False, 8: True},
            1,
            8,
        ),  # not monotone: one contradicts either split
        ({1: False, 2: True, 4: True, 8: False, 16: True}, 1, 2),  # one that came back by chance
        ({1: False, 2: True, 4: True, 8: False}, 1, 2),
        ({1: False, 2: True, 4: False}, 1, math.inf),
        ({1: True, 2: False, 4: True}, 0, 4),
        ({}, 0, math.inf),
    ],
)
def test_one_seeds_threshold(outcomes, low, high):
    assert seed_threshold(outcomes.items()) == Threshold(low=low, high=high)


def draw(centre, *, count, spread, factor, generator, distribution):
    """Thresholds of seeds, each known to a cell of a grid whose place is random."""
    draws = centre + spread * getattr(generator, distribution)(size=count)
    width, offset = math.log(factor), generator.uniform()
    cells = np.floor(draws / width + offset)
    return [
        Threshold(low=math.exp((cell - offset) * width), high=math.exp((cell + 1 - offset) * width))
        for cell in cells
    ]


@pytest.mark.parametrize(
    ("count", "spread", "distribution"),
    [
        (5, 0.2, "logistic"),
        pytest.param(12, 0.5, "logistic", marks=[pytest.mark.slow, pytest.mark.statistical]),
        (3, 0.3, "normal"),
    ],
)
def test_the_interval_of_the_edge_covers_it(count, spread, distribution):
    """200 draws: 95 % less 4 stderrs of 1.5 %; more where cells are wide beside the spread."""
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        thresholds = draw(
            -1.0,
            count=count,
            spread=spread,
            factor=1.25,
            generator=generator,
            distribution=distribution,
        )
        edge = fit_edge(thresholds)
        hits += edge.low <= math.exp(-1.0) <= edge.high
    assert hits / 200 >= 0.89


def test_the_edge_of_many_seeds_is_their_median():
    generator = np.random.default_rng(1)
    thresholds = draw(
        0.5, count=400, spread=0.3, factor=1.1, generator=generator, distribution="logistic"
    )
    edge = fit_edge(thresholds)
    # the logistic's location: standard error √3·s/√n = 0.026
    assert abs(math.log(edge.value) - 0.5) < 4 * 0.026
    assert math.log(edge.high / edge.low) == pytest.approx(2 * 1.96 * 0.026, rel=0.15)
    assert edge.num_samples == 400


def test_seeds_that_agree_leave_the_cell_and_few_of_them_more():
    five = fit_edge([Threshold(low=0.4, high=0.5)] * 5)
    assert five.value == pytest.approx(math.sqrt(0.2), rel=0.01)
    assert five.low == pytest.approx(0.4, rel=0.02)
    assert five.high == pytest.approx(0.5, rel=0.02)
    two = fit_edge([Threshold(low=0.4, high=0.5)] * 2)
    assert two.low < 0.35
    one = fit_edge([Threshold(low=0.4, high=0.5)])
    assert one.value == pytest.approx(math.sqrt(0.2), rel=0.01)
    assert math.isnan(one.low)
    assert math.isnan(one.high)


def test_an_edge_beyond_the_grid_is_a_bound():
    above = fit_edge([Threshold(low=1.0, high=math.inf)] * 5)
    assert math.isnan(above.value)
    assert above.high == math.inf
    assert above.low == pytest.approx(1.0, rel=0.02)  # all five stable there: its P is below ½
    below = fit_edge([Threshold(low=0.0, high=1.0)] * 5)
    assert math.isnan(below.value)
    assert below.low == 0.0
    assert below.high == pytest.approx(1.0, rel=0.02)
    nothing = fit_edge([Threshold(low=0.0, high=math.inf)] * 5)
    assert math.isnan(nothing.value)
    assert nothing.num_samples == 0
    mixed = fit_edge([Threshold(low=0.4, high=0.5)] * 4 + [Threshold(low=1.0, high=math.inf)])
    assert 0.4 < mixed.value < 1.0
    assert mixed.low < mixed.value < mixed.high


def test_a_prediction_is_scored_by_sides_and_by_distance():
    cells = [
        (1, 0.1, False),
        (1, 0.5, True),
        (1, 1.0, True),
        (8, 1.0, False),
        (8, 4.0, True),
        (64, 1.0, True),
    ]
    score = score_prediction({1: 0.7, 8: 2.0, 64: math.nan}, cells, {1: 0.35, 8: 4.0, 64: 1.0})
    assert score.cells_right == pytest.approx(
        4 / 5
    )  # 0.5 at B = 1 is wrong, B = 64 has no prediction
    assert score.num_cells == 5
    assert score.log2_error == pytest.approx(1.0)
    assert score.mean_log2_error == pytest.approx(0.0)
    assert score.num_edges == 2
    empty = score_prediction({}, cells, {1: 1.0})
    assert math.isnan(empty.cells_right)
    assert math.isnan(empty.log2_error)


def test_seeds_that_are_the_same_run_count_as_one():
    """Six copies of one bisection, as of gradient descent from one checkpoint."""
    copies = [(seed, rate, rate > 0.45) for seed in range(6) for rate in (0.1, 0.2, 0.4, 0.5, 0.8)]
    once = edge_of(copies, seeds_alike=True)
    assert once.rate.num_samples == 1
    assert once.rate.value == pytest.approx(math.sqrt(0.2))
    assert (once.rate.low, once.rate.high) == (0.4, 0.5)  # between two rates, without a chance
    assert edge_of(copies).rate.num_samples == 6
    stable = edge_of([(0, 0.1, False), (1, 0.2, False)], seeds_alike=True).rate
    assert math.isnan(stable.value)
    assert (stable.low, stable.high) == (0.2, math.inf)
    assert edge_of([], seeds_alike=True).rate.num_samples == 0


def test_seeds_that_are_not_monotone_are_counted():
    good, came_back = (False, False, True, True), (False, True, False, True)
    outcomes = [
        (seed, rate, unstable)
        for seed, course in enumerate([good, came_back, good, came_back, good])
        for rate, unstable in zip((0.1, 0.2, 0.4, 0.8), course, strict=True)
    ]
    edge = edge_of(reversed(outcomes))
    assert edge.num_not_monotone == 2
    assert edge.rate.num_samples == 5
    assert edge_of(outcomes[:4]).num_not_monotone == 0
    assert monotone([(2.0, True), (1.0, False)])
    assert monotone([])
    assert not monotone([(2.0, False), (1.0, True)])


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.3, 0.2), (-1.0, 0.2)])
def test_a_threshold_without_room_is_refused(low, high):
    with pytest.raises(SettingError, match="give a lower end below the upper one"):
        fit_edge([Threshold(low=low, high=high)] * 3)


def test_two_outcomes_at_one_rate_have_no_threshold_between_them():
    threshold = seed_threshold([(0.05, False), (0.1, False), (0.1, True), (0.2, True)])
    assert (threshold.low, threshold.high) == (0.05, 0.2)
    assert seed_threshold([(0.1, False), (0.1, True)]) == Threshold(low=0, high=math.inf)
