"""What a person sees of a study: a bar with a time estimate, and a line for what goes wrong."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from noisescale.training.console import SAY_EVERY, duration_text, log_line

OVERHEAD = 0.3  # seconds of a run outside its updates, as measured: data, looks, files
# of a run's seconds against its batch size, in logarithms, where one batch size alone is known:
# between that of runs of equal steps, 0, and of equal examples, -1
SLOPE = -0.5
FIRST_RUNS = 8  # after which how fast they go counts for half: those on their way matter no more


class StudyProgress:
    """A progress bar over a study's runs; their number is not known beforehand, but estimated.

    console: where to write; None writes nothing. A terminal gets the bar, others a line every 30
    seconds. num_at_once: runs that are made at the same time.
    """

    def __init__(self, console: Console | None, *, num_at_once: int = 1) -> None:
        self.console = console or Console(quiet=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            transient=True,
            expand=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, detail="")
        self._seconds: dict[Hashable, list[float]] = defaultdict(list)  # of the finished runs
        self._remaining: Mapping[Hashable, int] = {}
        self._activity = "starting"
        self._began = self._reported = time.monotonic()
        self._worked = 0.0  # seconds of the runs that this study itself has made
        self._num_made = 0  # how many these are
        self._num_at_once = num_at_once

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    @property
    def num_finished(self) -> int:
        return sum(map(len, self._seconds.values()))

    def activity(self, text: str) -> None:
        """Says what is being done, where that is not runs."""
        self._remaining = {}
        self._activity = text
        self._began = time.monotonic()
        self._bar.update(self._task, description=text, total=None, detail="")
        self.log(text)

    def expect(self, remaining: Mapping[Hashable, int]) -> None:
        """Notes how many runs of each kind are still to be made."""
        self._remaining = remaining

    def stored(self, kind: Hashable, seconds: float) -> None:
        """Counts a run that was there before, whose updates once took so many seconds."""
        self._seconds[kind].append(seconds + OVERHEAD)

    def finished(self, kind: Hashable, seconds: float) -> None:
        """Counts a run of a kind that has just finished, whose updates took so many seconds."""
        if not self._worked:  # what came before it was no run
            self._began = time.monotonic() - seconds - OVERHEAD
        self._worked += seconds + OVERHEAD
        self._num_made += 1
        self._seconds[kind].append(seconds + OVERHEAD)

    def update(self) -> None:
        """Moves the bar, and says in a line every 30 seconds where there is none."""
        done, left = self.num_finished, sum(self._remaining.values())
        if self._remaining:
            text = f"{done} of about {done + left} runs"
            if self._worked:
                text += f", {duration_text(self.seconds_left())} left"
            self._bar.update(
                self._task, description="", completed=done, total=done + left, detail=text
            )
        else:
            text = f"{self._activity}, for {duration_text(time.monotonic() - self._began)} now"
        if not self.console.is_terminal and time.monotonic() - self._reported > SAY_EVERY:
            self.log(text)

    @property
    def seconds_so_far(self) -> float:
        """What the runs took, those that were there before too, with as many at once as now."""
        total = sum(map(sum, self._seconds.values()))
        return total * self._per_second

    @property
    def _per_second(self) -> float:
        """Seconds that pass for each that a run takes: half of one where two are made at once.

        As they have passed so far; at first, while others are on their way that are not counted
        yet, rather as they should.
        """
        expected = 1 / self._num_at_once
        if not self._worked:
            return expected
        seen = (time.monotonic() - self._began) / self._worked
        return (self._num_made * seen + FIRST_RUNS * expected) / (self._num_made + FIRST_RUNS)

    def log(self, text: str) -> None:
        """Writes a line above the bar."""
        self._reported = time.monotonic()
        log_line(self.console, text)

    def seconds_left(self) -> float:
        """An estimate: runs to come cost what those of their kind have; two at once take half."""
        to_come = sum(number * self._cost(kind) for kind, number in self._remaining.items())
        return to_come * self._per_second

    def _cost(self, kind: Hashable) -> float:
        """Seconds of a run of this kind; of a batch size not seen yet, by those of the others."""
        if kind in self._seconds:
            return _typical(self._seconds[kind])
        sizes = [size for size in self._seconds if isinstance(size, int)]
        if not sizes or not isinstance(kind, int):
            return _typical([second for of_kind in self._seconds.values() for second in of_kind])
        nearest = sorted(sizes, key=lambda size: abs(math.log(size / kind)))[:2]
        logs = [math.log(_typical(self._seconds[size])) for size in nearest]
        slope = SLOPE
        if len(nearest) == 2:
            slope = (logs[1] - logs[0]) / math.log(nearest[1] / nearest[0])
        # steps fall and examples rise with the batch size, so that it lies between these
        return math.exp(logs[0] + float(np.clip(slope, -1, 0)) * math.log(kind / nearest[0]))


def _typical(seconds: list[float]) -> float:
    """The geometric mean, which a single run that met a busy machine moves little."""
    return float(np.exp(np.mean(np.log(seconds))))
