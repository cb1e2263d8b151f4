"""Runs near the critical batch size with the noise scale measured along them."""

from __future__ import annotations

import math
from typing import Protocol

import pandas as pd

from noisescale.statistics.critical_batch.goal_table import fastest_runs, fit_goals, of_goal
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.critical_batch.goal_run import GoalCell, GoalRun, run_to_goal
from noisescale.studies.critical_batch.tuning import SLACK
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.tasks import Tasks
from noisescale.training.tracking.noise import NoiseTracking

NOISE_FOLDER = "noise"
NUM_PROBES = 16  # of B_noise
LEAST_EXAMPLES = 16


class MakeCell(Protocol):
    """A run's folder and configuration; folder: that of its kind."""

    def __call__(
        self, size: int, rate: float, seed: int, max_steps: int, *, folder: str
    ) -> Cell: ...


def run_noise_cells(
    tasks: Tasks,
    config: CriticalBatchConfig,
    table: pd.DataFrame,
    goals: tuple[float, ...],
    num_examples: int,
    make_cell: MakeCell,
) -> list[GoalRun]:
    """A run of each seed at the batch size tried that is nearest to B_crit of the lowest goal reached.

    table: the rows of steps_to_goal.csv, whose fastest rate they take. num_examples: of the training set.
    None where the configuration asks for none, no goal is reached, or there are too few examples.
    """
    examples = min(config.noise_examples or 0, num_examples)
    fastest = fastest_runs(table)
    fastest = fastest[fastest["censored"] == 0]
    if examples < LEAST_EXAMPLES or fastest.empty:
        return []
    goal = float(fastest["goal"].min())
    fit = fit_goals(table)[goal]
    chosen = of_goal(fastest, goal)
    middle = chosen["batch_size"].median()
    wanted = fit.critical_batch_size.value if fit.resolved else middle
    size = min(chosen["batch_size"], key=lambda one: abs(math.log(one / wanted)))
    chosen = chosen[chosen["batch_size"] == size]
    rate = float(chosen["learning_rate"].iloc[0])
    budget = math.ceil(SLACK * float(chosen["steps"].max()))
    waiting = set()
    for seed in range(config.num_seeds):
        tracking = NoiseTracking(
            num_examples=examples,
            hessian=True,
            num_probes=NUM_PROBES,
            hessian_examples=examples // 4,
            seed=seed,
        )
        cell = make_cell(int(size), rate, seed, budget, folder=f"{NOISE_FOLDER}-{examples}")
        goal_cell = GoalCell(cell=cell, goals=goals, split=config.split, noise=tracking)
        waiting.add(tasks.submit(run_to_goal, goal_cell))
    found: list[GoalRun] = []
    while waiting:
        done = f"{len(found)} of {config.num_seeds} done"
        tasks.progress.activity(f"noise scale along runs at B = {size}, lr {rate:g}: {done}")
        for future in tasks.wait(waiting):
            waiting.remove(future)
            if (error := tasks.error(future)) is not None:
                tasks.failed("a run with the noise scale along it", error)
            else:
                found.append(future.result())
    return sorted(found, key=lambda run: run.summary["seed"])
