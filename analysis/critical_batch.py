"""What is the critical batch size, and what predicts it? Fits, predictions and branches."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import Runs, analysis
from noisescale.statistics.critical_batch.goal_table import (
    best_rates,
    fastest_runs,
    fit_goals,
    fit_laws,
    fits_table,
    laws_table,
)
from noisescale.statistics.estimate import Estimate, estimate_columns, quotient
from noisescale.training.records.folder import read_json
from noisescale.training.records.tables import (
    BRANCHES,
    PREDICTED,
    STEPS_TO_GOAL,
    read_losses,
    read_noise,
)

MEASURED = ("mnist", "quadratic")


def branch_rows(folder: Path) -> dict[str, Any]:
    """What the branches from one checkpoint say, and the noise scale measured at it."""
    match = re.fullmatch(r"goal([\d.]+)-seed(\d+)", folder.name)
    assert match is not None
    goal, seed = float(match[1]), int(match[2])
    summary = read_json(folder / "branch.json") or {}
    base = folder.parent.parent / f"base-{seed}"
    losses = read_losses(base)
    step = int(losses["step"][losses["loss"] <= goal].iloc[0])
    noise = next(row for row in read_noise(base) if row["step"] == step)
    critical = summary["critical_batch_size"]
    return {
        "goal": goal,
        "seed": seed,
        "step": step,
        "start_loss": summary["start_loss"],
        "examples": summary["examples"],
        "tolerance": summary["tolerance"],
        "branch": critical["value"],
        "branch_low": critical["low"],
        "branch_high": critical["high"],
        **{name: noise[name] for name in estimate_columns("simple", "full")},
    }


def with_ratios(branches: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """The branches with B_crit of their goal and its ratio to theirs."""
    measured = fits.set_index("goal")
    rows = []
    for _, row in branches.iterrows():
        critical = measured.loc[row["goal"]]
        ratio = quotient(
            _estimate(critical, "critical_batch_size"),
            _estimate(row, "branch"),
        )
        found = {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
        rows.append(
            row.to_dict() | {"critical_batch_size": critical["critical_batch_size"]} | found
        )
    return pd.DataFrame(rows)


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
        laws.append(
            laws_table({goal: fit_laws(best, goal) for goal in of_goals}).assign(problem=name)
        )
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
        rows = rows.sort_values(["goal", "seed"], ascending=[False, True])
        found["branches"] = with_ratios(rows, _of_mnist(found["fits"]))
        found["branch_losses"] = pd.concat(
            pd.read_csv(folder / BRANCHES).assign(branch=folder.name) for folder in branches
        )
    return found


def _estimate(row: pd.Series[Any], name: str) -> Estimate:
    """From the columns name, name_low and name_high; None is nan."""
    parts = (row[name], row[f"{name}_low"], row[f"{name}_high"])
    value, low, high = (math.nan if one is None else float(one) for one in parts)
    return Estimate(value=value, stderr=math.nan, low=low, high=high, num_samples=1)


def _of_mnist(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["problem"] == "mnist"]


def _problem_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["problem", *(name for name in table if name != "problem")]]


critical_batch = analysis(
    "critical_batch", tables, help="Tables of the critical batch size from the experiment's runs."
)
