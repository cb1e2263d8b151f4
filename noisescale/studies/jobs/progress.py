"""What a person sees of a sweep: a bar with a time estimate, and a line for what goes wrong, on stderr."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from noisescale.studies.stability_map.config import BatchSize

REPORT_EVERY = 30.0  # seconds between two lines where there is no terminal for a bar
OVERHEAD = 0.3  # seconds of a cell outside its updates, about


class SweepProgress:
    """A progress bar over a sweep's cells; as their number is not known beforehand, an estimate of it.

    console: where to write; None writes nothing. Only a terminal gets the bar, others a line now and then.
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
        self._seconds: dict[BatchSize, list[float]] = defaultdict(list)
        self._started = self._reported = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def activity(self, text: str) -> None:
        """What is being done, where that is not cells."""
        self._bar.update(self._task, description=text, total=None, detail="")
        self.log(text)

    def cell(self, batch_size: BatchSize, seconds: float) -> None:
        """Counts a finished cell, whose updates took so long."""
        self._seconds[batch_size].append(seconds + OVERHEAD)

    def update(self, remaining: dict[BatchSize, int]) -> None:
        """Moves the bar; remaining: cells still to be run at each batch size."""
        done = sum(map(len, self._seconds.values()))
        if not done or not remaining:
            return
        left = sum(remaining.values())
        text = f"{done} of about {done + left} cells, {_duration(self._estimate(remaining))} left"
        self._bar.update(
            self._task, description="cells", completed=done, total=done + left, detail=text
        )
        now = time.monotonic()
        if not self.console.is_terminal and now - self._reported > REPORT_EVERY:
            self._reported = now
            self.log(text)

    def log(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _estimate(self, remaining: dict[BatchSize, int]) -> float:
        """Seconds left, if the cells to come take as long as those of their batch size have taken."""
        finished = {size: sum(times) for size, times in self._seconds.items()}
        total = sum(finished.values())
        mean = total / sum(map(len, self._seconds.values()))
        to_come = sum(
            count * (finished[size] / len(self._seconds[size]) if self._seconds.get(size) else mean)
            for size, count in remaining.items()
        )
        return to_come * (time.monotonic() - self._started) / total


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
