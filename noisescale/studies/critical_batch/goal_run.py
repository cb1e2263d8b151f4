"""One run to the goals: the course of its loss on a fixed subset, in a folder of its own."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from noisescale.errors import RunFolderError
from noisescale.problems.problem import Problem, as_examples
from noisescale.problems.sampling import select, split_data
from noisescale.statistics.critical_batch.steps_to_goal import smoothed_losses, steps_to_goal
from noisescale.studies.critical_batch.config import GoalSplit
from noisescale.studies.jobs.cell import Cell, cell_problem, cell_record, one_thread
from noisescale.training.evaluation import mean_loss
from noisescale.training.records.checkpoint import Checkpoint, save_checkpoint
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    STEP_CHECKPOINTS,
    SUMMARY,
    RunFolder,
    read_json,
    write_json,
    write_table,
)
from noisescale.training.records.tables import LOSSES, read_losses
from noisescale.training.records.weights import read_weights
from noisescale.training.tracking.noise import NoiseTracker, NoiseTracking
from noisescale.training.tracking.rows import is_due
from noisescale.training.trainer import Training

EVALUATED = 2000  # random examples on which the loss is followed
LOOKS_PER_DECADE = 24
NEEDED = {
    "batch_size",
    "learning_rate",
    "seed",
    "steps",
    "best_loss",
    "seconds",
    "environment",
    "finished",
}


@dataclass(frozen=True, kw_only=True)
class GoalCell:
    """A run that ends once its smoothed loss has reached the lowest goal, or at its configuration's end.

    goals: descending; none: to its configuration's end. split: whose loss. noise: what of the noise scale is
    measured along it; then a checkpoint is kept where each goal is first seen reached, and a measurement
    made there.
    """

    cell: Cell
    goals: tuple[float, ...]
    split: GoalSplit = "train"
    noise: NoiseTracking | None = None


@dataclass(frozen=True)
class GoalRun:
    """A finished run: its summary, its losses (step, loss), and its folder."""

    summary: dict[str, Any]
    losses: pd.DataFrame
    path: Path

    def steps(self, goal: float) -> float:
        """Updates to the goal, of the smoothed loss and interpolated; infinity where it was not reached."""
        found = steps_to_goal(*self._smoothed, goal)
        return math.inf if found is None else found

    @property
    def seen(self) -> float:
        """The last step at which the smoothed loss is known: a goal not reached takes more."""
        return float(self._smoothed[0][-1])

    @cached_property
    def _smoothed(self) -> tuple[np.ndarray, np.ndarray]:
        return smoothed_losses(self.losses["step"].to_numpy(), self.losses["loss"].to_numpy())


def run_to_goal(goal_cell: GoalCell) -> GoalRun:
    """The run, computed in its folder unless it is there already, with one thread of the CPU.

    Waits where another process is at the same one. Raises RunFolderError where the folder holds another.
    """
    cell = goal_cell.cell
    with one_thread(), RunFolder(cell.path, cell_record(cell), wait=True) as folder:
        if folder.state != "finished":
            _compute(goal_cell)
    return read_goal_run(cell.path)


def _compute(goal_cell: GoalCell) -> None:
    cell, noise = goal_cell.cell, goal_cell.noise
    problem = cell_problem(cell)
    training = Training(problem, cell.training)
    if cell.start is not None:
        _take_over_optimizer(training, cell.start)
    look = Look(problem, goal_cell.split)
    tracker = None if noise is None else NoiseTracker(training, cell.path, noise)
    losses = [(0, look.at(training.model))]
    waiting = [goal for goal in goal_cell.goals if not losses[0][1] <= goal]
    if tracker is not None:
        tracker.measure()
    for step in training:
        due = is_due(step, "log", per_decade=LOOKS_PER_DECADE) or training.finished
        if not due:
            continue
        losses.append((step, look.at(training.model)))
        passed = [goal for goal in waiting if losses[-1][1] <= goal]
        waiting = waiting[len(passed) :]
        if tracker is not None and passed:
            path = cell.path / STEP_CHECKPOINTS / f"step-{step}.pt"
            save_checkpoint(training.checkpoint(), path)
        if tracker is not None and (passed or tracker.due):
            tracker.measure()
        if goal_cell.goals and not waiting:
            smoothed = smoothed_losses(*zip(*losses, strict=True))
            if steps_to_goal(*smoothed, goal_cell.goals[-1]) is not None:
                break
    finite = [loss for _, loss in losses if math.isfinite(loss)]
    summary = {
        "batch_size": cell.training.batch_size,
        "learning_rate": cell.training.learning_rate,
        "seed": cell.training.seed,
        "steps": training.step,
        "examples_seen": training.examples_seen,
        "diverged_at_step": training.diverged_at_step,
        "best_loss": min(finite) if finite else None,
        "num_evaluated": look.examples.num_examples,
        "seconds": training.seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "notes": list(cell.notes),
        "environment": environment(cell.device),
    }
    table = pd.DataFrame(losses, columns=["step", "loss"])
    write_table(cell.path / LOSSES, table)
    write_json(cell.path / SUMMARY, summary)


def _take_over_optimizer(training: Training, start: Path) -> None:
    """Momenta and second moments of the checkpoint a run branches off from; not its rate."""
    _, stored = read_weights(start, device=training.device)
    state = training.optimizer.state_dict()
    if isinstance(stored, Checkpoint) and stored.training.optimizer == training.config.optimizer:
        training.optimizer.load_state_dict(
            {**state, "state": copy.deepcopy(stored.optimizer["state"])}
        )


class Look:
    """The mean loss on a fixed random subset of a split, the same for every run of a problem."""

    def __init__(self, problem: Problem, split: GoalSplit) -> None:
        self._loss = problem.loss
        whole = as_examples(split_data(problem, split)).num_examples
        self.examples = select(problem, split=split, num_examples=min(EVALUATED, whole)).examples

    def at(self, model: nn.Module) -> float:
        return mean_loss(model, self._loss, self.examples)


def read_goal_run(path: Path) -> GoalRun:
    """A finished run; RunFolderError where it is damaged."""
    summary = read_json(path / SUMMARY) or {}
    if missing := sorted(NEEDED - set(summary)):
        raise RunFolderError(
            f"{path / SUMMARY} lacks {', '.join(missing)}, so it is no run to a goal: delete it and run again"
        )
    return GoalRun(summary, read_losses(path), path)
