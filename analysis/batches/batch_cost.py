"""What does changing the batch size cost, and a full batch? Medians over rounds."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.batches.intervals import median_interval
from analysis.tables import Runs, analysis

KEY = ["source", "way", "every"]


def rounds_table(runs: Runs) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A row per round and measurement: of changing batch sizes, and of full batches."""
    tables = []
    for kind in ("changes", "full"):
        rows = [
            {**row, "round": record["seed"], "load": record["load"]}
            for folder, record in runs
            if folder.name.startswith(kind)
            for row in record["rows"]
        ]
        tables.append(pd.DataFrame(rows))
    return tables[0], tables[1]


def changes_table(rounds: pd.DataFrame) -> pd.DataFrame:
    """A row per source of batches, way to change their size, and steps between changes (0: never).

    milliseconds: a step's. Against the same source's steps at one batch size in the same round:
    slowdown: its quotient; added_milliseconds: what a change adds, for all steps between two;
    added_steps: that in steps at one batch size. All are medians over rounds, with the interval of
    their order statistics. load: the machine's when the rounds began, other work included.
    """
    rounds = rounds.assign(step=1e3 * rounds["seconds"] / rounds["steps"])
    fixed = rounds[rounds["every"] == 0].set_index(["source", "way", "round"])["step"]
    own = fixed.loc[pd.MultiIndex.from_frame(rounds[["source", "way", "round"]])].to_numpy()
    added = (rounds["step"] - own) * rounds["every"]
    rounds = rounds.assign(
        milliseconds=rounds["step"],
        slowdown=rounds["step"] / own,
        added_milliseconds=added,
        added_steps=added / own,
    )
    quantities = ("milliseconds", "slowdown", "added_milliseconds", "added_steps")
    return _medians(rounds, KEY, quantities)


def full_batch_table(rounds: pd.DataFrame) -> pd.DataFrame:
    """A row per batch size and way to take the gradient.

    seconds: of a step; per_epoch: over those of one epoch in steps of the smallest batch size,
    taken the same way in the same round; mebibytes: the most that a step takes above what was there
    before; difference: of the update from that of a single pass, relative.
    """
    smallest = rounds["batch_size"].min()
    largest = rounds["batch_size"].max()
    at_smallest = rounds[rounds["batch_size"] == smallest].set_index(["way", "round"])["seconds"]
    own = at_smallest.loc[pd.MultiIndex.from_frame(rounds[["way", "round"]])].to_numpy()
    rounds = rounds.assign(per_epoch=rounds["seconds"] / (own * largest / smallest))
    quantities = ("seconds", "per_epoch", "mebibytes", "difference")
    return _medians(rounds, ["batch_size", "way"], quantities)


def _medians(rounds: pd.DataFrame, key: list[str], quantities: tuple[str, ...]) -> pd.DataFrame:
    """A row per group: each quantity's median over rounds and its interval."""
    rows = []
    for group, of_group in rounds.groupby(key, sort=False):
        row: dict[str, Any] = dict(zip(key, group, strict=True))
        for name in quantities:
            median, low, high = median_interval(of_group[name].to_numpy())
            row |= {name: median, f"{name}_low": low, f"{name}_high": high}
        load = of_group["load"]
        rows.append(row | {"rounds": len(of_group), "load": load.median()})
    return pd.DataFrame(rows)


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    changes, full = rounds_table(runs)
    return {"changes": changes_table(changes), "full_batch": full_batch_table(full)}


batch_cost = analysis(
    "batch_cost",
    tables,
    help="Tables of what batch sizes cost from the experiment's rounds.",
)
