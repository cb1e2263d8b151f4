"""Does the curvature come down below 2/η before a small batch's noise kills the run?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import paired
from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_row
from noisescale.statistics.stability.edge import AT_CHANCE, Trajectory

CASE = ["batch_size", "learning_rate", "seed"]
SETTLED = 10  # the last steps watched, in most of which a tamed curvature is below 2/η


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

    trained: neither blown up nor dead, and the loss is clearly below that at chance. start:
    η·λ_max/2 at initialisation. tamed: of those above 1 there, whether it is below 1 in most of the
    last ten steps watched, the loss being finite throughout and lower at their end than at the
    start; a single low value is none, as where outputs that have blown up saturate. tamed_step:
    the first step below 1. peak: the largest value. settled: the median over those last ten steps.
    survived: the run has neither blown up nor died, whether or not it has learnt anything.
    """
    rows = []
    for _, record in runs:
        row: dict[str, Any] = {name: record[name] for name in CASE}
        label, loss = _label(record), record["train"]["loss"]
        row |= {"part": record["part"], "label": label, "loss": loss}
        below_chance = loss is not None and loss < AT_CHANCE * record["chance_loss"]
        survived = label not in ("diverged", "dead")
        row |= {"survived": int(survived), "trained": int(survived and below_chance)}
        row |= {"diverged_at_step": record["diverged_at_step"]}
        row |= dict.fromkeys(["start", "peak", "settled", "tamed", "tamed_step"], math.nan)
        if record["part"] == "watched":
            own = curves
            for name in CASE:
                own = own[own[name] == record[name]]
            row |= _of_curvature(own)
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["part", *CASE], ignore_index=True)


def _of_curvature(curve: pd.DataFrame) -> dict[str, float]:
    """What runs_table says of the curvature along a watched run."""
    relative, losses = curve["relative"].to_numpy(), curve["loss"].to_numpy()
    found = {"start": float(relative[0]), "peak": float(np.nanmax(relative))}
    if np.isfinite(last := relative[-SETTLED:]).any():
        found["settled"] = float(np.nanmedian(last))
    if not relative[0] > 1:
        return found
    is_lower = bool(np.isfinite(losses).all()) and bool(losses[-1] < losses[0])
    with np.errstate(invalid="ignore"):
        below = relative < 1  # not where it could not be computed
    tamed = is_lower and int(below[-SETTLED:].sum()) > SETTLED / 2
    found["tamed"] = float(tamed)
    if tamed:
        found["tamed_step"] = float(curve["step"].to_numpy()[below.argmax()])
    return found


def shares_table(table: pd.DataFrame) -> pd.DataFrame:
    """A row per batch size: of runs that start above 2/η, the share tamed and the share that train.

    At the same rates for all batch sizes: from those that begin above 2/λ_max to the largest at
    which any run trains at the largest batch size. Shares are of each seed's rates, with Student's
    t over the seeds: runs of a seed share their initial parameters. start, settled: of those that
    survive the largest and the median. highest_surviving: the largest rate at which all seeds do.
    """
    watched = table[(table["part"] == "watched")]
    largest = watched[watched["batch_size"] == watched["batch_size"].max()]
    highest = largest.loc[largest["trained"] == 1, "learning_rate"].max()
    above = watched[(watched["start"] > 1) & (watched["learning_rate"] <= highest)]
    rows = []
    for batch_size, group in above.groupby("batch_size"):
        tamed, trained = group["tamed"] == 1, group["trained"] == 1
        row: dict[str, Any] = {"batch_size": batch_size, "runs": len(group)}
        row |= {"lowest_rate": group["learning_rate"].min()}
        row |= {"highest_rate": group["learning_rate"].max()}
        by_seed = group.groupby("seed")[["tamed", "trained", "survived"]].mean()
        survived = group[group["survived"] == 1]
        row |= {"start": survived["start"].max(), "settled": survived["settled"].median()}
        of_rates = group.groupby("learning_rate")["survived"].min()
        row |= {"highest_surviving": of_rates[of_rates == 1].index.max()}
        for name in by_seed:
            row |= estimate_row(str(name), paired(by_seed[name]))
        row |= {"tamed_and_trained": int((tamed & trained).sum())}
        row |= {"tamed_not_trained": int((tamed & ~trained).sum())}
        row |= {"trained_not_tamed": int((~tamed & trained).sum())}
        row |= {label: int((group["label"] == label).sum()) for label in ("dead", "diverged")}
        row |= {"median_tamed_step": group.loc[tamed, "tamed_step"].median()}
        row |= {"num_seeds": len(by_seed)}
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
