"""A sweep's tables: its cells, and the measured edge beside the predicted ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
import pandas as pd

from noisescale.statistics.stability.edge import (
    Edge,
    PredictionScore,
    edge_of,
    score_prediction,
)
from noisescale.studies.stability_map.cell_run import trajectory
from noisescale.studies.stability_map.config import BatchSize
from noisescale.studies.stability_map.predictions import CURVES

CELL_COLUMNS = (
    "batch_size",
    "learning_rate",
    "seed",
    "start_loss",
    "final_loss",
    "max_loss",
    "test_accuracy",
    "steps",
    "diverged_at_step",
    "label",
    "unstable",
    "error",
)


def cell_row(summary: dict[str, Any], *, from_checkpoint: bool) -> dict[str, Any]:
    """A row of cells.csv from a cell's summary.

    unstable: what the edge is the edge of: the run diverged or, from a checkpoint, left its
    minimum.
    """
    course = trajectory(summary)
    accuracy = (summary.get("test") or {}).get("accuracy")  # neither has every problem of one's own
    return {
        "batch_size": summary["batch_size"],
        "learning_rate": summary["learning_rate"],
        "seed": summary["seed"],
        "start_loss": course.start,
        "final_loss": course.final,
        "max_loss": course.largest,
        "test_accuracy": math.nan if accuracy is None else accuracy,
        "steps": summary["steps"],
        "diverged_at_step": summary["diverged_at_step"],
        "label": course.label,
        "unstable": int(course.left if from_checkpoint else course.label == "diverged"),
        "error": "",
    }


def in_order(batch_sizes: Iterable[BatchSize]) -> list[BatchSize]:
    """Each once, ascending, "full" last."""
    return sorted(set(batch_sizes), key=lambda size: math.inf if isinstance(size, str) else size)


def cells_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """All cells, by batch size, rate and seed; failed ones without numbers."""
    table = pd.DataFrame(rows, columns=list(CELL_COLUMNS))
    for name in ("steps", "diverged_at_step", "unstable"):
        table[name] = table[name].astype("Int64")
    order = {size: rank for rank, size in enumerate(in_order(table["batch_size"]))}
    keys = [table["batch_size"].map(order), table["learning_rate"], table["seed"]]
    return table.iloc[np.lexsort(keys[::-1])].reset_index(drop=True)


def counted_once(cells: pd.DataFrame, *, seeds_alike: Collection[BatchSize]) -> pd.DataFrame:
    """The cells without the copies of those whose run no seed changes."""
    alike = cells["batch_size"].isin(list(seeds_alike))
    return cells[~(alike & cells.duplicated(["batch_size", "learning_rate"]))]


def edge_of_cells(cells: pd.DataFrame, *, seeds_alike: bool = False) -> Edge:
    """η_max of one batch size's cells, see `edge_of`."""
    finished = cells[cells["error"] == ""]
    columns = (finished["seed"], finished["learning_rate"], finished["unstable"] == 1)
    return edge_of(zip(*columns, strict=True), seeds_alike=seeds_alike)


def boundary_table(
    cells: pd.DataFrame,
    predictions: dict[BatchSize, dict[str, float]],
    *,
    seeds_alike: Collection[BatchSize] = (),
) -> pd.DataFrame:
    """A row per batch size: the measured edge with its interval and seeds, and the predictions.

    seeds_alike: the batch sizes at which the seed changes nothing, see `edge_of`.
    """
    rows = []
    for size in in_order(cells["batch_size"]):
        own = cells[cells["batch_size"] == size]
        edge = edge_of_cells(own, seeds_alike=size in seeds_alike)
        rows.append(
            {
                "batch_size": size,
                **edge.to_row(),
                **predictions.get(size, {}),
            }
        )
    return pd.DataFrame(rows)


def scores(cells: pd.DataFrame, boundary: pd.DataFrame) -> dict[str, PredictionScore]:
    """How well each predicted curve of `boundary` meets the cells and the edges."""
    finished = cells[cells["error"] == ""]
    outcomes = list(
        zip(
            finished["batch_size"],
            finished["learning_rate"],
            finished["unstable"] == 1,
            strict=True,
        )
    )
    edges = dict(zip(boundary["batch_size"], boundary["lr_max"], strict=True))
    return {
        name: score_prediction(
            dict(zip(boundary["batch_size"], boundary[name], strict=True)), outcomes, edges
        )
        for name in CURVES
        if name in boundary
    }
