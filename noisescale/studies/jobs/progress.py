"""What a person sees of a study: a bar with a time estimate, and a line for what goes wrong."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from noisescale.training.console import SAY_EVERY, duration_text, log_line

OVERHEAD = 0.3  # seconds of a run outside its updates, as measured: data, looks, files
# of the seconds an example takes against the batch size, in logarithms, where one batch size alone
# is known: between 0, where examples take as long in any batch, and -1, where steps do
SLOPE = -0.5
# of a run that is on its way at some moment, on average: half of equally long ones, less of mixed
# ones, among which one meets the longer
DONE = 0.25
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
        self._spent: dict[Hashable, _Spent] = defaultdict(_Spent)  # by the finished runs
        self._remaining: Mapping[Hashable, Sequence[float]] = {}
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
        return sum(of_kind.num_runs for of_kind in self._spent.values())

    def activity(self, text: str) -> None:
        """Says what is being done, where that is not runs."""
        self._remaining = {}
        self._activity = text
        self._began = time.monotonic()
        self._bar.update(self._task, description=text, total=None, detail="")
        self.log(text)

    def expect(self, remaining: Mapping[Hashable, Sequence[float]]) -> None:
        """Notes the work of the runs of each kind that are still to be made, one by one."""
        self._remaining = remaining

    def stored(
        self, kind: Hashable, seconds: float, *, work: float = 1.0, done: float | None = None
    ) -> None:
        """Counts a run that was there before, whose updates once took so many seconds.

        work: how much it was at most, such as the examples that it could see. done: how much of it
        the run did before it reached its goal; None: all.
        """
        of_kind = self._spent[kind]
        of_kind.seconds += seconds + OVERHEAD
        of_kind.work += work
        of_kind.done += work if done is None else done
        of_kind.num_runs += 1

    def finished(
        self, kind: Hashable, seconds: float, *, work: float = 1.0, done: float | None = None
    ) -> None:
        """Counts a run of a kind that has just finished, likewise."""
        if not self._worked:  # what came before it was no run
            self._began = time.monotonic() - seconds - OVERHEAD
        self._worked += seconds + OVERHEAD
        self._num_made += 1
        self.stored(kind, seconds, work=work, done=done)

    def update(self) -> None:
        """Moves the bar, and says in a line every 30 seconds where there is none."""
        done, left = self.num_finished, sum(map(len, self._remaining.values()))
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
        return sum(of_kind.seconds for of_kind in self._spent.values()) * self._per_second

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
        """An estimate: runs to come cost by their work what others have; two at once take half.

        This is asked as one run has ended and another begun; of the others on their way a part is
        done.
        """
        share = _share(self._spent.values())
        costs = [
            self._pace(kind) * share * work
            for kind, works in self._remaining.items()
            for work in works
        ]
        if not costs:
            return 0.0
        others = min(self._num_at_once, len(costs)) - 1
        to_come = sum(costs) * (1 - others * DONE / len(costs))
        return max(to_come * self._per_second, max(costs) / 2)

    def _pace(self, kind: Hashable) -> float:
        """Seconds by work done of runs of this kind; of a batch size not seen, by those seen."""
        if kind in self._spent:
            return self._spent[kind].pace
        sizes = [size for size in self._spent if isinstance(size, int)]
        if not sizes or not isinstance(kind, int):
            return float(np.mean([of_kind.pace for of_kind in self._spent.values()]))
        nearest = sorted(sizes, key=lambda size: abs(math.log(size / kind)))[:2]
        logs = [math.log(self._spent[size].pace) for size in nearest]
        slope = SLOPE
        if len(nearest) == 2:
            slope = (logs[1] - logs[0]) / math.log(nearest[1] / nearest[0])
        return math.exp(logs[0] + float(np.clip(slope, -1, 0)) * math.log(kind / nearest[0]))


@dataclass
class _Spent:
    """What the finished runs of a kind took, what they were at most, and what they did of it."""

    seconds: float = 0.0
    work: float = 0.0
    done: float = 0.0
    num_runs: int = 0

    @property
    def pace(self) -> float:
        """Seconds by work done."""
        return self.seconds / self.done


def _share(spent: Iterable[_Spent]) -> float:
    """How much of what they could do at most runs do, the mean over kinds by their runs."""
    shares = [(of_kind.done / of_kind.work, of_kind.num_runs) for of_kind in spent]
    return sum(share * number for share, number in shares) / sum(number for _, number in shares)
