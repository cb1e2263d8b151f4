"""Which learning rate to try next: indices on a grid of factor 2, the losses reached so far in."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.learning_rate_law import best_rate
from noisescale.statistics.estimate import Estimate
from noisescale.studies.jobs.short_run import ShortRun
from noisescale.studies.recommend.look import Look, Plan

FACTOR = 2.0  # between neighbouring rates, in the end
STRIDE = 2  # grid steps between the first ones: the best is bracketed within a factor of 4, then 2
MOST_TRIED = 12  # rates: the bracket's two halves take 5 to 7 where the first one is near
MOST_DIVERGED = 8  # in a row, each a quarter of the last: 4⁸ covers a wrong first guess
AVERAGED = 0.25  # of the steps, over whose looks a run's loss is averaged
FEWEST_TRIED = 3  # whatever the time: with fewer nothing is known of the best


def next_index(losses: Mapping[int, float]) -> int | None:
    """The index to try next: the first, then wider by 4 until the best is between, then halves.

    Args:
        losses: reached in the same number of steps, by index; infinite where the run diverged or
            does not lower the loss.

    Returns:
        The index; None where the best rate lies between neighbours, or enough has been tried.
    """
    wanted = _wanted_index(losses)
    return None if len(losses) >= MOST_TRIED else wanted


def _wanted_index(losses: Mapping[int, float]) -> int | None:
    """What `next_index` gives, however many have been tried."""
    if not losses:
        return 0
    if all(map(math.isinf, losses.values())):
        return min(losses) - STRIDE if len(losses) < MOST_DIVERGED else None
    best = best_index(losses)
    if max(losses) == best:
        return best + STRIDE
    if min(losses) == best:
        return best - STRIDE
    return next((index for index in (best + 1, best - 1) if index not in losses), None)


def best_index(losses: Mapping[int, float]) -> int:
    """The index with the least loss, the smaller rate of two."""
    return min(sorted(losses), key=lambda index: losses[index])


class Search:
    """A search in progress: the runs by the index of their rate, and what follows from them.

    runs: by index. unfinished: whether it ended for want of time.
    """

    def __init__(self, look: Look, planned: Plan) -> None:
        self._look = look
        self._plan = planned
        self.runs: dict[int, ShortRun] = {}
        self.unfinished = False

    def rate(self, index: int) -> float:
        return float(f"{self._look.first_rate * FACTOR**index:.3g}")

    @property
    def losses(self) -> dict[int, float]:
        """Up to the last look that all runs have in common; infinite where one does not train."""
        last = min((_last_step(run) for run in self.runs.values() if trained(run)), default=0.0)
        losses = {
            index: loss_at(run, last) if trained(run) else math.inf
            for index, run in self.runs.items()
        }
        return {
            index: loss if loss < self._look.loss else math.inf for index, loss in losses.items()
        }

    @property
    def best(self) -> Estimate:
        """The vertex of a parabola through the best and its neighbours, see `best_rate`.

        Of the inverse of what the loss has fallen by, for a loss may be below zero.
        """
        losses = self.losses
        cost = {
            self.rate(index): 1 / (self._look.loss - loss) if math.isfinite(loss) else math.inf
            for index, loss in losses.items()
        }
        return best_rate([cost])

    @property
    def rate_of_run(self) -> float:
        """The best rate or, where it is at an end of those tried, the best of them."""
        vertex = self.best.value
        return self.rate(best_index(self.losses)) if math.isnan(vertex) else vertex

    def check(self) -> None:
        """MeasurementError where no rate trains."""
        losses = self.losses
        if not all(map(math.isinf, losses.values())):
            return
        rates = sorted(map(self.rate, losses))
        raise MeasurementError(
            f"no learning rate from {rates[0]:g} to {rates[-1]:g} lowers the loss below the "
            f"{self._look.loss:.4g} of the start in {self._plan.rate_steps:,} steps at "
            f"B = {self._look.batch_size:,}: give the --lr you train with, a larger --bs, or more "
            "--minutes"
        )

    @property
    def notes(self) -> list[str]:
        """What it could not do."""
        notes, planned = [], self._plan
        is_open = _wanted_index(self.losses) is not None
        if self.unfinished or (is_open and len(self.runs) >= MOST_TRIED):
            why = "for want of time" if self.unfinished else f"after {MOST_TRIED} rates"
            best = self.rate(best_index(self.losses))
            notes.append(
                f"the search of the learning rate ended {why}: {best:g} is the best of those tried"
            )
        if any(run.summary["cut"] for run in self.runs.values()):
            notes.append("learning rates are compared after fewer steps than planned")
        if planned.rate_steps < planned.run_steps:
            notes.append(
                f"learning rates were tried for {planned.rate_steps:,} steps; the best one for the "
                f"{planned.run_steps:,} of the run may be another"
            )
        return notes

    def table(self) -> pd.DataFrame:
        """The rows of learning_rates.csv, by rate."""
        losses = self.losses
        rows = [
            {
                "learning_rate": self.rate(index),
                "loss": losses[index],
                "steps": run.summary["steps"],
                "diverged_at_step": run.summary["diverged_at_step"],
            }
            for index, run in sorted(self.runs.items())
        ]
        table = pd.DataFrame(rows)
        return table.astype({"diverged_at_step": "Int64"})


def trained(run: ShortRun) -> bool:
    """Whether the run came to its end with a finite loss."""
    return run.summary["diverged_at_step"] is None and math.isfinite(run.losses["loss"].iloc[-1])


def _last_step(run: ShortRun) -> float:
    return float(run.losses["step"].iloc[-1])


def loss_at(run: ShortRun, step: float) -> float:
    """The mean over the last looks up to a step: near the edge of stability one alone jitters."""
    before = run.losses[run.losses["step"] <= step]  # a look at step 0 among them
    late = before[before["step"] > (1 - AVERAGED) * step]
    return float((late if len(late) else before.tail(1))["loss"].mean())
