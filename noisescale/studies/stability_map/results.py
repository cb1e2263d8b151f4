"""What a sweep leaves: its tables, its picture and, last, its summary."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from noisescale.plots.stability_map import map_figure
from noisescale.plots.style import image
from noisescale.statistics.estimate import jsonable
from noisescale.statistics.stability_curves import StabilityConstants
from noisescale.statistics.stability_edge import LABELS
from noisescale.studies.jobs.folder import MAP
from noisescale.studies.stability_map.config import BatchSize, SweepConfig
from noisescale.studies.stability_map.tables import boundary_table, cells_table, scores
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import SUMMARY, write_atomically, write_json, write_table
from noisescale.training.records.tables import BOUNDARY, CELLS


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """The content of cells.csv, boundary.csv and summary.json; the config with its learning rates."""

    config: SweepConfig
    cells: pd.DataFrame
    boundary: pd.DataFrame
    summary: dict[str, Any]


def write_results(
    config: SweepConfig,
    out: Path,
    rows: list[dict[str, Any]],
    *,
    constants: StabilityConstants | None,
    predictions: dict[BatchSize, dict[str, float]],
    failures: list[str],
    seconds: float,
    notes: tuple[str, ...],
    device: str,
) -> SweepResult:
    """Writes the files of a sweep to its folder, from its rows of cells.csv.

    constants, predictions: what was measured where the runs start, and each batch size's predicted edges.
    failures: a line for each; seconds: that the sweep took.
    """
    cells = cells_table(rows)
    boundary = boundary_table(cells, predictions)
    found = scores(cells, boundary) if predictions else {}
    labels = cells["label"].value_counts()
    summary = {
        **config.identity(),
        "batch_sizes": boundary["batch_size"].tolist(),
        "lr_min": config.lr_min,
        "lr_max": config.lr_max,
        "num_lr": len(config.learning_rates),
        "bisected": config.num_lr is None,
        "num_seeds": config.num_seeds,
        "num_cells": len(cells),
        "labels": {label: int(labels.get(label, 0)) for label in LABELS},
        "failures": failures,
        "constants": jsonable(constants),
        "scores": jsonable(found),
        "seconds": seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "notes": list(notes),
        "environment": environment(device),
    }
    write_table(out / CELLS, cells)
    write_table(out / BOUNDARY, boundary)
    minimum = config.start is not None
    cases = (
        config.problem.pixel_scale == "raw" and config.problem.width in (None, 1024) and not minimum
    )
    picture = map_figure(cells, boundary, title=_title(config), minimum=minimum, cases=cases)
    write_atomically(out / MAP, image(picture))
    write_json(out / SUMMARY, summary)
    return SweepResult(config=config, cells=cells, boundary=boundary, summary=summary)


def _title(config: SweepConfig) -> str:
    problem = config.problem
    size = "" if problem.width is None else f" of width {problem.width}"
    start = "from initialisation" if config.start is None else "from a checkpoint"
    name, amount = next(
        (name, amount) for name, amount in vars(config.horizon).items() if amount is not None
    )
    length = f"{amount:,} {name if amount > 1 else name.removesuffix('s')}"
    return (
        f"{problem.dataset}, {problem.pixel_scale} pixels, {problem.model}{size}, {start}, {length}"
    )
