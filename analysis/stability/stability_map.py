"""Where is SGD stable, and how well is that predicted? Cells, edges, and where they start.

Of the experiment's sweeps; of their starts alone, where it was told --starts-only, with the cells
and the simulations of the committed tables.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.tables import DATA, Runs, analysis
from noisescale.errors import RunFolderError
from noisescale.statistics.estimate import Estimate, estimate_of, undefined
from noisescale.statistics.stability.curves import StabilityConstants
from noisescale.statistics.stability.edge import edge_of, score_prediction
from noisescale.training.records.folder import EXPERIMENT, read_json
from noisescale.training.records.tables import CELLS, read_cells

ORDER = ("unit", "raw", "mse", "cross_entropy")
MINIMA = ("mse", "cross_entropy")  # maps whose runs all start from one checkpoint
CURVES = ("lower", "gaussian", "wu", "upper", "lyapunov", "descent")
COMMITTED = DATA / "stability_map"


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figures are drawn from, of the maps that are there."""
    root = next(
        parent for folder, _ in runs for parent in folder.parents if (parent / EXPERIMENT).exists()
    )
    constants = {name: _constants(root / name) for name in ORDER}
    known = {name: constant for name, constant in constants.items() if constant is not None}
    cells = pd.concat([_cells(root / name).assign(map=name) for name in known])
    cells = _map_first(cells).drop(columns=["start_loss", "steps"], errors="ignore")
    rows, scores = [], []
    for name, constant in known.items():
        own = _counted_once(cells[cells["map"] == name], name, constant)
        edges = [_edge_row(root / name, own, size, constant) for size in _sizes(own)]
        rows += [{"map": name, **row} for row in edges]
        scores += [{"map": name, **row} for row in _scores(own, edges)]
    boundary = pd.DataFrame(rows)
    results = {
        "cells": cells,
        "boundary": boundary,
        "starts": starts_table(known, boundary),
        "scores": pd.DataFrame(scores),
    }
    if not any((root / name / CELLS).exists() for name in known):
        del results["cells"]  # those of the committed table
    return results


def starts_table(constants: dict[str, StabilityConstants], boundary: pd.DataFrame) -> pd.DataFrame:
    """A row per map: the curvature where its runs start, with intervals, and 2/λ."""
    rows = []
    for name, constant in constants.items():
        row: dict[str, Any] = {"map": name}
        for quantity, estimate in constant.estimates.items():
            row |= {
                quantity: estimate.value,
                f"{quantity}_low": estimate.low,
                f"{quantity}_high": estimate.high,
            }
        at_one = boundary[(boundary["map"] == name) & (boundary["batch_size"] == 1)].iloc[0]
        sharpness = constant.estimates["sharpness"]
        rows.append(
            row
            | {
                "num_examples": constant.num_examples,
                "population_size": constant.population_size,
                "two_over_sharpness": 2 / sharpness.value,
                "two_over_sharpness_low": 2 / sharpness.high,
                "two_over_sharpness_high": 2 / sharpness.low,
                **{f"{curve}_at_1": at_one[curve] for curve in CURVES},
                **{f"{end}_at_1": at_one[end] for end in ("lr_max", "lr_max_low", "lr_max_high")},
            }
        )
    return pd.DataFrame(rows)


def _constants(sweep: Path) -> StabilityConstants | None:
    """The constants of a sweep's predictions, None where they have not been measured."""
    stored = read_json(sweep / "predictions" / "constants.json")
    return None if stored is None else StabilityConstants.from_dict(stored)


def _cells(sweep: Path) -> pd.DataFrame:
    """A sweep's cells, or those of the committed table."""
    if (sweep / CELLS).exists():
        return read_cells(sweep)
    cells = _committed("cells")
    return cells[cells["map"] == sweep.name]


def _committed(name: str) -> pd.DataFrame:
    path = COMMITTED / f"{name}.csv"
    if not path.exists():
        raise RunFolderError(f"{path} is missing, and so are the runs: compute them first")
    types = {"error": str}
    return pd.read_csv(path, comment="#", keep_default_na=False, na_values=["nan"], dtype=types)


def _sizes(cells: pd.DataFrame) -> list[int]:
    return sorted(cells["batch_size"].unique())


def _counted_once(cells: pd.DataFrame, name: str, constants: StabilityConstants) -> pd.DataFrame:
    """The finished cells; of gradient descent from one checkpoint, the same for all seeds, once."""
    cells = cells[cells["error"] == ""]
    copies = cells.duplicated(["batch_size", "learning_rate"])
    alike = cells["batch_size"].map(lambda size: _seeds_alike(name, size, constants))
    return cells[~(copies & alike)]


def _seeds_alike(name: str, size: int, constants: StabilityConstants) -> bool:
    return name in MINIMA and size == constants.population_size


def _edge_row(
    sweep: Path, cells: pd.DataFrame, size: int, constants: StabilityConstants
) -> dict[str, Any]:
    """The measured edge of one batch size beside the predicted ones, each with its interval."""
    own = cells[cells["batch_size"] == size]
    edge = edge_of(
        zip(own["seed"], own["learning_rate"], own["unstable"] == 1, strict=True),
        seeds_alike=_seeds_alike(sweep.name, size, constants),
    )
    predicted = constants.rate_estimates(size, population_size=constants.population_size)
    predicted["lyapunov"] = _simulated(sweep, size)
    row = {
        "batch_size": size,
        **edge.to_row(),
        **{curve: predicted[curve].value for curve in CURVES},
    }
    for curve in CURVES:
        row |= {f"{curve}_low": predicted[curve].low, f"{curve}_high": predicted[curve].high}
    return row


def _simulated(sweep: Path, size: int) -> Estimate:
    """The threshold of linearised SGD: of the sweep, or of the committed table."""
    stored = read_json(sweep / "predictions" / f"lyapunov-bs{size}.json")
    if stored is not None:
        return Estimate.from_dict(stored)
    if (sweep / CELLS).exists():
        return undefined(num_samples=0)
    boundary = _committed("boundary")
    row = boundary[(boundary["map"] == sweep.name) & (boundary["batch_size"] == size)].iloc[0]
    return estimate_of(dict(row), "lyapunov")


def _scores(cells: pd.DataFrame, edges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per curve: share of the cells on the right side, distance of the edges."""
    columns = (cells["batch_size"], cells["learning_rate"], cells["unstable"] == 1)
    outcomes = list(zip(*columns, strict=True))
    measured = {row["batch_size"]: row["lr_max"] for row in edges}
    return [
        {
            "curve": curve,
            **dataclasses.asdict(
                score_prediction(
                    {row["batch_size"]: row[curve] for row in edges}, outcomes, measured
                )
            ),
        }
        for curve in CURVES
    ]


def _map_first(table: pd.DataFrame) -> pd.DataFrame:
    return table[["map", *(name for name in table if name != "map")]]


stability_map = analysis(
    "stability_map",
    tables,
    help="Tables of the stability maps from the experiment's sweeps.",
    reuses="cells",
)
