"""What a run tells while it goes on: lines and a bar on stderr, TensorBoard events; and Ctrl-C."""

from __future__ import annotations

import math
import signal
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from noisescale.errors import SettingError
from noisescale.training.tracking.losses import LossHistory, mean_loss

# seconds between two moves of the bar: a step may be a hundred times shorter, and drawing is not
# free
REDRAW_EVERY = 0.1
SAY_EVERY = 30.0  # seconds between two lines where there is no terminal for a bar
NOTE_STYLE = "magenta"  # what is to be noticed: yellow, white and blue vanish on some grounds
LOG_WIDTH = 80  # columns of a line there: of a log that is looked at in a terminal of any width


def log_line(console: Console, text: str, *, indent: str = "  ") -> None:
    """Writes a line of a log, folded between words where the terminal, or a log, is narrower.

    Args:
        console: where to write.
        text: the line; a word longer than the width, such as a path, stays whole.
        indent: of what does not fit the first line.
    """
    folded = textwrap.wrap(
        text,
        console.width if console.is_terminal else LOG_WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in folded or [""]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def duration_text(seconds: float) -> str:
    """A time in hours and minutes, minutes and seconds, or seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _seconds_text(seconds: float) -> str:
    """Seconds that leave a line of a log within its width."""
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:.0f} s"


class Heartbeat:
    """While open, says every 30 seconds what is being done, where no terminal shows it.

    Args:
        console: where to write; a quiet console gets nothing.
        text: what to say then; it is called in another thread, and should only read.
        every: seconds between two lines.
        on_terminals: whether a terminal gets them too, which shows no bar.
    """

    def __init__(
        self,
        console: Console,
        text: Callable[[], str],
        *,
        every: float = SAY_EVERY,
        on_terminals: bool = False,
    ) -> None:
        self._console = console
        self._writes = not console.quiet and (on_terminals or not console.is_terminal)
        self._text = text
        self._every = every
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._writes:
            self._thread = threading.Thread(target=self._beat, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def said(self) -> None:
        """Notes that a line has just been written, so that the next is due later."""
        self._last = time.monotonic()

    def _beat(self) -> None:
        while not self._ended.wait(max(0.0, self._last + self._every - time.monotonic())):
            if time.monotonic() >= self._last + self._every:
                self.said()
                log_line(self._console, self._text())


class Pace:
    """How long work still takes whose parts differ in cost: each part's mean, times those left.

    A measurement may cost as much as a thousand updates, and most of those in logarithms of the
    step come early: no share of the steps tells how long the rest takes.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._done: dict[str, int] = {}

    def spent(self, part: str, seconds: float) -> None:
        """Notes that a part was done once, and took so long.

        Args:
            part: what kind of work.
            seconds: that it took.
        """
        self._seconds[part] = self._seconds.get(part, 0.0) + seconds
        self._done[part] = self._done.get(part, 0) + 1

    def left(self, amounts: Mapping[str, float]) -> float | None:
        """Seconds until so much of each part is done; None where a part is not known yet.

        Args:
            amounts: of each part, what is left of it.
        """
        seconds = 0.0
        for part, amount in amounts.items():
            if amount <= 0:
                continue
            if not self._done.get(part):
                return None
            seconds += self._seconds[part] / self._done[part] * amount
        return seconds


class RunReport:
    """What a run tells of itself: a progress bar, log lines above it, and TensorBoard events.

    Args:
        console: where bar and lines go; None: nowhere. A terminal gets the bar, others a line at
            least every 30 seconds.
        events: a TensorBoard SummaryWriter, which the caller closes; None for none.
        title: of the run.
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
        self._total_epochs = total_epochs
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            transient=True,
            expand=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=total_epochs, detail="")
        self._status = "starting"
        self._heartbeat = Heartbeat(self._console, lambda: f"{title}: {self._status}")
        self._drawn = 0.0
        self._last_loss = step  # the last step whose loss is among the events
        self._has_heading = False

    def __enter__(self) -> Self:
        self._bar.start()
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._heartbeat.__exit__(*exception)
        self._bar.stop()

    @property
    def is_due(self) -> bool:
        """Whether the bar may move again, which it does at most ten times a second."""
        return time.monotonic() - self._drawn >= REDRAW_EVERY

    def update(self, *, epoch: float, step: int, seconds_left: float | None) -> None:
        """Moves the bar.

        Args:
            epoch: up to where the run is.
            step: likewise.
            seconds_left: about; None where it is not known yet.
        """
        self._drawn = time.monotonic()
        left = "" if seconds_left is None else f", {duration_text(seconds_left)} left"
        detail = f"epoch {epoch:.2f} of {self._total_epochs:.4g}, step {step:,}{left}"
        self._status = detail
        self._bar.update(self._task, completed=epoch, detail=detail)

    def epoch(self, rows: list[dict[str, Any]]) -> None:
        """Reports an epoch's rows of metrics.csv, one row per split, in one line."""
        first = rows[0]
        classifies = not math.isnan(first["accuracy"])
        if not self._has_heading:
            self._has_heading = True
            named = "loss and accuracy" if classifies else "loss"
            self.log(f"{self._title}: {named}, {', '.join(row['split'] for row in rows)}")
        scores = "  ".join(
            f"{row['loss']:.4f}" + (f" {row['accuracy']:6.2%}" if classifies else "")
            for row in rows
        )
        speed = f"  {_seconds_text(first['seconds'])}" if first["seconds"] else ""
        self.log(f"{self._position(first)}  {scores}{speed}")
        for row in rows:
            self._add_events(
                {
                    f"{score}/{row['split']}": row[score]
                    for score in (("loss", "accuracy", "f1") if classifies else ("loss",))
                },
                step=row["step"],
            )

    def measurement(self, row: dict[str, Any], text: str, scalars: dict[str, float]) -> None:
        """Reports what was measured between two steps: `text` in a line, `scalars` as events."""
        self.log(f"{self._position(row)}  {text}")
        self._add_events(scalars, step=row["step"])

    def batch_losses(self, losses: LossHistory) -> None:
        """Adds an event: the mean loss of the steps since the last one, at most the last 100."""
        if self._events is None or not (steps := losses.since(self._last_loss)):
            return
        self._last_loss = steps[-1].step
        self._add_events({"loss/batch": mean_loss(steps)}, step=self._last_loss)

    @staticmethod
    def _position(row: dict[str, Any]) -> str:
        """Where in the run a row is, always as wide."""
        return f"epoch {row['epoch']:>7.3g}  step {row['step']:>7,}"

    def log(self, text: str) -> None:
        """Writes a line above the bar, folded where it is too long."""
        self._heartbeat.said()
        log_line(self._console, text)

    def _add_events(self, scalars: dict[str, float], *, step: int) -> None:
        if self._events is not None:
            for name, value in scalars.items():
                self._events.add_scalar(name, value, step)


def event_writer(log_dir: Path | str | None, run: str, step: int) -> Any:
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
    return SummaryWriter(Path(log_dir) / run, purge_step=step + 1 if step else None)


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
