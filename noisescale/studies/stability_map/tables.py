"""A sweep's tables: its cells, and the measured edge beside the predicted ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, Literal

import numpy as np
import pandas as pd

from noisescale.statistics.scores.cross_validation import (
    FEWEST_FOLDS,
    CrossValidation,
    choose_rate,
)
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
HELD_OUT = ("held_out_loss", "held_out_error")  # columns besides, of runs that hold a fold out


def cell_row(summary: dict[str, Any], *, from_checkpoint: bool) -> dict[str, Any]:
    """A row of cells.csv from a cell's summary.

    unstable: what the edge is the edge of: the run diverged or, from a checkpoint, left its
    minimum.
    """
    course = trajectory(summary)
    accuracy = (summary.get("test") or {}).get("accuracy")  # neither has every problem of one's own
    held_out = {}
    if left_out := summary.get("held_out"):
        right = left_out.get("accuracy")
        error = math.nan if right is None else 1 - right
        held_out = {
            "held_out_loss": math.nan if left_out["loss"] is None else left_out["loss"],
            "held_out_error": error,
        }
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
        **held_out,
    }


def in_order(batch_sizes: Iterable[BatchSize]) -> list[BatchSize]:
    """Each once, ascending, "full" last."""
    return sorted(set(batch_sizes), key=lambda size: math.inf if isinstance(size, str) else size)


def cells_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """All cells, by batch size, rate and seed; failed ones without numbers."""
    has_folds = any(HELD_OUT[0] in row for row in rows)
    table = pd.DataFrame(rows, columns=[*CELL_COLUMNS, *(HELD_OUT if has_folds else ())])
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


def rates_by_folds(cells: pd.DataFrame) -> dict[BatchSize, CrossValidation]:
    """The learning rate that folds choose at each batch size, where all of them train at one.

    By the error on the examples held out or, of a problem without classes, by the loss. Where a run
    diverged or failed there is no score.

    Args:
        cells: the rows of cells.csv of a sweep with folds; of one without, none are chosen.
    """
    if HELD_OUT[0] not in cells:
        return {}
    scores = cells[f"held_out_{score_of_folds(cells)}"].where(
        (cells["error"] == "") & (cells["label"] != "diverged")
    )
    chosen = {}
    for size in in_order(cells["batch_size"]):
        of_size = cells.assign(score=scores)[cells["batch_size"] == size]
        table = of_size.pivot_table("score", "seed", "learning_rate", dropna=False)
        if table.notna().all().any() and len(table) >= FEWEST_FOLDS:
            chosen[size] = choose_rate(list(map(float, table.columns)), table.to_numpy())
    return chosen


def score_of_folds(cells: pd.DataFrame) -> Literal["error", "loss"]:
    """What folds choose by: the share of wrong answers where there are classes, else the loss."""
    return "error" if HELD_OUT[1] in cells and cells[HELD_OUT[1]].notna().any() else "loss"


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
