"""How often intervals hold B_crit of a task not seen, by simulated fronts of known effects.

    python -m experiments.coverage.new_task

Each task has nine runs to four goals; log(B_crit/𝓑) follows from what the runs know, an effect of
the task's own, and an error of the run's, most of which its goals have in common. The own effects
are normal, or have heavier tails, or the rate's part differs from task to task as well, which the
model knows nothing of.
"""

from __future__ import annotations

import math
from typing import Any

import click
import numpy as np
import pandas as pd
from rich.progress import track

from experiments.coverage.tables import TABLES, write_coverage
from noisescale.statistics.critical_batch.calibration.tasks import (
    TaskModel,
    coverage,
    is_near,
    regressors,
)

TRUE = {"log_rate": 0.4, "negative_curvature": 0.5, "log_loss": -0.25, "adaptive": 0.3}
OFFSET, BETWEEN, WITHIN = -0.3, 0.4, 0.2  # of the model; σ_u and σ_e
SHARED = 0.8  # of σ_e², between the goals of a run: about as it was found in the fronts
OWN = ("normal", "t with 4 degrees", "slopes of their own")
SLOPES = 0.2  # standard deviation of the rate's coefficient between tasks, in the last case
GOALS, SIZES, MULTIPLES = 4, (16, 64, 256), (0.25, 1.0, 2.0)
NUM_TASKS, NEW, LEVEL = (12, 24), 12, 0.9


def simulated(
    generator: np.random.Generator, *, num_tasks: int = 24, own: str = "normal", goals: int = GOALS
) -> pd.DataFrame:
    """A table of fronts, as `python -m analysis fronts` makes it."""
    runs = len(SIZES) * len(MULTIPLES)
    task, goal, run = (
        grid.ravel()
        for grid in np.meshgrid(
            np.arange(num_tasks), np.arange(goals), np.arange(runs), indexing="ij"
        )
    )
    effects = generator.standard_normal(num_tasks)
    if own == "t with 4 degrees":
        effects = generator.standard_t(4, num_tasks) / math.sqrt(2)  # of variance 1
    slopes = SLOPES * generator.standard_normal(num_tasks) if own == "slopes of their own" else 0
    level = np.exp(generator.normal(4, 1, num_tasks))
    rate = np.array(MULTIPLES)[run % 3] * np.exp(0.1 * generator.standard_normal(len(run)))
    table = pd.DataFrame(
        {
            "task": [f"task {number}" for number in task],
            "goal": 0.5**goal,
            "quantity": "simple",
            "geometry": "plain",
            "optimizer": np.array(["sgd", "momentum", "adaptive"])[task % 3],
            "batch_size": np.array(SIZES, dtype=float)[run // 3],
            "rate_over_best": rate,
            "relative_decrease": 0.15 * rate,
            "negative_curvature": generator.uniform(0, 0.4, len(run)),
            "relative_loss": 0.5 * 0.5**goal,
            "critical_batch_size": level[task] * 2.0**goal,
        }
    )
    known = regressors(table.assign(noise_scale=1.0))[list(TRUE)].to_numpy()
    logs = OFFSET + known @ np.array(list(TRUE.values())) + BETWEEN * effects[task]
    logs += (slopes * np.ones(num_tasks))[task] * np.log(rate)
    of_run = generator.standard_normal((num_tasks, runs))[task, run]
    logs += WITHIN * math.sqrt(SHARED) * of_run
    logs += WITHIN * math.sqrt(1 - SHARED) * generator.standard_normal(len(run))
    return table.assign(noise_scale=table["critical_batch_size"] / np.exp(logs))


def predicted(model: TaskModel, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the intervals of a model of other tasks, and whether they hold B_crit."""
    values = regressors(rows)[list(model.names)].to_numpy().tolist()
    known = [dict(zip(model.names, row, strict=True)) for row in values]
    logs = np.log(rows["noise_scale"].to_numpy()) + [model.log_ratio(row) for row in known]
    width = np.array(
        [
            model.half_width(row, near=bool(near), level=LEVEL)
            for row, near in zip(known, is_near(rows), strict=True)
        ]
    )
    found = rows.assign(low=np.exp(logs - width), high=np.exp(logs + width))
    return found.assign(covered=holds(found))


def holds(rows: pd.DataFrame) -> pd.Series[Any]:
    """1 where B_crit lies in the interval, else 0."""
    return rows["critical_batch_size"].between(rows["low"], rows["high"]).astype(int)


def dealt(rows: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """The same rows with the fronts dealt out anew among the tasks."""
    tasks = rows["task"].unique()
    other = dict(zip(tasks, generator.permutation(tasks), strict=True))
    of_front = rows.groupby(["task", "goal"])["critical_batch_size"].first()
    keys = zip(rows["task"].map(other), rows["goal"], strict=True)
    return rows.assign(critical_batch_size=[of_front[key] for key in keys])


def simulate(own: str, num_tasks: int, num_draws: int) -> dict[str, Any]:
    """A row: how often 90 % intervals hold B_crit of twelve new tasks, and how far they reach."""
    generator = np.random.default_rng(0)
    shares, shuffled, reach = [], [], []
    for _ in range(num_draws):
        table = simulated(generator, num_tasks=num_tasks, own=own)
        model = TaskModel.fitted(table, tuple(TRUE))
        found = predicted(model, simulated(generator, num_tasks=NEW, own=own))
        shares.append(coverage(found).value)
        others = dealt(found, generator)
        shuffled.append(coverage(others.assign(covered=holds(others))).value)
        reach.append(math.log((found["high"] / found["low"]).median()) / 2)
    return {
        "own": own,
        "tasks": num_tasks,
        "draws": num_draws,
        "coverage": np.mean(shares),
        "coverage_stderr": np.std(shares, ddof=1) / math.sqrt(num_draws),
        "factor": math.exp(np.mean(reach)),
        "coverage_shuffled": np.mean(shuffled),
    }


@click.command()
@click.option("--draws", "num_draws", type=click.IntRange(min=2), default=200, show_default=True)
def main(num_draws: int) -> None:
    """Write the table of coverages."""
    cases = [(own, num_tasks) for own in OWN for num_tasks in NUM_TASKS]
    rows = [simulate(*case, num_draws) for case in track(cases)]
    write_coverage(
        TABLES / "new_task.csv",
        rows,
        command=f"python -m experiments.coverage.new_task --draws {num_draws}",
        seeds="0",
    )


if __name__ == "__main__":
    main(prog_name="python -m experiments.coverage.new_task")
