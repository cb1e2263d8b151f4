"""Does the curvature come down below 2/η before a small batch's noise kills the run?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_row
from noisescale.statistics.scores.accuracy import accuracy_estimate
from noisescale.statistics.stability.edge import Trajectory

CASE = ["batch_size", "learning_rate", "seed"]
TRAINED = ("converged", "catapult", "slow")  # labels of runs that have neither blown up nor died


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per watched run and step: loss, λ_max, and η·λ_max/2, below 1 where GD is stable."""
    rows = [
        {name: record[name] for name in CASE}
        | {"step": row["step"], "loss": row["loss"], "sharpness": row["sharpness"]}
        for _, record in runs
        if record["part"] == "watched"
        for row in record["rows"]
    ]
    table = pd.DataFrame(rows)
    table[["loss", "sharpness"]] = table[["loss", "sharpness"]].astype(float)
    table["relative"] = table["sharpness"] * table["learning_rate"] / 2
    return table.sort_values([*CASE, "step"], ignore_index=True)


def runs_table(runs: Runs, curves: pd.DataFrame) -> pd.DataFrame:
    """A row per run: how it ended and, of a watched one, what its curvature did.

    start: η·λ_max/2 at initialisation. tamed: from above 1 there it falls below 1 within the
    steps watched, the loss being finite throughout; tamed_step: when. peak: its largest value.
    """
    rows = []
    for _, record in runs:
        row: dict[str, Any] = {name: record[name] for name in CASE}
        row |= {"part": record["part"], "label": _label(record)}
        row |= {"diverged_at_step": record["diverged_at_step"], "loss": record["train"]["loss"]}
        row |= {"start": math.nan, "peak": math.nan, "tamed": math.nan, "tamed_step": math.nan}
        if record["part"] == "watched":
            own = curves
            for name in CASE:
                own = own[own[name] == record[name]]
            relative, steps = own["relative"].to_numpy(), own["step"].to_numpy()
            below = np.flatnonzero(relative < 1)
            row |= {"start": relative[0], "peak": np.nanmax(relative), "tamed": int(len(below) > 0)}
            if len(below):
                row["tamed_step"] = steps[below[0]]
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["part", *CASE], ignore_index=True)


def shares_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row per batch size: of runs that start above 2/η, the share tamed and the share that train.

    At the same rates for all batch sizes: those above 2/λ_max at initialisation at which all seeds
    train at the largest batch size.
    """
    watched = table[table["part"] == "watched"]
    trains = watched["label"].isin(TRAINED)
    largest = watched[(watched["batch_size"] == watched["batch_size"].max())]
    by_rate = trains[largest.index].groupby(largest["learning_rate"]).all()
    rates = by_rate[by_rate].index
    above = watched[(watched["start"] > 1) & watched["learning_rate"].isin(rates)]
    rows = []
    for batch_size, group in above.groupby("batch_size"):
        tamed, trained = group["tamed"] == 1, group["label"].isin(TRAINED)
        row: dict[str, Any] = {"batch_size": batch_size, "runs": len(group)}
        row |= {"lowest_rate": group["learning_rate"].min()}
        row |= {"highest_rate": group["learning_rate"].max()}
        row |= estimate_row("tamed", accuracy_estimate(int(tamed.sum()), len(group)))
        row |= estimate_row("trained", accuracy_estimate(int(trained.sum()), len(group)))
        row |= {"tamed_and_trained": int((tamed & trained).sum())}
        row |= {"tamed_not_trained": int((tamed & ~trained).sum())}
        row |= {"trained_not_tamed": int((~tamed & trained).sum())}
        row |= {"median_tamed_step": group.loc[tamed, "tamed_step"].median()}
        rows.append(row)
    return pd.DataFrame(rows)


def _label(record: dict[str, Any]) -> str:
    """What the map would call the run."""

    def number(value: float | None) -> float:
        return math.inf if value is None else value  # a loss that was not finite

    share = record["largest_share"]
    return Trajectory(
        start=number(record["start_loss"]),
        largest=number(record["largest_loss"]),
        final=number(record["train"]["loss"]),
        chance=number(record["chance_loss"]),
        largest_share=math.nan if share is None else share,
        diverged_at_step=record["diverged_at_step"],
    ).label


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    curves = curves_table(runs)
    table = runs_table(runs, curves)
    return {"curves": curves, "runs": table, "shares": shares_table(table)}


catapult = analysis(
    "catapult",
    tables,
    help="Tables of the curvature in the first updates from the experiment's runs.",
)
