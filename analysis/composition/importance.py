"""Does sampling by importance lower the critical batch size, and by the factor forecast?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import holm
from analysis.composition.fronts import (
    by_seed_table,
    fitted_table,
    ratios_table,
    steps_table,
    without_fronts,
)
from analysis.composition.slopes import over_all_seeds
from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_row
from noisescale.training.records.folder import read_json

EVENLY, DRAWN = "even", "importance"  # the fronts
FORECAST = "forecast.json"
COURSE = ["step", "loss", "squared_gradient_norm", "gradient_variance", "left", "best"]


def courses_table(runs: Runs) -> pd.DataFrame:
    """A row per look of the runs that the forecast is made of."""
    rows = [
        {"seed": record["seed"]} | {name: row[name] for name in COURSE}
        for _, record in without_fronts(runs)
        for row in record["rows"]
    ]
    return pd.DataFrame(rows, columns=["seed", *COURSE])


def forecast_table(runs: Runs) -> pd.DataFrame:
    """A row per seed and goal: the factors that were written down before the runs."""
    parents = {folder.parent for folder, _ in without_fronts(runs)}
    (record,) = (read_json(parent / FORECAST) or {"factors": []} for parent in parents)
    table = pd.DataFrame(record["factors"], columns=["seed", "goal", "left", "best"])
    return table.astype({"left": float, "best": float})


def results_table(by_seed: pd.DataFrame, forecast: pd.DataFrame) -> pd.DataFrame:
    """A row per goal and quantity, logs over seeds with Student's t; nan unless every seed has one.

    measured: B_crit by importance over B_crit of even draws. left, best: the forecasts by the run's
    own chances and by the best ones. excess: measured less left; p of none, by Holm over the goals.
    """
    wide = by_seed.pivot_table(
        index=["goal", "seed"], columns="front", values="critical_batch_size", dropna=False
    )
    logs = pd.DataFrame({"measured": np.log(wide[DRAWN] / wide[EVENLY])})
    factors = forecast.set_index(["goal", "seed"])
    for which in ("left", "best"):
        logs[which] = np.log(factors[which])  # by the index of both
    logs["excess"] = logs["measured"] - logs["left"]
    rows = []
    for goal, group in sorted(logs.groupby(level="goal"), reverse=True):
        for quantity in logs:
            estimate, beside = over_all_seeds(group[quantity].to_numpy())
            row: dict[str, Any] = {"goal": goal, "quantity": quantity}
            if quantity != "excess":
                beside["p"] = np.nan
            rows.append(row | estimate_row("log", estimate) | beside)
    table = pd.DataFrame(rows)
    table["p"] = holm(table["p"].tolist())
    return table


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    steps = steps_table(runs)
    by_seed, forecast = by_seed_table(steps), forecast_table(runs)
    return {
        "steps_to_goal": steps,
        "fits": fitted_table(steps),
        "by_seed": by_seed,
        "ratios": ratios_table(by_seed, EVENLY),
        "courses": courses_table(runs),
        "forecast": forecast,
        "results": results_table(by_seed, forecast),
    }


importance = analysis(
    "importance",
    tables,
    help="Tables of the critical batch size by importance sampling from the experiment's runs.",
)
