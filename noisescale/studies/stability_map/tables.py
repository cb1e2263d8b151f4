"""A sweep's tables: its cells, and the measured edge beside the predicted ones."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from noisescale.statistics.estimate import Estimate
from noisescale.statistics.stability_edge import (
    PredictionScore,
    fit_edge,
    score_prediction,
    seed_threshold,
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
    return {
        "batch_size": summary["batch_size"],
        "learning_rate": summary["learning_rate"],
        "seed": summary["seed"],
        "start_loss": course.start,
        "final_loss": course.final,
        "max_loss": course.largest,
        "test_accuracy": summary["test"]["accuracy"],
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


def edge_of(cells: pd.DataFrame) -> Estimate:
    """η_max of one batch size's cells, see `fit_edge`."""
    finished = cells[cells["error"] == ""]
    if finished.empty:
        return fit_edge([])
    return fit_edge(
        [
            seed_threshold(zip(of_seed["learning_rate"], of_seed["unstable"] == 1, strict=True))
            for _, of_seed in finished.groupby("seed")
        ]
    )


def boundary_table(
    cells: pd.DataFrame, predictions: dict[BatchSize, dict[str, float]]
) -> pd.DataFrame:
    """A row per batch size: the measured edge with its interval and seeds, and the predictions."""
    rows = []
    for size in in_order(cells["batch_size"]):
        edge = edge_of(cells[cells["batch_size"] == size])
        rows.append(
            {
                "batch_size": size,
                "lr_max": edge.value,
                "lr_max_low": edge.low,
                "lr_max_high": edge.high,
                "num_seeds": edge.num_samples,
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
