"""Time that may be spent: a clock with an end, and its division among what is still to be done."""

from __future__ import annotations

from collections.abc import Callable

RESERVE = 0.08  # of all the time, for what is outside the phases: loading, tables, the picture
REPORT_EVERY = 30.0  # seconds between two lines of a phase that goes on


class Budget:
    """Seconds that may be spent, by any clock.

    Args:
        seconds: in all.
        clock: gives seconds from some moment on, as time.monotonic.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._started = clock()

    def now(self) -> float:
        """What the clock shows."""
        return self._clock()

    def add(self, seconds: float) -> None:
        """Counts what was spent before, by what is kept of it."""
        self._started -= seconds

    @property
    def spent(self) -> float:
        return self._clock() - self._started

    @property
    def left(self) -> float:
        """Seconds that phases may still take."""
        return (1 - RESERVE) * self.seconds - self.spent


class Reminder:
    """Tells when a line is due again."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._last = budget.now()

    @property
    def due(self) -> bool:
        """Whether so long has passed since the last time it was."""
        now = self._budget.now()
        if now - self._last < REPORT_EVERY:
            return False
        self._last = now
        return True
