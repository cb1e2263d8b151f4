"""What is the critical batch size, and what predicts it? Fits, predictions and branches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import Committed, Runs, analysis
from noisescale.statistics.critical_batch.branches import at_base, branch_tolerances
from noisescale.statistics.critical_batch.fit import CriticalBatchFit
from noisescale.statistics.critical_batch.goal_table import (
    best_rates,
    fastest_runs,
    fit_goals,
    fit_laws,
    fits_table,
    laws_table,
)
from noisescale.statistics.estimate import (
    Estimate,
    estimate_columns,
    estimate_of,
    estimate_row,
    quotient,
)
from noisescale.training.records.folder import read_json
from noisescale.training.records.tables import (
    BRANCHES,
    PREDICTED,
    STEPS_TO_GOAL,
    read_losses,
    read_noise,
)

FRONTS = ("mnist", "quadratic")
MEASURED = ("steps_to_goal", "predicted", "branches", "branch_losses")
RATIOS = {"ratio": "average", "ratio_by_progress": "by_progress"}  # B_crit over each
CHECKPOINT = (
    *("goal", "seed", "step", "start_loss", "examples"),
    *estimate_columns("simple", "full"),
)  # what a row of branches.csv says of where they begin
TOLERANCE = 0.05  # share of the loss, of the figure
BRANCH = ("branch", "branch_low", "branch_high")


def branch_row(folder: Path) -> dict[str, Any]:
    """Where the branches of a folder begin, and the noise scale measured there."""
    match = re.fullmatch(r"goal([\d.]+)-seed(\d+)", folder.name)
    assert match is not None
    goal, seed = float(match[1]), int(match[2])
    summary = read_json(folder / "branch.json") or {}
    base = folder.parent.parent / f"base-{seed}"
    losses = read_losses(base)
    step = int(losses["step"][losses["loss"] <= goal].iloc[0])
    noise = next(row for row in read_noise(base) if row["step"] == step)
    return {
        "goal": goal,
        "seed": seed,
        "step": step,
        "start_loss": summary["start_loss"],
        "examples": summary["examples"],
        **{name: noise[name] for name in estimate_columns("simple", "full")},
    }


def branches_table(
    branches: pd.DataFrame, losses: pd.DataFrame, fits: dict[float, CriticalBatchFit]
) -> pd.DataFrame:
    """For each checkpoint and tolerance the branches' critical size, beside B_crit of its goal.

    tolerance: a share of the loss at the smallest batch size. at_base: whether that alone passes,
    so that the critical size is a bound from above.
    """
    rows = []
    for row in branches[list(CHECKPOINT)].drop_duplicates().to_dict("records"):
        own = losses[losses["branch"] == f"goal{row['goal']:g}-seed{row['seed']}"]
        of_goal = fits[row["goal"]].critical_batch_size
        rows += [{**row, **found} for found in branch_rows(own, of_goal)]
    return pd.DataFrame(rows)


def branch_rows(losses: pd.DataFrame, of_goal: Estimate) -> Iterator[dict[str, Any]]:
    """For each tolerance the critical size by the branches from a checkpoint, beside the front's.

    losses: see `branch_critical_batch`. of_goal: B_crit of the front.
    """
    for share, critical in branch_tolerances(losses, tolerance=TOLERANCE).items():
        ratio = quotient(of_goal, critical)
        yield {
            "tolerance": share,
            **dict(zip(BRANCH, (critical.value, critical.low, critical.high), strict=True)),
            "at_base": int(at_base(critical)),
            "critical_batch_size": of_goal.value,
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
        }


def predicted_table(
    predicted: pd.DataFrame, fits: dict[str, dict[float, CriticalBatchFit]]
) -> pd.DataFrame:
    """The noise scales averaged along runs, beside B_crit of their goal and its ratios to them."""
    rows = []
    for record in predicted.to_dict("records"):
        row: dict[Any, Any] = dict(record)
        critical = fits[row["problem"]][row["goal"]].critical_batch_size
        row |= estimate_row("critical_batch_size", critical)
        for name, average in RATIOS.items():
            scale = estimate_of(row, average, num_samples=int(row["num_seeds"]))
            row |= estimate_row(name, quotient(critical, scale))
        rows.append(row)
    return pd.DataFrame(rows)[list(predicted)]


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from, of the parts that are there."""
    parents = {parent for folder, _ in runs for parent in folder.parents}
    fronts = {path.name: path for path in parents if (path / STEPS_TO_GOAL).exists()}
    branches = sorted(path for path in parents if (path / BRANCHES).exists())

    def of_fronts(file: str) -> pd.DataFrame:
        names = [name for name in FRONTS if name in fronts]
        tables = [pd.read_csv(fronts[name] / file).assign(problem=name) for name in names]
        return _problem_first(pd.concat(tables))

    measured = {"steps_to_goal": of_fronts(STEPS_TO_GOAL), "predicted": of_fronts(PREDICTED)}
    if branches:
        rows = pd.DataFrame([branch_row(folder) for folder in branches])
        measured["branches"] = rows.sort_values(["goal", "seed"], ascending=[False, True])
        measured["branch_losses"] = pd.concat(
            pd.read_csv(folder / BRANCHES).assign(branch=folder.name) for folder in branches
        )
    return measured | derived(measured)


def derived(measured: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """What is made of the measurements."""
    fits, rates, laws, fastest = {}, [], [], []
    for name, table in measured["steps_to_goal"].groupby("problem", sort=False):
        steps = table.drop(columns="problem").reset_index(drop=True)
        problem = str(name)
        fits[problem] = fit_goals(steps)
        best = best_rates(steps)
        of_goals = {goal: fit_laws(best, goal) for goal in fits[problem]}
        rates.append(best.assign(problem=problem))
        laws.append(laws_table(of_goals).assign(problem=problem))
        fastest.append(fastest_runs(steps).assign(problem=problem))
    found = {
        "fastest": _problem_first(pd.concat(fastest)),
        "fits": _problem_first(
            pd.concat(fits_table(goals).assign(problem=name) for name, goals in fits.items())
        ),
        "learning_rates": _problem_first(pd.concat(rates)),
        "laws": _problem_first(pd.concat(laws)),
        "predicted": predicted_table(measured["predicted"], fits),
    }
    if "branches" in measured:
        found["branches"] = branches_table(
            measured["branches"], measured["branch_losses"], fits["mnist"]
        )
    return found


def again(committed: Committed) -> dict[str, pd.DataFrame]:
    """What is made of the committed measurements, by the fits as they are now."""
    measured = {name: committed(name) for name in MEASURED}
    for table in measured.values():
        if "batch_size" in table:
            table["batch_size"] = pd.to_numeric(table["batch_size"])
    return derived(measured)


def _problem_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["problem", *(name for name in table if name != "problem")]]


critical_batch = analysis(
    "critical_batch",
    tables,
    help="Tables of the critical batch size from the experiment's runs; without RUNS, from the "
    "committed measurements.",
    reuses="steps_to_goal",
    again=again,
)
