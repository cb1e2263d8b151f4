"""Which learning rates are tried, on losses that a formula gives."""

import math
from pathlib import Path

import pandas as pd
import pytest

from noisescale.studies.jobs.short_run import ShortRun
from noisescale.studies.recommend.search import (
    MOST_DIVERGED,
    MOST_TRIED,
    best_index,
    loss_at,
    next_index,
    wanted_index,
)


def searched(loss):
    """The indices tried, in order, and the losses."""
    losses, order = {}, []
    while (index := next_index(losses)) is not None:
        assert index not in losses
        losses[index] = loss(index)
        order.append(index)
    return order, losses


@pytest.mark.parametrize("best", [-9, -4, -1, 0, 1, 2, 3, 8])
def test_the_best_of_the_grid_is_found_and_lies_between_neighbours(best):
    order, losses = searched(lambda index: 1 + (index - best) ** 2)
    assert best_index(losses) == best
    assert {best - 1, best, best + 1} <= set(order)
    assert len(order) <= 5 + abs(best)


def test_rates_that_diverge_are_left_by_factors_of_four():
    order, losses = searched(lambda index: math.inf if index > -5 else 1 + (index + 6) ** 2)
    assert order[:4] == [0, -2, -4, -6]
    assert best_index(losses) == -6
    assert {-7, -5} <= set(order)


def test_a_search_that_finds_nothing_ends():
    order, _ = searched(lambda index: math.inf)
    assert len(order) == MOST_DIVERGED
    order, _ = searched(lambda index: -float(index))
    assert len(order) == MOST_TRIED


def test_the_last_rate_of_a_search_may_close_it():
    tried = {index: 1 + (index - 3) ** 2 for index in range(MOST_TRIED)}
    assert next_index(tried) is None
    assert wanted_index(tried) is None
    beyond = {index: -float(index) for index in range(MOST_TRIED)}
    assert next_index(beyond) is None
    assert wanted_index(beyond) is not None


def test_a_rate_is_compared_at_its_last_look_before_a_cut():
    """Not by its loss at the end, which a run that was cut has not come to."""
    losses = pd.DataFrame({"step": [0, 10, 20, 80], "loss": [2.3, 1.5, 1.0, 0.1]})
    run = ShortRun({}, losses, Path())
    assert loss_at(run, 5) == 2.3
    assert loss_at(run, 15) == 1.5
    assert loss_at(run, 20) == 1.0
    assert loss_at(run, 80) == 0.1
