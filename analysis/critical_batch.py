"""What is the critical batch size, and what predicts it? Fits, predictions and branches as tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import Runs, analysis
from noisescale.goal_table import best_rates, fastest_runs, fit_goals, fit_laws, fits_table, laws_table
from noisescale.run_tables import (
    BRANCHES,
    PREDICTED,
    STEPS_TO_GOAL,
    estimate_columns,
    read_losses,
    read_noise,
)
from noisescale.store import read_json

MEASURED = ("mnist", "quadratic")


def branch_rows(folder: Path) -> dict[str, Any]:
    """What the branches from one checkpoint say, and the noise scale measured at it."""
    found = re.fullmatch(r"goal([\d.]+)-seed(\d+)", folder.name)
    assert found is not None
    goal, seed = float(found[1]), int(found[2])
    summary = read_json(folder / "branch.json") or {}
    base = folder.parent.parent / f"base-{seed}"
    losses = read_losses(base)
    step = int(losses["step"][losses["loss"] <= goal].iloc[0])
    noise = next(row for row in read_noise(base) if row["step"] == step)
    found_size = summary["critical_batch_size"]
    return {
        "goal": goal,
        "seed": seed,
        "step": step,
        "start_loss": summary["start_loss"],
        "examples": summary["examples"],
        "tolerance": summary["tolerance"],
        "branch": found_size["value"],
        "branch_low": found_size["low"],
        "branch_high": found_size["high"],
        **{name: noise[name] for name in estimate_columns("simple", "full")},
    }


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from, of the parts that are there."""
    parents = {parent for folder, _ in runs for parent in folder.parents}
    fronts = {path.name: path for path in parents if (path / STEPS_TO_GOAL).exists()}
    branches = sorted(path for path in parents if (path / BRANCHES).exists())
    names = [name for name in MEASURED if name in fronts]
    steps = {name: pd.read_csv(fronts[name] / STEPS_TO_GOAL) for name in names}
    fits, rates, laws = [], [], []
    for name in names:
        of_goals = fit_goals(steps[name])
        best = best_rates(steps[name])
        fits.append(fits_table(of_goals).assign(problem=name))
        rates.append(best.assign(problem=name))
        laws.append(laws_table({goal: fit_laws(best, goal) for goal in of_goals}).assign(problem=name))
    found = {
        "steps_to_goal": _problem_first(
            pd.concat(table.assign(problem=name) for name, table in steps.items())
        ),
        "fastest": _problem_first(
            pd.concat(fastest_runs(table).assign(problem=name) for name, table in steps.items())
        ),
        "fits": _problem_first(pd.concat(fits)),
        "learning_rates": _problem_first(pd.concat(rates)),
        "laws": _problem_first(pd.concat(laws)),
        "predicted": _problem_first(
            pd.concat(pd.read_csv(fronts[name] / PREDICTED).assign(problem=name) for name in names)
        ),
    }
    if branches:
        rows = pd.DataFrame([branch_rows(folder) for folder in branches])
        found["branches"] = rows.sort_values(["goal", "seed"], ascending=[False, True])
        found["branch_losses"] = pd.concat(
            pd.read_csv(folder / BRANCHES).assign(branch=folder.name) for folder in branches
        )
    return found


def _problem_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["problem", *(name for name in table if name != "problem")]]


critical_batch = analysis(
    "critical_batch", tables, help="Tables of the critical batch size from the experiment's runs."
)
