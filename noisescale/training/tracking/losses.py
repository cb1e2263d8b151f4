"""The loss of every step of a run, thinned so that the longest run has a small table."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Windows in each doubling of the steps: a curve as fine as a screen shows, in less than 2,000 rows
# up to a million steps
PER_DOUBLING = 128
# The last steps, which are kept one by one: within them a run that diverges does so
KEPT = 100


class Row(NamedTuple):
    """A window of steps, in the columns of a run's losses.csv.

    Attributes:
        step: its last one, from 1.
        epoch: passes over the training examples after it.
        num_steps: in the window.
        loss: their mean; of one step, the mean over the batch before the update.
        smallest: of their losses.
        largest: of their losses.
    """

    step: int
    epoch: float
    num_steps: int
    loss: float
    smallest: float
    largest: float

    def and_then(self, later: Row) -> Row:
        """This window with a single step after it."""
        count = self.num_steps + 1
        return Row(
            step=later.step,
            epoch=later.epoch,
            num_steps=count,
            loss=self.loss + (later.loss - self.loss) / count,
            smallest=min(self.smallest, later.smallest),
            largest=max(self.largest, later.largest),
        )


def window_width(step: int) -> int:
    """How many steps the window that `step` falls into has.

    1 up to step 256, 2 up to 512, 4 up to 1,024 and so on.
    """
    return 1 << max(0, ((step - 1) // PER_DOUBLING).bit_length() - 1)


def ends_window(step: int) -> bool:
    """Whether `step` is the last one of its window."""
    return step % window_width(step) == 0


class LossHistory:
    """The losses of a run's steps: the first ones, then means over growing windows, the last ones.

    Windows have the widths of `window_width`; the last 100 steps are kept one by one. So the rows
    are a function of the losses alone, whenever they are asked for and however often the run was
    resumed.
    """

    def __init__(self) -> None:
        self._windows: list[Row] = []  # the last one may still lack its end
        self._latest: list[Row] = []  # single steps, at most `KEPT`

    def add(self, step: int, *, epoch: float, loss: float) -> None:
        """Takes the loss of the next step."""
        self._latest.append(Row(step, epoch, 1, loss, loss, loss))
        if len(self._latest) > KEPT:
            self._file(self._latest.pop(0))

    @property
    def rows(self) -> list[Row]:
        """Windows and then single steps, ascending; each step is in one of them."""
        return [*self._windows, *self._latest]

    def since(self, step: int) -> list[Row]:
        """The single steps after this one, as far as they are still kept."""
        newest = self._latest[-1].step if self._latest else 0
        return self._latest[-(newest - step) :] if newest > step else []

    def state(self) -> Tensor:
        """The rows (n, 6) in float64, from which `restored` goes on."""
        return torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(Row._fields))

    @classmethod
    def restored(cls, state: Tensor | None) -> LossHistory:
        """The history with these rows; None: of a run whose losses were not kept so far."""
        history = cls()
        if state is None:
            return history
        rows = [_row(values) for values in state.tolist()]
        # the last steps are single, and no window ends among those before them
        single = KEPT if len(rows) > KEPT else len(rows)
        history._latest = rows[-single:] if single else []
        history._windows = rows[:-single] if single else []
        return history

    def _file(self, row: Row) -> None:
        """Puts a single step into the window that is open, or begins the next."""
        if self._windows and not ends_window(self._windows[-1].step):
            self._windows[-1] = self._windows[-1].and_then(row)
        else:
            self._windows.append(row)


def _row(values: list[Any]) -> Row:
    step, epoch, num_steps, *losses = values
    return Row(round(step), epoch, round(num_steps), *losses)


def mean_loss(rows: list[Row]) -> float:
    """The mean of single steps' losses."""
    return math.fsum(row.loss for row in rows) / len(rows)
