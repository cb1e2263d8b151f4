"""Which learning rates to try next: indices of the grid out, whether each was unstable in."""

from __future__ import annotations

from collections.abc import Generator

# None in the place of an outcome: that cell failed, and the search ends
RateSearch = Generator[list[int], list[bool | None], None]


def whole_grid(size: int) -> RateSearch:
    """Every rate."""
    yield list(range(size))


def scan_and_bisect(size: int, stride: int) -> RateSearch:
    """Every `stride`-th rate and the last one, then bisection below the first unstable of them."""
    scan = sorted({*range(0, size, stride), size - 1})
    outcomes = dict(zip(scan, (yield scan), strict=True))
    unstable = [index for index in scan if outcomes[index]]
    high = unstable[0] if unstable else size
    low = max((index for index in scan if index < high and outcomes[index] is False), default=-1)
    yield from _bisect(low, high)


def from_guess(size: int, last_stable: int) -> RateSearch:
    """Both sides of a guessed edge, then in strides that double to where it is, then bisection.

    last_stable: index of the largest stable rate of another seed; -1 where none is, size - 1 where
    all are.
    """
    sides = [index for index in (last_stable, last_stable + 1) if 0 <= index < size]
    outcomes = dict(zip(sides, (yield sides), strict=True))
    if outcomes.get(last_stable, False):
        yield from _walk(last_stable, -1, -1)
    if outcomes.get(last_stable + 1, True) is False:
        yield from _walk(last_stable + 1, 1, size)


def _walk(start: int, direction: int, end: int) -> RateSearch:
    """From `start` in doubling strides until the outcome changes or the grid ends; then bisects."""
    unstable_at_start = direction < 0
    reached, stride = start, 1
    while True:
        following = reached + direction * stride
        if (following - end) * direction >= 0:
            following = end
            break
        (unstable,) = yield [following]
        if unstable is None:
            return
        if unstable != unstable_at_start:
            break
        reached, stride = following, 2 * stride
    yield from _bisect(min(reached, following), max(reached, following))


def _bisect(low: int, high: int) -> RateSearch:
    """Between a stable and an unstable rate (or the ends of the grid) until they are neighbours."""
    while high - low > 1:
        middle = (low + high) // 2
        (unstable,) = yield [middle]
        if unstable is None:
            return
        low, high = (low, middle) if unstable else (middle, high)
