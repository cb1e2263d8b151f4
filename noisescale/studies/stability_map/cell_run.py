"""One cell of a map: its run, and what the label of a run depends on."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from noisescale.problems.config import ProblemConfig
from noisescale.problems.factory import build_own_problem
from noisescale.problems.models import chance_loss
from noisescale.problems.problem import Problem, Source, held, num_examples_of, source_of
from noisescale.problems.sampling import select
from noisescale.statistics.stability.edge import Trajectory
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import (
    EVALUATED,
    LossCurve,
    ShortRun,
    is_stored,
    looks,
    read_run,
    short_run,
)
from noisescale.training.evaluation import evaluate, mean_loss
from noisescale.training.records.folder import nullable
from noisescale.training.run import what_is_trained
from noisescale.training.tracking.rows import is_due
from noisescale.training.trainer import Training

LOOKS = (
    50  # evenly along a run, so that no excursion of 2 % of it is missed, beside log-spaced ones
)
# Random examples of a look on the way, which is to see the loss rise to a multiple of its start; at
# start and end it is the loss of EVALUATED. With as many at each look, runs of large batches would
# look as long as they train
LOOKED_AT = 500
# not "test", which not every problem of one's own has
NEEDED = {"start_loss", "largest_loss", "chance_loss", "largest_share", "train"}


def run_cell(cell: Cell) -> ShortRun:
    """The cell's run, computed in its folder unless it is there already; see `short_run`."""
    short_run(cell, partial(_course, cell), num_evaluated=LOOKED_AT)
    return read_cell(cell.path)


def stored_cell(cell: Cell) -> ShortRun | None:
    """The cell's run where it lies finished in its folder."""
    return read_cell(cell.path) if is_stored(cell) else None


def read_cell(path: Path) -> ShortRun:
    """A finished cell; RunFolderError where it is damaged."""
    return read_run(path, needed=NEEDED, what="cell of a map")


def _course(cell: Cell, training: Training, curve: LossCurve) -> dict[str, Any]:
    ends = Ends(training.problem)
    for _ in looks(training, curve, lambda step: look_due(step, training.num_steps)):
        pass
    return cell_summary(
        cell,
        training.problem,
        ends,
        curve,
        training.model,
        steps=training.step,
        epochs=training.epoch,
        diverged_at_step=training.diverged_at_step,
    )


class Ends:
    """What a run's start and end are compared on.

    Args:
        problem: its model where the run starts.

    Attributes:
        examples: EVALUATED of the training examples, the same for every run of a problem.
        start: the mean loss on them.
    """

    def __init__(self, problem: Problem) -> None:
        size = min(EVALUATED, num_examples_of(problem.train))
        self.examples: Source = held(select(problem, num_examples=size).examples)
        self.start = mean_loss(problem.model, problem.loss, self.examples, problem.weights)


def look_due(step: int, total: int) -> bool:
    """Whether the loss is looked at after this step of `total`."""
    return is_due(step, "log") or step % max(total // LOOKS, 1) == 0


def cell_summary(
    cell: Cell,
    problem: Problem,
    ends: Ends,
    curve: LossCurve,
    model: nn.Module,
    *,
    steps: int,
    epochs: float,
    diverged_at_step: int | None,
) -> dict[str, Any]:
    """A cell's own part of its summary, from the losses on the way and the model at the end."""
    final = evaluate(model, problem.loss, ends.examples, problem.weights)
    test = None
    if problem.test is not None:
        test = evaluate(model, problem.loss, held(source_of(problem.test)), problem.weights)
    held_out = None
    if cell.fold is not None and problem.validation is not None:
        left_out = held(source_of(problem.validation))
        held_out = evaluate(model, problem.loss, left_out, problem.weights)
    losses = [loss for _, loss in curve.points]
    largest = max(losses, key=lambda loss: math.inf if math.isnan(loss) else loss)
    if losses[0] > 0:  # as a multiple of the start, which is of more examples
        largest *= ends.start / losses[0]
    numbers = {
        "start_loss": ends.start,
        "largest_loss": largest,
        "chance_loss": _chance(cell, ends),
        "largest_share": math.nan,
    }
    if final.confusion is not None:
        numbers["largest_share"] = float(final.confusion.sum(0).max() / final.confusion.sum())
    return {
        **what_is_trained(cell.problem),
        "batch_size": cell.training.batch_size,
        "learning_rate": cell.training.learning_rate,
        "seed": cell.training.seed,
        "steps": steps,
        "epochs": epochs,
        "diverged_at_step": diverged_at_step,
        **nullable(numbers),
        "train": final.stored(),
        **({} if test is None else {"test": test.stored()}),
        **({} if held_out is None else {"held_out": held_out.stored()}),
    }


def _chance(cell: Cell, ends: Ends) -> float:
    """The loss of the best constant output; of the user's own problem, of its model as made.

    No constant output is known of a model and a loss of any kind; an initialised model comes near
    one.
    """
    if isinstance(cell.problem, ProblemConfig):
        return chance_loss(cell.problem.loss, ends.examples.part(slice(None)).targets)
    if cell.start is None:
        return ends.start
    made = build_own_problem(cell.problem, device=cell.device)
    return mean_loss(made.model, made.loss, ends.examples, made.weights)


def trajectory(summary: dict[str, Any]) -> Trajectory:
    """What a cell's label depends on."""

    def number(value: float | None) -> float:
        return math.inf if value is None else value  # a loss that was not finite

    return Trajectory(
        start=number(summary["start_loss"]),
        largest=number(summary["largest_loss"]),
        final=number(summary["train"]["loss"]),
        chance=number(summary["chance_loss"]),
        # of a model without classes no share is known, and it is never called dead
        largest_share=math.nan if (share := summary["largest_share"]) is None else share,
        diverged_at_step=summary["diverged_at_step"],
    )
