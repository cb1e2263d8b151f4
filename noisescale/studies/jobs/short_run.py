"""A short run: trained in a folder of its own, with looks at its loss on a fixed subset on the way.

What a study makes of it, a label or the steps to a goal, is a function of those losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from noisescale.errors import RunFolderError
from noisescale.problems.problem import Problem, held, num_examples_of
from noisescale.problems.sampling import select, split_data
from noisescale.studies.jobs.cell import Cell, cell_problem, cell_record, one_thread
from noisescale.studies.jobs.folder import closing
from noisescale.training.evaluation import mean_loss
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    SUMMARY,
    RunFolder,
    folder_state,
    read_json,
    what_to_do,
    write_json,
    write_table,
    wrong_fields,
)
from noisescale.training.records.tables import LOSSES, read_losses
from noisescale.training.trainer import Training

if TYPE_CHECKING:
    import pandas as pd

EVALUATED = 2000  # random examples of a look: their mean is within 1/√2000, 2 %, of the spread
ALWAYS = {"batch_size", "learning_rate", "seed", "steps", "seconds", "finished", "environment"}


@dataclass(frozen=True)
class ShortRun:
    """A finished run: its summary, its losses (step, loss), and its folder."""

    summary: dict[str, Any]
    losses: pd.DataFrame
    path: Path


class LossCurve:
    """The mean loss on a fixed random subset of a split, the same one for every run of a problem.

    points: (step, loss) at each look so far.
    """

    def __init__(
        self, problem: Problem, split: str = "train", *, num_examples: int = EVALUATED
    ) -> None:
        size = min(num_examples, num_examples_of(split_data(problem, split)))
        self.examples = held(select(problem, split=split, num_examples=size).examples)
        self.points: list[tuple[int, float]] = []
        self._loss, self._weights = problem.loss, problem.weights

    def look(self, step: int, model: nn.Module) -> float:
        """The model's loss after this step, which is noted."""
        loss = mean_loss(model, self._loss, self.examples, self._weights)
        self.points.append((step, loss))
        return loss


def short_run(
    cell: Cell,
    course: Callable[[Training, LossCurve], dict[str, Any]],
    *,
    split: str = "train",
    num_evaluated: int = EVALUATED,
    threads: AbstractContextManager[None] | None = None,
) -> None:
    """Sees to it that a run lies finished in its folder, computed there unless it is already.

    Waits where another process is at the same run. On a CPU it computes with one thread, so that
    its numbers do not depend on where it runs.

    Args:
        cell: which run, and where.
        course: trains, as a rule by `looks`, and returns the study's own part of summary.json.
        split: whose loss is looked at.
        num_evaluated: examples of a look, at most.
        threads: open while it computes; None: one thread alone.

    Raises:
        RunFolderError: the folder holds something else.
    """
    if is_stored(cell):
        return
    record = cell_record(cell)
    with threads or one_thread(), RunFolder(cell.path, record, wait=True) as folder:
        if folder.state == "finished":
            return
        problem = cell_problem(cell)
        training = Training(problem, cell.training)
        curve = LossCurve(problem, split, num_examples=num_evaluated)
        numbers = course(training, curve)
        write_run(cell, curve, numbers, seconds=training.seconds, notes=training.notes)


def is_stored(cell: Cell) -> bool:
    """Whether the run lies finished in its folder; RunFolderError where another's does."""
    return folder_state(cell.path, cell_record(cell)) == "finished"


def looks(training: Training, curve: LossCurve, due: Callable[[int], bool]) -> Iterator[int]:
    """Trains, looks at the loss before the first update, after each `due` one, and at the end.

    Gives the step of each look; training ends early where the caller breaks off.
    """
    curve.look(0, training.model)
    yield 0
    for step in training.calls(due):
        if due(step) or training.finished:
            curve.look(step, training.model)
            yield step


def write_run(
    cell: Cell,
    curve: LossCurve,
    numbers: dict[str, Any],
    *,
    seconds: float,
    notes: Sequence[str] = (),
) -> None:
    """Writes losses.csv and, last, summary.json: a study's numbers and what every run records."""
    import pandas as pd

    summary = {
        **numbers,
        "num_evaluated": curve.examples.num_examples,
        **closing(seconds, [*cell.notes, *notes], _environment(cell.device)),
    }
    write_table(cell.path / LOSSES, pd.DataFrame(curve.points, columns=["step", "loss"]))
    write_json(cell.path / SUMMARY, summary)


def read_run(path: Path, *, needed: set[str], what: str) -> ShortRun:
    """The finished run in a folder; RunFolderError where its summary lacks what `what` needs."""
    summary = read_json(path / SUMMARY) or {}
    if wrong := wrong_fields(summary, sorted(needed | ALWAYS)):
        raise RunFolderError(
            f"{path / SUMMARY} lacks {', '.join(wrong)}, or holds something else there, so it is "
            f"no {what}: {what_to_do(path / SUMMARY)}"
        )
    return ShortRun(summary, read_losses(path), path)


_environment = lru_cache(maxsize=1)(environment)  # it asks Git, and every run of a process
