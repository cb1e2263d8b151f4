"""Which learning rates to try next: places on a grid out, the steps to each goal in."""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from typing import NamedTuple

SLACK = 2.0  # times the fewest steps so far, for which another rate is tried
MOST_UNREACHED = (
    7  # rates tried, or as many as span WIDEST, for a goal that none of them has reached
)
WIDEST = 64.0
MOST = 15  # rates tried beyond those, in all

Steps = tuple[float, ...]  # to each goal, from the highest; infinity where it was not reached


class Trial(NamedTuple):
    """A learning rate, by its place on the grid, for so many updates at most."""

    place: int
    max_steps: int


Tuning = Generator[list[Trial], list[Steps], None]


def tune(centre: int, budget: int, *, factor: float = 2.0) -> Tuning:
    """The centre and its neighbours, then wider until the best rate for every goal lies between others.

    factor: between neighbours. budget: updates of the first ones; later ones get twice what the fastest took
    to the last goal.
    """
    most_unreached = max(MOST_UNREACHED, math.ceil(math.log(WIDEST) / math.log(factor)))
    tried: dict[int, Steps] = {}
    wanted = [centre - 1, centre, centre + 1]
    while wanted:
        tried |= dict(zip(wanted, (yield [Trial(place, budget) for place in wanted]), strict=True))
        fewest = min(steps[-1] for steps in tried.values())
        if math.isfinite(fewest):
            budget = math.ceil(SLACK * fewest)
        enough = len(tried) >= MOST + most_unreached
        wanted = [] if enough else _widened(tried, most_unreached)


def best_places(tried: Mapping[int, Steps]) -> list[int | None]:
    """The place of the fastest rate for each goal; None where no rate reached it."""
    return [
        min(sorted(tried), key=lambda place: tried[place][goal]) if math.isfinite(fewest) else None
        for goal, fewest in enumerate(map(min, zip(*tried.values(), strict=True)))
    ]


def _widened(tried: Mapping[int, Steps], most_unreached: int) -> list[int]:
    """The places beyond an end at which some goal is reached fastest, or that no rate has reached yet."""
    low, high = min(tried), max(tried)
    best = best_places(tried)
    unreached = None in best and len(tried) < most_unreached
    return [place for place, end in ((low - 1, low), (high + 1, high)) if end in best or unreached]
