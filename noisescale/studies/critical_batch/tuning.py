"""Which learning rates to try next: indices on a grid out, the steps to each goal in."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import NamedTuple

# times the fewest steps so far, which another rate may take: a slower one cannot be the best, and
# what the smoothing of the loss needs beyond the goal is well within that
SLACK = 2.0
# rates tried, or as many as span WIDEST, for a goal that none of them has reached: the first three
# and two more on either side, by factors of 2
MOST_UNREACHED = 7
WIDEST = 64.0
LEAST = 8  # updates of a rate: below, a loss cannot be smoothed
SHARES = (16, 4, 1)  # of the first search's budget, one after the other
MOST = 15  # rates tried beyond those, in all: steps that fall without end must not be followed

Steps = tuple[float, ...]  # to each goal, from the highest; infinity where it was not reached


class Trial(NamedTuple):
    """A learning rate, by its index on the grid, and the updates it may take."""

    grid_index: int
    max_steps: int


class Tuned(NamedTuple):
    """The steps of each rate tried, by its index, and the updates that another one would get."""

    tried: dict[int, Steps]
    budget: int


Tuning = Generator[list[Trial], list[Steps], Tuned]


def tune(centre: int, budget: int, *, factor: float = 2.0) -> Tuning:
    """The centre and its neighbours, then wider until the best rate of every goal is no end.

    Args:
        centre: index of the first rate.
        budget: updates of the first ones; later ones get twice what the fastest took to the last
            of the goals that they are tried for.
        factor: between neighbouring rates.
    """
    most_unreached = max(MOST_UNREACHED, math.ceil(math.log(WIDEST) / math.log(factor)))
    tried: dict[int, Steps] = {}
    wanted = dict.fromkeys((centre - 1, centre, centre + 1), budget)
    while wanted:
        answers = yield list(map(Trial, wanted.keys(), wanted.values()))
        tried |= dict(zip(wanted, answers, strict=True))
        budget = _budget(tried, -1, budget)
        enough = len(tried) >= MOST + most_unreached
        goals = {} if enough else _widened(tried, most_unreached)
        wanted = {index: _budget(tried, goal, budget) for index, goal in goals.items()}
    return Tuned(tried, budget)


def tune_first(centre: int, budget: int, *, factor: float = 2.0) -> Tuning:
    """As `tune` where nothing bounds the steps yet but what the user allows, many times the need.

    With a sixteenth of it, a quarter and all, until a rate reaches every goal: one that never will
    would take all of it before others are tried.

    Args:
        centre: index of the first rate.
        budget: updates, at most.
        factor: between neighbouring rates.
    """
    for share in SHARES:
        rung = min(budget, max(math.ceil(budget / share), LEAST))
        tuned = yield from tune(centre, rung, factor=factor)
        if None not in best_indices(tuned.tried):
            break
    return tuned


def best_indices(tried: Mapping[int, Steps]) -> list[int | None]:
    """The index of the fastest rate for each goal; None where no rate reached it."""
    return [
        min(sorted(tried), key=lambda index: tried[index][goal]) if math.isfinite(fewest) else None
        for goal, fewest in enumerate(map(min, zip(*tried.values(), strict=True)))
    ]


def _budget(tried: Mapping[int, Steps], goal: int, otherwise: int) -> int:
    """The updates of another rate that is tried for a goal: SLACK times the fewest so far."""
    fewest = min(steps[goal] for steps in tried.values())
    return max(math.ceil(SLACK * fewest), LEAST) if math.isfinite(fewest) else otherwise


def _widened(tried: Mapping[int, Steps], most_unreached: int) -> dict[int, int]:
    """The indices beyond the ends that are best for a goal, each with the last such goal.

    While a goal is unreached, both, for that goal.
    """
    low, high = min(tried), max(tried)
    best = best_indices(tried)
    if None in best and len(tried) < most_unreached:
        return dict.fromkeys((low - 1, high + 1), best.index(None))
    last = {end: goal for goal, end in enumerate(best)}
    return {beyond: last[end] for beyond, end in ((low - 1, low), (high + 1, high)) if end in last}
