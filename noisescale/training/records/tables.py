"""The tables that a run leaves in its folder: their names and columns, and how they are read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from noisescale.errors import RunFolderError
from noisescale.statistics.estimate import estimate_columns

METRICS, CONFUSION, SHARPNESS = "metrics.csv", "confusion.csv", "sharpness.csv"
NOISE, NOISE_LAYERS, BATCH_SIZE = "noise.csv", "noise_layers.csv", "batch_size.csv"
LOSSES = "losses.csv"  # of a cell of a sweep
CELLS, BOUNDARY = "cells.csv", "boundary.csv"  # of a sweep
# of a measurement of the critical batch size
STEPS_TO_GOAL, RATES, PREDICTED, BRANCHES = (
    "steps_to_goal.csv",
    "learning_rates.csv",
    "predicted.csv",
    "branches.csv",
)
TABLES = (METRICS, CONFUSION, SHARPNESS, NOISE, NOISE_LAYERS, BATCH_SIZE, LOSSES)


SHARPNESS_COLUMNS = (
    "step",
    "epoch",
    "num_examples",
    "loss",
    "gradient_norm",
    "largest_eigenvalue",
    "largest_eigenvalue_stderr",
    "residual",
    "converged",
    "stable_sharpness",
    "batch_sharpness",
    "batch_sharpness_stderr",
    "num_matvecs",
    "seconds",
    "reason",
)
GRADIENT_NOISE = ("squared_gradient_norm", "gradient_variance", "simple")
CURVATURE_NOISE = ("hessian_covariance_trace", "gradient_curvature", "full", "max_learning_rate")
NOISE_COLUMNS = (
    *(
        "step",
        "epoch",
        "batch_size",
        "num_examples",
        "population_size",
        "num_probes",
        "hessian_examples",
    ),
    *estimate_columns("loss", *GRADIENT_NOISE, *CURVATURE_NOISE),
    *("seconds", "reason"),
)
NOISE_LAYER_COLUMNS = (
    "step",
    "epoch",
    "parameter",
    "num_examples",
    *estimate_columns(*GRADIENT_NOISE),
)
BATCH_SIZE_COLUMNS = (
    *("step", "epoch", "batch_size", "learning_rate"),
    *estimate_columns(*GRADIENT_NOISE),
)


def read_metrics(folder: Path) -> list[dict[Any, Any]]:
    """The rows of a run's metrics.csv, one per epoch and split; none where nothing is written yet."""
    numbers = ["epoch", "step", "loss", "accuracy", "f1", "seconds", "examples_per_second"]
    columns = ["epoch", "step", "split", *numbers[2:]]
    return _read_rows(folder / METRICS, columns, dict.fromkeys(numbers, float) | {"step": int})


def read_confusion(folder: Path) -> list[dict[Any, Any]]:
    """The rows of a run's confusion.csv, one per split, true and predicted class; none before its end."""
    columns = ["split", "target", "predicted", "count"]
    return _read_rows(folder / CONFUSION, columns, dict.fromkeys(columns[1:], int))


def read_sharpness(folder: Path) -> list[dict[Any, Any]]:
    """The rows of a run's sharpness.csv, one per measurement; none where nothing is written yet."""
    return _read_rows(folder / SHARPNESS, list(SHARPNESS_COLUMNS), _types(SHARPNESS_COLUMNS))


def read_noise(folder: Path) -> list[dict[Any, Any]]:
    """The rows of a run's noise.csv, one per measurement; none where nothing is written yet."""
    return _read_rows(folder / NOISE, list(NOISE_COLUMNS), _types(NOISE_COLUMNS))


def read_noise_layers(folder: Path) -> list[dict[Any, Any]]:
    """The rows of a run's noise_layers.csv, one per measurement and parameter tensor."""
    return _read_rows(folder / NOISE_LAYERS, list(NOISE_LAYER_COLUMNS), _types(NOISE_LAYER_COLUMNS))


def read_batch_size(folder: Path) -> list[dict[Any, Any]]:
    """The rows of a run's batch_size.csv, one per change of an adaptive batch size."""
    return _read_rows(folder / BATCH_SIZE, list(BATCH_SIZE_COLUMNS), _types(BATCH_SIZE_COLUMNS))


def read_losses(folder: Path) -> pd.DataFrame:
    """A cell's losses.csv: step and loss on its fixed subset."""
    return pd.DataFrame(_read_rows(folder / LOSSES, ["step", "loss"], {"step": int, "loss": float}))


def read_cells(sweep: Path) -> pd.DataFrame:
    """A sweep's cells.csv; `error` is empty where a cell has finished."""
    return _read_sweep_table(sweep / CELLS, {"error": str, "label": str})


def read_boundary(sweep: Path) -> pd.DataFrame:
    """A sweep's boundary.csv."""
    return _read_sweep_table(sweep / BOUNDARY, {})


def _read_sweep_table(path: Path, types: dict[str, Any]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=["nan"], dtype=types)
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing: the sweep has not finished") from None


def _types(columns: tuple[str, ...]) -> dict[str, Any]:
    """Numbers, but for the columns of words."""
    words = {"reason", "parameter"}
    whole = {"step", "batch_size", "num_examples", "num_probes", "hessian_examples"}
    return {name: int if name in whole else float for name in columns if name not in words}


def _read_rows(path: Path, columns: list[str], types: dict[str, Any]) -> list[dict[Any, Any]]:
    if not path.exists():
        return []
    try:
        table = pd.read_csv(path, dtype={"reason": str})[columns].astype(types)
        table = table.fillna({"reason": ""} if "reason" in table else {})
        if "population_size" in table and table["population_size"].notna().all():
            table = table.astype({"population_size": int})
    except (KeyError, ValueError) as error:
        raise RunFolderError(
            f"{path} is damaged ({error}): delete the folder and run again"
        ) from error
    return table.to_dict("records")
