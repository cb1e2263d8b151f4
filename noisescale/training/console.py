"""What a run tells while it goes on: lines and a bar on stderr, TensorBoard events; and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from noisescale.errors import SettingError
from noisescale.training.tracking.losses import LossHistory, mean_loss

# seconds between two moves of the bar: a step may be a hundred times shorter, and drawing is not
# free
REDRAW_EVERY = 0.1


class RunReport:
    """What a run tells of itself: a progress bar, log lines above it, and TensorBoard events.

    Args:
        console: where bar and lines go; None: nowhere. Only a terminal gets the bar.
        events: a TensorBoard SummaryWriter, which the caller closes; None for none.
        title: what every line begins with.
        total_epochs: the length of the bar.
        step: that the run goes on from.
    """

    def __init__(
        self,
        console: Console | None,
        events: Any = None,
        *,
        title: str,
        total_epochs: float,
        step: int = 0,
    ) -> None:
        self._console = console or Console(quiet=True)
        self._events = events
        self._title = title
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.completed:.2f}/{task.total:g}"),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total_epochs, detail="")
        self._drawn = 0.0
        self._last_loss = step  # the last step whose loss is among the events

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, *, epoch: float, step: int) -> None:
        """Moves the bar, at most ten times a second."""
        if (now := time.monotonic()) - self._drawn >= REDRAW_EVERY:
            self._drawn = now
            self._bar.update(self._task, completed=epoch, detail=f"step {step:,}")

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        """Reports an epoch's rows of metrics.csv, one row per split, in one line."""
        first = rows[0]
        position = f"epoch {first['epoch']:<6.4g} step {first['step']:<8,}"
        scores = "  ".join(
            f"{row['split']} {row['loss']:.4f}/{row['accuracy']:.4f}" for row in rows
        )
        speed = f"  {first['seconds']:.1f} s" if first["seconds"] else ""
        self.log(f"{self._title}  {position} loss/accuracy: {scores}{speed}")
        for row in rows:
            self._add_events(
                {f"{score}/{row['split']}": row[score] for score in ("loss", "accuracy", "f1")},
                step=row["step"],
            )

    def measurement(self, row: dict[str, Any], text: str, scalars: dict[str, float]) -> None:
        """Reports what was measured between two steps: `text` in a line, `scalars` as events."""
        self.log(f"{self._title}  epoch {row['epoch']:<6.3g} step {row['step']:<8,} {text}")
        self._add_events(scalars, step=row["step"])

    def batch_losses(self, losses: LossHistory) -> None:
        """Adds an event: the mean loss of the steps since the last one, at most the last 100."""
        if self._events is None or not (steps := losses.since(self._last_loss)):
            return
        self._last_loss = steps[-1].step
        self._add_events({"loss/batch": mean_loss(steps)}, step=self._last_loss)

    def log(self, text: str) -> None:
        """Writes a line above the bar."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _add_events(self, scalars: dict[str, float], *, step: int) -> None:
        if self._events is not None:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)


def event_writer(log_dir: Path | None, run: str, step: int) -> Any:
    """A context that gives a TensorBoard writer, or None where there is no `log_dir`.

    run: the name of its folder there. step: that the run goes on from; events after it are
    withdrawn.
    """
    if log_dir is None:
        return nullcontext()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingError(
            "--log-dir writes TensorBoard events, and tensorboard is not installed: "
            "pip install 'noisescale[tensorboard]', or leave --log-dir out"
        ) from None
    return SummaryWriter(log_dir / run, purge_step=step + 1 if step else None)


class DeferredInterrupts:
    """While open, SIGINT and SIGTERM only set `received`: work can stop where its state is whole.

    A second one interrupts at once. Does nothing outside the main thread, where Python takes no
    signals.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._receive)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        else:
            self._before = {}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
