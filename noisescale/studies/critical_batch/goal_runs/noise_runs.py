"""The noise scale along runs near the critical batch size, held against what is measured there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from noisescale.errors import Interrupted, MeasurementError
from noisescale.statistics.critical_batch.calibration.model import Scale
from noisescale.statistics.critical_batch.fit import CriticalBatchFit
from noisescale.statistics.critical_batch.goal_table import fastest_runs, of_goal
from noisescale.statistics.critical_batch.progress import up_to
from noisescale.statistics.critical_batch.recommendation import Recommendation, recommend
from noisescale.statistics.display import counted
from noisescale.statistics.estimate import (
    Estimate,
    estimate_columns,
    estimate_row,
    from_log_samples,
    quotient,
    undefined,
)
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.critical_batch.goal_runs.goal_run import (
    GoalCell,
    GoalRun,
    run_to_goal,
    stored_goal_run,
)
from noisescale.studies.critical_batch.goal_runs.start import LEAST_EXAMPLES, hessian_settings
from noisescale.studies.critical_batch.tuning import SLACK
from noisescale.studies.jobs.tasks import Tasks
from noisescale.training.console import duration_text
from noisescale.training.tracking.noise import NoiseTracking
from noisescale.training.tracking.rows import num_due

NOISE_FOLDER = "noise"
WHOLE = ((0, 1),)
# of a run whose measurements take far longer than it does: three in halves keep two processes busy
HALVES = ((0, 2), (1, 2))
Parts = tuple[tuple[int, int], ...]
QUANTITIES: tuple[Scale, ...] = ("simple", "full")
ESTIMATES = (
    "critical_batch_size",
    "start",
    "average",
    "by_progress",
    "end",
    "ratio",
    "ratio_by_progress",
)
PREDICTED_COLUMNS = (
    *("goal", "quantity", "batch_size", "learning_rate", "num_seeds", "covered"),
    *estimate_columns(*ESTIMATES),
)


class NoiseRuns(NamedTuple):
    """The runs along which the noise is measured, one for each seed, on so many examples."""

    batch_size: int
    learning_rate: float
    max_steps: int
    num_examples: int

    def folder(self, part: tuple[int, int]) -> str:
        """Of the runs with a part of the measurements, or with all."""
        name = f"{NOISE_FOLDER}-{self.num_examples}"
        number, of = part
        return name if of == 1 else f"{name}/part-{number + 1}-of-{of}"

    def tracking(self, seed: int) -> NoiseTracking:
        """What is measured along the run of a seed: on examples of its own."""
        return NoiseTracking(
            num_examples=self.num_examples,
            seed=seed,
            **hessian_settings(self.num_examples),
        )


def choose_noise_runs(
    config: CriticalBatchConfig,
    table: pd.DataFrame,
    fits: dict[float, CriticalBatchFit],
    num_examples: int,
) -> NoiseRuns | None:
    """Runs at the batch size tried that is nearest to B_crit of the lowest goal reached.

    None where the configuration wants none, no goal is reached, or there are too few examples.

    Args:
        config: of the measurement.
        table: the rows of steps_to_goal.csv, whose fastest rate the runs take.
        fits: to it, by goal.
        num_examples: of the training set.
    """
    examples = min(config.noise_examples or 0, num_examples)
    fastest = fastest_runs(table)
    fastest = fastest[fastest["censored"] == 0]
    if examples < LEAST_EXAMPLES or fastest.empty:
        return None
    goal = float(fastest["goal"].min())
    fit = fits[goal]
    runs = of_goal(fastest, goal)
    wanted = fit.critical_batch_size.value if fit.resolved else runs["batch_size"].median()
    size = min(runs["batch_size"], key=lambda size: abs(math.log(size / wanted)))
    runs = runs[runs["batch_size"] == size]
    return NoiseRuns(
        batch_size=int(size),
        learning_rate=float(runs["learning_rate"].iloc[0]),
        max_steps=math.ceil(SLACK * float(runs["steps"].max())),
        num_examples=examples,
    )


def make_noise_runs(
    tasks: Tasks, runs: NoiseRuns, cells: list[list[GoalCell]], seconds_an_example: float
) -> tuple[list[GoalRun], Interrupted | None]:
    """The runs that could be made, by seed, and the signal that ended them early, if one did.

    cells: the parts of each seed's run. seconds_an_example: that one measurement takes, about; nan
    where it is not known.
    """
    parts = [cell for of_seed in cells for cell in of_seed]
    stored = [stored_goal_run(cell) for cell in parts]
    finished = {run.path: run for run in stored if run is not None}
    to_make = [cell for cell, run in zip(parts, stored, strict=True) if run is None]
    if to_make:
        num_runs = sum(1 / cell.part[1] for cell in to_make)
        tasks.progress.log(_announcement(tasks, runs, math.ceil(num_runs), seconds_an_example))
    waiting = {tasks.submit(run_to_goal, cell) for cell in to_make}
    stopped = None
    try:
        while waiting:
            tasks.progress.activity(f"noise runs: {len(finished)} of {len(parts)} parts done")
            done = tasks.wait(waiting)
            waiting -= done
            for future in done:
                if (error := tasks.error(future)) is not None:
                    tasks.failed("a run with the noise scale along it", error)
                else:
                    run = future.result()
                    finished[run.path] = run
    except Interrupted as signal:
        stopped = signal
    made = [[finished.get(cell.cell.path) for cell in of_seed] for of_seed in cells]
    return [
        _together([run for run in of_seed if run is not None])
        for of_seed in made
        if None not in of_seed
    ], stopped


def _together(parts: list[GoalRun]) -> GoalRun:
    """A run with the measurements of all its parts."""
    first, *others = parts
    return replace(first, others=tuple(other.path for other in others))


def _announcement(tasks: Tasks, runs: NoiseRuns, num_runs: int, seconds_an_example: float) -> str:
    """What the noise runs are, what they will cost, and how to do without."""
    measurements = num_runs * (1 + num_due(0, runs.max_steps, "log"))
    cost = f"{measurements} measurements"
    if math.isfinite(seconds_an_example):
        seconds = measurements * runs.num_examples * seconds_an_example / tasks.num_at_once
        share = seconds / (seconds + tasks.progress.seconds_so_far)
        cost += f", about {duration_text(seconds)}, {share:.0%} of the whole"
    return (
        f"Optional, the noise scale along {counted(num_runs, 'run')} at B = {runs.batch_size}, "
        f"lr {runs.learning_rate:g}: {cost}. Ctrl-C prints the result without the rest of it; "
        "--no-noise leaves it out."
    )


def predicted_rows(goal: float, fit: CriticalBatchFit, runs: list[GoalRun]) -> list[dict[str, Any]]:
    """A row each for B_simple and B_noise: at the start, averaged up to the goal, and at the goal.

    average: over the steps, as McCandlish et al. 2018 do. by_progress: E_min/S_min of their (2.12),
    weighted by the progress made, which a step at batch size B makes as 1/(1 + 𝓑/B). Both are
    geometric means over the seeds that reach the goal; of one seed, its own. ratio,
    ratio_by_progress: B_crit over each. covered: the least share of the steps over which the noise
    scale is resolved; the rest is left out. No row where it is nowhere.
    """
    rows = []
    for quantity in QUANTITIES:
        courses = _courses(runs, goal, quantity)
        if not courses:
            continue
        average = _over_seeds([course.average for course in courses])
        progress = _over_seeds([course.critical_batch_size for course in courses])
        row: dict[str, Any] = {
            "goal": goal,
            "quantity": quantity,
            "batch_size": runs[0].summary["batch_size"],
            "learning_rate": runs[0].summary["learning_rate"],
            "num_seeds": len(courses),
            "covered": min(course.covered for course in courses),
        }
        estimates = {
            "critical_batch_size": fit.critical_batch_size,
            "start": _over_seeds([course.start for course in courses]),
            "average": average,
            "by_progress": progress,
            "end": _over_seeds([course.end for course in courses]),
            "ratio": quotient(fit.critical_batch_size, average),
            "ratio_by_progress": quotient(fit.critical_batch_size, progress),
        }
        for name, estimate in estimates.items():
            row |= estimate_row(name, estimate)
        rows.append(row)
    return rows


def _courses(runs: list[GoalRun], goal: float, quantity: Scale) -> list[Recommendation]:
    """What follows from the noise along each run that reaches the goal, where it is resolved."""
    courses = []
    for run in runs:
        steps = run.steps(goal)
        if math.isinf(steps):
            continue
        try:
            until = up_to(run.noise, steps)
            courses.append(recommend(until, quantity=quantity, geometry="plain"))
        except MeasurementError:
            continue
    return courses


def _over_seeds(estimates: list[Estimate]) -> Estimate:
    values = np.array([estimate.value for estimate in estimates])
    if len(estimates) == 1:
        return estimates[0]
    if not (values > 0).all():
        return undefined(num_samples=len(estimates))
    return from_log_samples(values)
