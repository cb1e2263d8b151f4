"""One cell of a sweep: a short run in a folder of its own, and what its table keeps of it."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from noisescale.errors import RunFolderError
from noisescale.problems.build import assemble_problem
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.problems.data.splits import Splits, load_splits
from noisescale.problems.factory import build_own_problem
from noisescale.problems.models import chance_loss
from noisescale.problems.problem import Problem, as_examples
from noisescale.problems.sampling import select
from noisescale.statistics.stability_edge import Trajectory
from noisescale.training.config import TrainConfig
from noisescale.training.evaluation import Evaluation, evaluate
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    SUMMARY,
    RunFolder,
    folder_state,
    nullable,
    read_summary,
    write_json,
    write_table,
)
from noisescale.training.records.tables import LOSSES
from noisescale.training.records.weights import apply_weights, read_weights
from noisescale.training.tracking.rows import is_due
from noisescale.training.trainer import Training

EVALUATED = 2000  # random training examples on which the loss is followed
NEEDED = {"learning_rate", "seed", "start_loss", "largest_loss", "chance_loss", "largest_share"}
LOOKS = 50  # at equal distances, beside eight in each decade of steps


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A run of a sweep, all that another process needs to know of it.

    path: its folder. start: the checkpoint it starts from; None: from initialisation under its seed.
    """

    path: Path
    problem: ProblemConfig | FactoryConfig
    training: TrainConfig
    start: Path | None = None
    device: str = "cpu"
    data_dir: Path | None = None
    notes: tuple[str, ...] = ()


def run_cell(cell: Cell) -> dict[str, Any]:
    """The cell's summary, computed in its folder unless it is there already.

    Waits where another process is at the same cell. On a CPU it computes with one thread, so that its
    numbers do not depend on where it runs. Raises RunFolderError where the folder holds something else.
    """
    if folder_state(cell.path, cell_record(cell)) == "finished":
        return read_cell(cell.path)
    with (
        one_thread(),
        RunFolder(cell.path, cell_record(cell), wait=True) as folder,
    ):
        if folder.state == "finished":
            return read_cell(cell.path)
        problem = cell_problem(cell)
        training = Training(problem, cell.training)
        course = Course(cell, problem)
        course.look(0, training.model)
        total = math.ceil(
            training.last_epoch * training.examples.num_examples / training.batch_size
        )
        for step in training:
            if look_due(step, total) or training.finished:
                course.look(step, training.model)
        return course.finish(
            training.model,
            steps=training.step,
            epochs=training.epoch,
            diverged_at_step=training.diverged_at_step,
            seconds=training.seconds,
        )


def look_due(step: int, total: int) -> bool:
    """Whether the loss is looked at after this step of so many."""
    return is_due(step, "log") or step % max(total // LOOKS, 1) == 0


class Course:
    """The course of a cell's loss on a fixed subset, and the files it ends in."""

    def __init__(self, cell: Cell, problem: Problem) -> None:
        self.cell = cell
        self.problem = problem
        self.subset = select(
            problem, num_examples=min(EVALUATED, as_examples(problem.train).num_examples)
        )
        self._losses: list[tuple[int, float]] = []
        self._latest: Evaluation | None = None

    def look(self, step: int, model: nn.Module) -> None:
        self._latest = evaluate(model, self.problem.loss, self.subset.examples)
        self._losses.append((step, self._latest.loss))

    def finish(
        self,
        model: nn.Module,
        *,
        steps: int,
        epochs: float,
        diverged_at_step: int | None,
        seconds: float,
    ) -> dict[str, Any]:
        """Writes the losses and, last, the summary; returns the summary."""
        assert self._latest is not None
        assert self.problem.test is not None
        cell, final = self.cell, self._latest
        assert isinstance(cell.problem, ProblemConfig)
        losses = [loss for _, loss in self._losses]
        test = evaluate(model, self.problem.loss, as_examples(self.problem.test))
        largest = max(losses, key=lambda loss: math.inf if math.isnan(loss) else loss)
        numbers = {
            "start_loss": losses[0],
            "largest_loss": largest,
            "chance_loss": chance_loss(cell.problem.loss, self.subset.examples.targets),
            "largest_share": float(final.confusion.sum(0).max() / final.confusion.sum()),
        }
        summary = {
            "dataset": cell.problem.dataset,
            "pixel_scale": cell.problem.pixel_scale,
            "model": cell.problem.model,
            "batch_size": cell.training.batch_size,
            "learning_rate": cell.training.learning_rate,
            "seed": cell.training.seed,
            "steps": steps,
            "epochs": epochs,
            "diverged_at_step": diverged_at_step,
            **nullable(numbers),
            "train": nullable({"loss": final.loss, "accuracy": final.accuracy, "f1": final.f1}),
            "test": nullable({"loss": test.loss, "accuracy": test.accuracy, "f1": test.f1}),
            "num_evaluated": self.subset.examples.num_examples,
            "seconds": seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "notes": list(cell.notes),
            "environment": _environment(cell.device),
        }
        table = pd.DataFrame(self._losses, columns=["step", "loss"])
        write_table(cell.path / LOSSES, table)
        write_json(cell.path / SUMMARY, summary)
        return summary


def cell_record(cell: Cell) -> dict[str, Any]:
    """The content of the cell's config.json."""
    return {
        "problem": cell.problem.to_dict(),
        "training": cell.training.to_dict(),
        "notes": list(cell.notes),
    }


def read_cell(path: Path) -> dict[str, Any]:
    """A finished cell's summary; RunFolderError where it is damaged."""
    summary = read_summary(path)
    if missing := sorted(NEEDED - set(summary)):
        raise RunFolderError(
            f"{path / SUMMARY} lacks {', '.join(missing)}, so it is no cell's: delete it and run again"
        )
    return summary


def trajectory(summary: dict[str, Any]) -> Trajectory:
    """What a cell's label depends on."""

    def number(value: float | None) -> float:
        return math.inf if value is None else value  # a loss that was not finite

    return Trajectory(
        start=number(summary["start_loss"]),
        largest=number(summary["largest_loss"]),
        final=number(summary["train"]["loss"]),
        chance=number(summary["chance_loss"]),
        largest_share=summary["largest_share"],
        diverged_at_step=summary["diverged_at_step"],
    )


def cell_problem(cell: Cell) -> Problem:
    """The cell's problem, its model where the run starts; the data are read once a process."""
    if isinstance(cell.problem, FactoryConfig):
        problem = build_own_problem(cell.problem, seed=cell.training.seed, device=cell.device)
    else:
        splits = _splits(cell.problem, cell.data_dir, cell.device)
        problem = assemble_problem(cell.problem, splits, seed=cell.training.seed)
    if cell.start is not None:
        path, content = read_weights(cell.start, device=cell.device)
        apply_weights(problem.model, content, path=path)
    return problem


_environment = lru_cache(maxsize=1)(environment)


@lru_cache(maxsize=1)
def _splits(config: ProblemConfig, data_dir: Path | None, device: str) -> Splits:
    return load_splits(
        config.dataset,
        pixel_scale=config.pixel_scale,
        num_train=config.num_train,
        data_dir=data_dir,
        device=device,
    )


def file_digest(path: Path) -> str:
    """Sixteen hex digits of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread of the CPU while open."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
