"""What a run measures between its updates, and the tables in its folder that keep it."""

from __future__ import annotations

import math
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from noisescale.training.records.folder import write_table
from noisescale.training.trainer import Training

if TYPE_CHECKING:
    import pandas as pd

# steps between two measurements, or "log" for eight in each decade of steps
Every = int | Literal["log"]
SHORT = 500  # rows, of a table that is written in a moment
DECADES = 15  # of steps, which no run comes to the end of
PER_DECADE = 8  # neighbours are a third apart: a course in logarithms, at few measurements


def is_due(step: int, every: Every, *, per_decade: int = PER_DECADE) -> bool:
    """Whether a measurement falls on this step.

    On 0 and the multiples of `every`; for "log" on 0 and round(10^(k/per_decade)) for whole k.
    """
    if every != "log":
        return step % every == 0
    return step in _log_spaced(per_decade)


@cache
def _log_spaced(per_decade: int) -> frozenset[int]:
    """0 and the steps round(10^(k/per_decade)) of any run: asked of every step, so looked up."""
    return frozenset({0, *(round(10 ** (k / per_decade)) for k in range(DECADES * per_decade))})


def num_due(step: int, last: int, every: Every, *, per_decade: int = PER_DECADE) -> int:
    """How many measurements come after `step` up to `last`, which has one too, see `is_due`."""
    if last <= step:
        return 0
    if every != "log":
        return math.ceil(last / every) - step // every
    num_powers = math.ceil(per_decade * math.log10(last)) + 1
    due = {round(10 ** (power / per_decade)) for power in range(num_powers)} | {last}
    return sum(step < each <= last for each in due)


class Tracker(Protocol):
    """What a run measures between its updates, which it does not influence."""

    def is_at(self, step: int) -> bool:
        """Whether a measurement may fall on this step, as far as it can be told before."""

    @property
    def due(self) -> bool:
        """Whether the step just made is to be measured and has not been yet."""

    def num_left(self, last: int) -> int:
        """How many measurements are still to come up to the step `last`, about."""

    def measure(self) -> dict[str, Any]:
        """Appends a row for the present step and returns it; without a value, the reason."""

    def describe(self, row: dict[str, Any]) -> str:
        """The row in a line."""

    def scalars(self, row: dict[str, Any]) -> dict[str, float]:
        """What of it goes to a logger."""

    def flush(self) -> None:
        """Writes the rows that the files lack."""


class Rows:
    """A table in a run's folder, its rows along the run's steps.

    Args:
        training: the run.
        file: of the table.
        columns: of the file.
        rows: those that the run goes on from; what lies after its present step will come again.
    """

    def __init__(
        self,
        training: Training,
        file: Path,
        *,
        columns: tuple[str, ...],
        rows: list[dict[Any, Any]],
    ) -> None:
        self._training = training
        self._file = file
        self._columns = columns
        self._rows = [row for row in rows if row["step"] <= training.step] if training.step else []
        self._written_at = self._took = 0.0
        self._is_behind = False  # the file, of the rows

    @property
    def table(self) -> pd.DataFrame:
        """All rows so far."""
        import pandas as pd

        return pd.DataFrame(self._rows, columns=list(self._columns))

    def due(self, *, now: bool) -> bool:
        """Whether the step just made has no row yet, and one is due now or the run is finished."""
        measured = bool(self._rows) and self._rows[-1]["step"] == self._training.step
        return not measured and (now or self._training.finished)

    def add(self, *rows: dict[str, Any]) -> dict[str, Any]:
        """Appends rows, nan for what they lack, writes the file, and returns the last of them."""
        self._rows += [{name: row.get(name, math.nan) for name in self._columns} for row in rows]
        begun = time.monotonic()
        # a long table takes a while to write: it is written in a twentieth of the time at most
        if len(self._rows) <= SHORT or begun - self._written_at > 20 * self._took:
            self._write()
        else:
            self._is_behind = True
        return self._rows[-1]

    def flush(self) -> None:
        """Writes the rows that the file lacks, as before a checkpoint."""
        if self._is_behind:
            self._write()

    def _write(self) -> None:
        begun = time.monotonic()
        write_table(self._file, self.table)
        self._written_at = time.monotonic()
        self._took, self._is_behind = self._written_at - begun, False
