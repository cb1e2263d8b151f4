"""What a sweep leaves: its tables and, last, its summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from noisescale.statistics.estimate import jsonable
from noisescale.statistics.stability_curves import StabilityConstants
from noisescale.statistics.stability_edge import LABELS
from noisescale.studies.jobs.folder import changes, closing
from noisescale.studies.jobs.options import StudyOptions
from noisescale.studies.stability_map.config import BatchSize, SweepConfig
from noisescale.studies.stability_map.tables import (
    boundary_table,
    cells_table,
    counted_once,
    in_order,
    scores,
)
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import SUMMARY, write_json, write_table
from noisescale.training.records.tables import BOUNDARY, CELLS


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep has come to.

    Attributes:
        config: the sweep, with the ends of its learning rates.
        cells: the rows of cells.csv, one for each run.
        boundary: the rows of boundary.csv: of each batch size the measured edge η_max with its
            95 % interval, and the predicted ones.
        summary: the content of summary.json.
    """

    config: SweepConfig
    cells: pd.DataFrame
    boundary: pd.DataFrame
    summary: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a sweep has come to.

    rows: of cells.csv. constants: measured where the runs start; None: they were not. predictions:
    each batch size's predicted edges, by curve. num_examples: N, in the training set. failures: a
    line for each. seconds: that it took.
    """

    rows: list[dict[str, Any]]
    constants: StabilityConstants | None
    predictions: dict[BatchSize, dict[str, float]]
    num_examples: int
    failures: list[str]
    seconds: float


def write_results(
    config: SweepConfig, out: Path, outcome: Outcome, options: StudyOptions
) -> SweepResult:
    """Writes the files of a sweep to its folder: tables, picture and, last, summary.json."""
    cells = cells_table(outcome.rows)
    seeds_alike = [
        size
        for size in in_order(cells["batch_size"])
        if config.seeds_alike(size, num_examples=outcome.num_examples)
    ]
    boundary = boundary_table(cells, outcome.predictions, seeds_alike=seeds_alike)
    distinct = counted_once(cells, seeds_alike=seeds_alike)
    prediction_scores = scores(distinct, boundary) if outcome.predictions else {}
    labels = cells["label"].value_counts()
    constants = outcome.constants
    summary = {
        **config.identity(),
        "batch_sizes": boundary["batch_size"].tolist(),
        "lr_min": config.lr_min,
        "lr_max": config.lr_max,
        "num_lr": len(config.learning_rates),
        "bisected": config.num_lr is None,
        "num_seeds": config.num_seeds,
        "num_cells": len(cells),
        "seeds_alike": seeds_alike,
        "num_not_monotone": int(boundary["num_not_monotone"].sum()),
        "labels": {label: int(labels.get(label, 0)) for label in LABELS},
        "failures": outcome.failures,
        "constants": constants and {**jsonable(constants), "notes": list(constants.notes)},
        "scores": jsonable(prediction_scores),
        **closing(outcome.seconds, options.notes, environment(options.device)),
    }
    has_changed = changes(out, CELLS, BOUNDARY)
    write_table(out / CELLS, cells)
    write_table(out / BOUNDARY, boundary)
    if options.pictures and (has_changed() or not any(out.glob("*.png"))):
        from noisescale.studies.stability_map.pictures import draw_pictures

        draw_pictures(out)
    write_json(out / SUMMARY, summary)
    return SweepResult(config=config, cells=cells, boundary=boundary, summary=summary)
