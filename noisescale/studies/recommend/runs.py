"""The runs of a recommendation: one for each learning rate tried, and the one that is tracked."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console

from noisescale.statistics.estimate import jsonable
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve, ShortRun, looks, read_run, short_run
from noisescale.studies.recommend.config import Budget
from noisescale.studies.recommend.look import LOOKS
from noisescale.training.console import Heartbeat, duration_text
from noisescale.training.records.checkpoint import save_checkpoint
from noisescale.training.records.folder import CHECKPOINT
from noisescale.training.tracking.noise import NoiseTracker, NoiseTracking
from noisescale.training.tracking.rows import is_due
from noisescale.training.trainer import Training

# what a run may take beside what is planned, before it is cut: others run on the machine too
PATIENCE = 2.0
SLACK = 0.02  # of the budget, which a run may take besides: a short one is not worth cutting


def rate_run(
    cell: Cell, budget: Budget, *, seconds: float, num_evaluated: int, console: Console | None
) -> ShortRun:
    """A learning rate's run, cut where it takes more than `PATIENCE` times the seconds planned."""
    most = cell.training.max_steps or 1
    spacing = max(1, most // LOOKS)
    started = budget.now()

    def course(training: Training, curve: LossCurve) -> dict[str, Any]:
        cut = False

        def due(step: int) -> bool:
            nonlocal cut
            took = budget.now() - started
            cut = took > PATIENCE * seconds + SLACK * budget.seconds
            return cut or step % spacing == 0

        with _heartbeat(console, training, budget, started):
            for _ in looks(training, curve, due):
                if cut or not math.isfinite(curve.points[-1][1]):
                    break
        cut &= not training.finished
        return _summary(training, curve, cut=cut, took=budget.now() - started)

    short_run(cell, course, num_evaluated=num_evaluated, threads=nullcontext())
    return _read(cell.path)


def tracked_run(
    cell: Cell,
    tracking: NoiseTracking,
    budget: Budget,
    *,
    num_evaluated: int,
    console: Console | None,
) -> ShortRun:
    """The run along which the noise is measured, cut where the time is up.

    It keeps a checkpoint of where it ended.
    """
    started = budget.now()

    def course(training: Training, curve: LossCurve) -> dict[str, Any]:
        tracker = NoiseTracker(training, cell.path, tracking)
        cut = False
        slowest = 0.0  # seconds of a measurement, of which the last one must still fit

        def due(step: int) -> bool:
            nonlocal cut
            cut = budget.left < slowest
            return cut or is_due(step, "log")

        with _heartbeat(console, training, budget, started):
            for _ in looks(training, curve, due):
                before = budget.now()
                if tracker.due or (cut and not training.finished):
                    tracker.measure()
                    slowest = max(slowest, budget.now() - before)
                if cut or not math.isfinite(curve.points[-1][1]):
                    break
        tracker.flush()
        save_checkpoint(training.checkpoint(), cell.path / CHECKPOINT)
        cut &= not training.finished
        return _summary(training, curve, cut=cut, took=budget.now() - started)

    short_run(cell, course, num_evaluated=num_evaluated, threads=nullcontext())
    return _read(cell.path)


def _heartbeat(
    console: Console | None, training: Training, budget: Budget, started: float
) -> Heartbeat:
    """Says how far a run is, on terminals too: no bar shows it."""

    def text() -> str:
        took = duration_text(budget.now() - started)
        return f"  step {training.step:,} of {training.num_steps:,}, {took}"

    return Heartbeat(console or Console(quiet=True), text, on_terminals=True)


def _summary(training: Training, curve: LossCurve, *, cut: bool, took: float) -> dict[str, Any]:
    """A run's numbers; `took`: all its seconds, by the budget's clock."""
    return {
        "batch_size": training.batch_size,
        "learning_rate": training.config.learning_rate,
        "seed": training.config.seed,
        "steps": training.step,
        "examples_seen": training.examples_seen,
        "diverged_at_step": training.diverged_at_step,
        "final_loss": jsonable(curve.points[-1][1]),
        "cut": cut,
        "took": took,
    }


def _read(path: Path) -> ShortRun:
    return read_run(
        path, needed={"took", "cut", "diverged_at_step"}, what="run of a recommendation"
    )
