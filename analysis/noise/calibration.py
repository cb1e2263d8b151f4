"""How far noise scales along runs lie from the critical batch size that fronts have measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables import DATA, Runs, analysis
from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.calibration.model import MEASURED
from noisescale.statistics.critical_batch.curves.steps_to_goal import smoothed_losses, steps_to_goal
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.training.records.tables import read_losses, read_noise

TASK = "mnist"  # of the fronts whose network the runs train


def calibration_table(runs: Runs) -> pd.DataFrame:
    """A row per run, goal that it reached and quantity.

    noise_scale: 𝓑 averaged by progress up to the goal; critical_batch_size: B_crit of the fronts to
    it; relative_decrease: what the run knows of its rate; rate_over_best: that rate over the best
    one for its batch size, by the law fitted to the fronts'.
    """
    fits, laws = _of_task("fits"), _of_task("laws")
    laws = laws[laws["law"] == "noise"]
    rows = []
    for folder, record in runs:
        losses, noise = read_losses(folder), pd.DataFrame(read_noise(folder))
        smoothed = smoothed_losses(losses["step"].to_numpy(), losses["loss"].to_numpy())
        learning_rate, batch_size = record["learning_rate"], record["batch_size"]
        for goal, fit in fits.set_index("goal").iterrows():
            steps = steps_to_goal(*smoothed, float(str(goal)))
            law = laws[laws["goal"] == goal].iloc[0]
            best = law["scale"] / (1 + law["bend"] / batch_size)
            until = noise[noise["step"] <= (steps or np.nan)]
            for quantity in ("simple", "full"):
                try:
                    found = recommend(until, quantity=quantity, learning_rate=learning_rate)
                except MeasurementError:  # not reached, or without B_noise
                    continue
                row: dict[str, Any] = {
                    "task": TASK,
                    "goal": goal,
                    "quantity": quantity,
                    "batch_size": batch_size,
                    "learning_rate": learning_rate,
                    "seed": record["seed"],
                    "rate_over_best": learning_rate / best,
                    "relative_decrease": found.relative_decrease,
                    "negative_curvature": found.negative_curvature,
                    "noise_scale": found.by_progress.value,
                    "critical_batch_size": fit["critical_batch_size"],
                }
                rows.append(row)
    return pd.DataFrame(rows)


def _of_task(name: str) -> pd.DataFrame:
    table = pd.read_csv(DATA / "critical_batch" / f"{name}.csv", comment="#")
    return table[table["problem"] == TASK]


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """The table that comes with the package."""
    return {Path(MEASURED).stem: calibration_table(runs)}


calibration = analysis(
    "calibration",
    tables,
    help="The table by which a run's noise scale is turned into a critical batch size.",
    out=MEASURED.parent,
)
