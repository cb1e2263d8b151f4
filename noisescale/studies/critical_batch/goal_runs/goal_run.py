"""One run to goals: it ends once its smoothed loss has reached the lowest of them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescale.statistics.critical_batch.curves.steps_to_goal import smoothed_losses, steps_to_goal
from noisescale.studies.critical_batch.config import GoalSplit
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import (
    LossCurve,
    ShortRun,
    is_stored,
    looks,
    read_run,
    short_run,
)
from noisescale.training.records.checkpoint import Checkpoint, save_checkpoint
from noisescale.training.records.folder import STEP_CHECKPOINTS
from noisescale.training.records.tables import noise_table
from noisescale.training.records.weight_files import read_weights
from noisescale.training.tracking.noise import NoiseTracker, NoiseTracking
from noisescale.training.tracking.rows import is_due
from noisescale.training.trainer import Training

if TYPE_CHECKING:
    import pandas as pd

LOOKS_PER_DECADE = 24  # a tenth more steps each, over five of which or so losses are smoothed


@dataclass(frozen=True, kw_only=True)
class GoalCell:
    """A run that ends once its smoothed loss has reached the lowest goal, or at its last step.

    goals: descending; none: to its last step. split: whose loss. noise: what of the noise scale is
    measured along it; then a checkpoint is kept where each goal is first seen reached, and a
    measurement made there. part: which measurements it makes, of a run that is made several times
    because they take far longer than it: (0, 2) is every other one from the first, and those where
    goals are reached.
    """

    cell: Cell
    goals: tuple[float, ...]
    split: GoalSplit = "train"
    noise: NoiseTracking | None = None
    part: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class GoalRun(ShortRun):
    """A finished run, and when its loss reached a goal.

    others: folders of the same run with other measurements along it.
    """

    others: tuple[Path, ...] = ()

    def steps(self, goal: float) -> float:
        """Updates to the goal, of the smoothed loss and interpolated; infinity if not reached."""
        steps = steps_to_goal(*self._smoothed, goal)
        return math.inf if steps is None else steps

    @property
    def has_diverged(self) -> bool:
        """Whether a loss was not finite."""
        return self.summary["diverged_at_step"] is not None

    @property
    def seen(self) -> float:
        """The last step at which the smoothed loss is known: a goal not reached takes more."""
        return float(self._smoothed[0][-1])

    @cached_property
    def noise(self) -> pd.DataFrame:
        """The rows of noise.csv, of a run with the noise measured along it."""
        return noise_table((self.path, *self.others))

    @cached_property
    def _smoothed(self) -> tuple[np.ndarray, np.ndarray]:
        return smoothed_losses(self.losses["step"].to_numpy(), self.losses["loss"].to_numpy())


def run_to_goal(goal_cell: GoalCell) -> GoalRun:
    """The run, computed in its folder unless it is there already; see `short_run`."""
    short_run(goal_cell.cell, partial(_course, goal_cell), split=goal_cell.split)
    return read_goal_run(goal_cell.cell.path)


def stored_goal_run(goal_cell: GoalCell) -> GoalRun | None:
    """The run where it lies finished in its folder."""
    cell = goal_cell.cell
    return read_goal_run(cell.path) if is_stored(cell) else None


def read_goal_run(path: Path) -> GoalRun:
    """A finished run; RunFolderError where it is damaged."""
    return GoalRun(**vars(read_run(path, needed={"best_loss"}, what="run to a goal")))


def _course(goal_cell: GoalCell, training: Training, curve: LossCurve) -> dict[str, Any]:
    cell, goals = goal_cell.cell, goal_cell.goals
    if cell.start is not None:
        _take_over_optimizer(training, cell.start)
    tracker = None
    if goal_cell.noise is not None:
        tracker = NoiseTracker(training, cell.path, goal_cell.noise)

    waiting = list(goals)  # for the loss as it is seen, before it is smoothed
    part, num_parts = goal_cell.part
    num_due = 0
    for step in looks(
        training, curve, lambda step: is_due(step, "log", per_decade=LOOKS_PER_DECADE)
    ):
        _, loss = curve.points[-1]
        passed = [goal for goal in waiting if loss <= goal]
        waiting = waiting[len(passed) :]
        if tracker is not None:
            is_ours = bool(passed) and part == 0
            if is_ours and step > 0:
                path = cell.path / STEP_CHECKPOINTS / f"step-{step}.pt"
                save_checkpoint(training.checkpoint(), path)
            if tracker.due:
                is_ours |= num_due % num_parts == part
                num_due += 1
            if is_ours:
                tracker.measure()
        if step > 0 and goals and not waiting and _reached(curve, goals[-1]):
            break

    if tracker is not None:
        tracker.flush()
    finite = [loss for _, loss in curve.points if math.isfinite(loss)]
    return {
        "batch_size": cell.training.batch_size,
        "learning_rate": cell.training.learning_rate,
        "seed": cell.training.seed,
        "steps": training.step,
        "examples_seen": training.examples_seen,
        "diverged_at_step": training.diverged_at_step,
        "best_loss": min(finite) if finite else None,
    }


def _reached(curve: LossCurve, goal: float) -> bool:
    """Whether the smoothed loss has."""
    steps, losses = zip(*curve.points, strict=True)
    return steps_to_goal(*smoothed_losses(steps, losses), goal) is not None


def _take_over_optimizer(training: Training, start: Path) -> None:
    """Takes momenta and second moments, not the rate, of the checkpoint a run branches off from."""
    _, stored = read_weights(start, device=training.device)
    state = training.optimizer.state_dict()
    if isinstance(stored, Checkpoint) and stored.training.optimizer == training.config.optimizer:
        training.optimizer.load_state_dict(
            {**state, "state": copy.deepcopy(stored.optimizer["state"])}
        )
