"""Critical batch sizes of an experiment's cases, seed by seed, and their ratios to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import holm
from analysis.composition.slopes import over_all_seeds
from analysis.tables import Runs
from noisescale.statistics.critical_batch.goal_table import fit_goals, fits_table
from noisescale.statistics.estimate import estimate_row
from noisescale.training.records.tables import STEPS_TO_GOAL

FRONTS = "fronts"  # the folder of the measurements in an experiment's
FITTED = ("critical_batch_size", "min_steps", "min_examples")


def without_fronts(runs: Runs) -> Runs:
    """The runs of an experiment's own, without those of its measurements of B_crit."""
    return [(folder, record) for folder, record in runs if FRONTS not in folder.parts]


def front_folders(runs: Runs) -> dict[str, Path]:
    """The folder of each measurement of B_crit that has come to its table, by its name."""
    parents = {parent for folder, _ in runs for parent in folder.parents}
    found = [path for path in parents if path.parent.name == FRONTS]
    return {path.name: path for path in sorted(found) if (path / STEPS_TO_GOAL).exists()}


def steps_table(runs: Runs) -> pd.DataFrame:
    """A row per front, run and goal: the steps it took."""
    tables = [
        pd.read_csv(folder / STEPS_TO_GOAL).assign(front=name)
        for name, folder in front_folders(runs).items()
    ]
    columns = ["front", "goal", "batch_size", "learning_rate", "seed", "steps", "censored"]
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables, ignore_index=True)[[*columns, "diverged"]]


def fitted_table(steps: pd.DataFrame) -> pd.DataFrame:
    """A row per front and goal: B_crit of all seeds together, with its interval."""
    tables = [
        fits_table(fit_goals(rows.drop(columns="front").reset_index(drop=True))).assign(front=name)
        for name, rows in steps.groupby("front", sort=False)
    ]
    table = pd.concat(tables, ignore_index=True)
    return table[["front", *(name for name in table if name != "front")]]


def by_seed_table(steps: pd.DataFrame) -> pd.DataFrame:
    """A row per front, seed and goal: B_crit, S_min and E_min of the seed's own runs.

    nan: they do not resolve it.
    """
    rows = []
    for (name, seed), group in steps.groupby(["front", "seed"], sort=False):
        for goal, fit in fit_goals(group.drop(columns="front").reset_index(drop=True)).items():
            row: dict[str, Any] = {"front": name, "seed": seed, "goal": goal}
            rows.append(row | {quantity: getattr(fit, quantity).value for quantity in FITTED})
    return pd.DataFrame(rows, columns=["front", "seed", "goal", *FITTED])


def ratios_table(
    by_seed: pd.DataFrame, base: str, *, quantities: Sequence[str] = FITTED
) -> pd.DataFrame:
    """A row per front, goal and quantity: the log of its ratio to the front `base`, over seeds.

    Student's t over the seeds; nan unless all seeds resolve both, since those that do are no sample
    of them. p: of no difference, by Holm over goals and fronts of a quantity.
    """
    rows = []
    wide = by_seed.set_index(["front", "goal", "seed"])
    for (name, goal), group in wide.groupby(level=[0, 1], sort=False):
        if name == base:
            continue
        for quantity in quantities:
            seeds = group.index.get_level_values("seed")
            keys = pd.MultiIndex.from_product([[base], [goal], seeds])
            logs = np.log(group[quantity].to_numpy() / wide[quantity].reindex(keys).to_numpy())
            estimate, beside = over_all_seeds(logs)
            row: dict[str, Any] = {"front": name, "goal": goal, "quantity": quantity}
            rows.append(row | estimate_row("log_ratio", estimate) | beside)
    table = pd.DataFrame(rows)
    for _, group in table.groupby("quantity") if len(table) else ():
        table.loc[group.index, "p"] = holm(group["p"].tolist())
    return table
