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
            goal.
        factor: between neighbouring rates.
    """
    most_unreached = max(MOST_UNREACHED, math.ceil(math.log(WIDEST) / math.log(factor)))
    tried: dict[int, Steps] = {}
    wanted = [centre - 1, centre, centre + 1]
    while wanted:
        answers = yield [Trial(index, budget) for index in wanted]
        tried |= dict(zip(wanted, answers, strict=True))
        fewest = min(steps[-1] for steps in tried.values())
        if math.isfinite(fewest):
            budget = math.ceil(SLACK * fewest)
        enough = len(tried) >= MOST + most_unreached
        wanted = [] if enough else _widened(tried, most_unreached)
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
        tuned = yield from tune(centre, math.ceil(budget / share), factor=factor)
        if None not in best_indices(tuned.tried):
            break
    return tuned


def best_indices(tried: Mapping[int, Steps]) -> list[int | None]:
    """The index of the fastest rate for each goal; None where no rate reached it."""
    return [
        min(sorted(tried), key=lambda index: tried[index][goal]) if math.isfinite(fewest) else None
        for goal, fewest in enumerate(map(min, zip(*tried.values(), strict=True)))
    ]


def _widened(tried: Mapping[int, Steps], most_unreached: int) -> list[int]:
    """The indices beyond an end that is best for a goal; beyond both while one is unreached."""
    low, high = min(tried), max(tried)
    best = best_indices(tried)
    unreached = None in best and len(tried) < most_unreached
    return [index for index, end in ((low - 1, low), (high + 1, high)) if end in best or unreached]
