"""What a person sees of a study: a bar with a time estimate, and a line for what goes wrong."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable, Mapping
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

REPORT_EVERY = 30.0  # seconds between two lines where there is no terminal for a bar
OVERHEAD = 0.3  # seconds of a run outside its updates, as measured: data, looks, files


class StudyProgress:
    """A progress bar over a study's runs; their number is not known beforehand, but estimated.

    console: where to write; None writes nothing. A terminal gets the bar, others a line now and
    then.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = console or Console(quiet=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, detail="")
        self._seconds: dict[Hashable, list[float]] = defaultdict(list)  # of the finished runs
        self._remaining: Mapping[Hashable, int] = {}
        self._started = self._reported = time.monotonic()

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
        self._bar.update(self._task, description=text, total=None, detail="")
        self.log(text)

    def expect(self, remaining: Mapping[Hashable, int]) -> None:
        """Notes how many runs of each kind are still to be made."""
        self._remaining = remaining

    def finished(self, kind: Hashable, seconds: float) -> None:
        """Counts a finished run of a kind, whose updates took so many seconds."""
        self._seconds[kind].append(seconds + OVERHEAD)

    def update(self) -> None:
        """Moves the bar."""
        done, left = self.num_finished, sum(self._remaining.values())
        if not done or not self._remaining:
            return
        text = f"{done} of about {done + left} cells, {_duration(self._seconds_left())} left"
        self._bar.update(
            self._task, description="cells", completed=done, total=done + left, detail=text
        )
        now = time.monotonic()
        if not self.console.is_terminal and now - self._reported > REPORT_EVERY:
            self._reported = now
            self.log(text)

    def log(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _seconds_left(self) -> float:
        """An estimate: the runs to come take as long as those of their kind, or all, have taken."""
        totals = {kind: sum(seconds) for kind, seconds in self._seconds.items()}
        total = sum(totals.values())
        mean = total / self.num_finished
        to_come = sum(
            number * (totals[kind] / len(self._seconds[kind]) if kind in totals else mean)
            for kind, number in self._remaining.items()
        )
        return to_come * (time.monotonic() - self._started) / total


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
