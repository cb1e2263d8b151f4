"""Which learning rates are tried, on losses that a formula gives."""

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from noisescale.studies.jobs.short_run import ShortRun
from noisescale.studies.recommend.search import (
    MOST_DIVERGED,
    MOST_TRIED,
    Search,
    best_index,
    loss_at,
    next_index,
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


@pytest.mark.parametrize("best", [3, MOST_TRIED - 1])
def test_a_search_that_its_last_rate_closes_was_not_cut_short(best, monkeypatch):
    tried = {index: 1.0 + (index - best) ** 2 for index in range(MOST_TRIED)}
    monkeypatch.setattr(Search, "losses", tried)
    search = Search(SimpleNamespace(first_rate=0.1), SimpleNamespace(rate_steps=9, run_steps=9))
    search.runs = dict.fromkeys(tried, ShortRun({"cut": False}, pd.DataFrame(), Path()))
    assert next_index(tried) is None
    cut = [f"ended after {MOST_TRIED} rates" in note for note in search.notes]
    assert cut == ([] if best == 3 else [True])


def test_a_rate_is_compared_at_its_last_look_before_a_cut():
    """Not by its loss at the end, which a run that was cut has not come to."""
    losses = pd.DataFrame({"step": [0, 10, 20, 80], "loss": [2.3, 1.5, 1.0, 0.1]})
    run = ShortRun({}, losses, Path())
    assert loss_at(run, 5) == 2.3
    assert loss_at(run, 15) == 1.5
    assert loss_at(run, 20) == 1.0
    assert loss_at(run, 80) == 0.1
