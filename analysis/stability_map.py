"""Where is SGD stable, and how well is that predicted? Cells, edges, and where they start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import Runs, analysis
from noisescale.training.records.folder import SUMMARY, read_json
from noisescale.training.records.tables import read_boundary, read_cells

ORDER = ("unit", "raw", "mse", "cross_entropy")
CURVES = ("lower", "gaussian", "wu", "upper", "lyapunov", "descent")


def starts_table(summaries: dict[str, dict[str, Any]], boundary: pd.DataFrame) -> pd.DataFrame:
    """A row per map: the curvature where its runs start; predictions and edge at B = 1."""
    rows = []
    for name, summary in summaries.items():
        first = boundary[(boundary["map"] == name) & (boundary["batch_size"] == 1)].iloc[0]
        rows.append(
            {
                "map": name,
                **summary["constants"],
                "two_over_sharpness": 2 / summary["constants"]["sharpness"],
                **{f"{curve}_at_1": first[curve] for curve in CURVES},
                **{
                    f"{column}_at_1": first[column]
                    for column in ("lr_max", "lr_max_low", "lr_max_high")
                },
            }
        )
    return pd.DataFrame(rows)


def scores_table(summaries: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row per map and curve: share of the cells on the right side, distance of the edges."""
    return pd.DataFrame(
        {"map": name, "curve": curve, **score}
        for name, summary in summaries.items()
        for curve, score in summary["scores"].items()
    )


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from, of the maps that are there."""
    folders: dict[str, Path] = {}
    for folder, _ in runs:
        sweep = folder.parent.parent
        if sweep.name in ORDER and (sweep / SUMMARY).exists():
            folders[sweep.name] = sweep
    names = [name for name in ORDER if name in folders]
    cells = pd.concat([read_cells(folders[name]).assign(map=name) for name in names])
    boundary = pd.concat([read_boundary(folders[name]).assign(map=name) for name in names])
    summaries = {name: read_json(folders[name] / SUMMARY) or {} for name in names}
    return {
        "cells": _map_first(cells).drop(columns=["start_loss", "steps"]),
        "boundary": _map_first(boundary),
        "starts": starts_table(summaries, boundary),
        "scores": scores_table(summaries),
    }


def _map_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["map", *(name for name in table if name != "map")]]


stability_map = analysis(
    "stability_map", tables, help="Tables of the stability maps from the experiment's sweeps."
)
