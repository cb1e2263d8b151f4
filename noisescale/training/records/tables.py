"""The tables that a run leaves in its folder: names, columns, and how they are read back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescale.errors import RunFolderError, check_file, first_line
from noisescale.statistics.estimate import estimate_columns
from noisescale.statistics.gradient_noise import (
    CURVATURE_NOISE,
    GRADIENT_NOISE,
    SIGN_QUANTITIES,
    of_sign,
    under_preconditioner,
)

if TYPE_CHECKING:
    import pandas as pd

METRICS, CONFUSION, SHARPNESS = "metrics.csv", "confusion.csv", "sharpness.csv"
NOISE, NOISE_LAYERS, BATCH_SIZE = "noise.csv", "noise_layers.csv", "batch_size.csv"
LOSSES = "losses.csv"  # of a run's batches; in a study's cell, of its fixed subset
CELLS, BOUNDARY = "cells.csv", "boundary.csv"  # of a sweep
# of a measurement of the critical batch size
STEPS_TO_GOAL, RATES, PREDICTED, BRANCHES = (
    "steps_to_goal.csv",
    "learning_rates.csv",
    "predicted.csv",
    "branches.csv",
)
TABLES = (METRICS, CONFUSION, SHARPNESS, NOISE, NOISE_LAYERS, BATCH_SIZE, LOSSES)

# λ_max(P^½HP^½) under an adaptive optimizer, its error, and the limit of stability
PRECONDITIONED_CURVATURE = (
    "preconditioned_eigenvalue",
    "preconditioned_eigenvalue_stderr",
    "preconditioned_residual",
    "preconditioned_converged",
    "preconditioned_stable",
)
PRECONDITIONED_REASON = "preconditioned_reason"
REASONS = ("reason", PRECONDITIONED_REASON)  # why there is no number
WORDS = (*REASONS, "parameter", "population")

SHARPNESS_COLUMNS = (
    "step",
    "epoch",
    "learning_rate",
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
    *PRECONDITIONED_CURVATURE,
    "num_matvecs",
    "seconds",
    "reason",
)
NOISE_COLUMNS = (
    *(
        "step",
        "epoch",
        "batch_size",
        "learning_rate",
        "num_examples",
        "population_size",
        "num_probes",
        "hessian_examples",
    ),
    *estimate_columns("loss", *GRADIENT_NOISE, *CURVATURE_NOISE),
    *("effective_examples", "noisiest_share", "seconds", "reason"),
)
NOISE_LAYER_COLUMNS = (
    "step",
    "epoch",
    "parameter",
    "num_examples",
    *estimate_columns(*GRADIENT_NOISE),
)
# what tables of runs with an adaptive optimizer have besides
PRECONDITIONED_COLUMNS = (
    *under_preconditioner(*estimate_columns(*GRADIENT_NOISE, *CURVATURE_NOISE)),
    PRECONDITIONED_REASON,
)
PRECONDITIONED_LAYER_COLUMNS = tuple(under_preconditioner(*estimate_columns(*GRADIENT_NOISE)))
# what those of runs along which the noise of the sign is measured have besides
SIGN_COLUMNS = tuple(of_sign(*estimate_columns(*SIGN_QUANTITIES)))
BATCH_SIZE_COLUMNS = (
    *("step", "epoch", "batch_size", "learning_rate"),
    *estimate_columns(*GRADIENT_NOISE),
    "population",
)
COUNTS = ("population_size", "num_matvecs")
MOVE_AWAY = "move that file away and run the same command again; the checkpoints beside it are used"
LOSS_COLUMNS = ("step", "epoch", "num_steps", "loss", "smallest", "largest")
# what tables written before these columns were there read as
ADDED: dict[str, float | str] = {
    "effective_examples": math.nan,
    "noisiest_share": math.nan,
    "learning_rate": math.nan,
    "population": "training",
    **dict.fromkeys(PRECONDITIONED_CURVATURE, math.nan),
    **dict.fromkeys((*PRECONDITIONED_COLUMNS, *PRECONDITIONED_LAYER_COLUMNS), math.nan),
    PRECONDITIONED_REASON: "",
    **dict.fromkeys(SIGN_COLUMNS, math.nan),
}


def read_metrics(folder: Path | str) -> list[dict[Any, Any]]:
    """The rows of a run's metrics.csv, one for each evaluation and split.

    Args:
        folder: of the run, finished or not.

    Returns:
        A dictionary for each row, by column: epoch, step, split, the scores loss (mean), accuracy
        and f1 (macro), seconds and examples_per_second; none where nothing is written yet.

    Raises:
        RunFolderError: where the table is damaged.
    """
    numbers = ["epoch", "step", "loss", "accuracy", "f1", "seconds", "examples_per_second"]
    columns = ["epoch", "step", "split", *numbers[2:]]
    return _read_rows(
        Path(folder) / METRICS, columns, dict.fromkeys(numbers, float) | {"step": int}
    )


def read_confusion(folder: Path) -> list[dict[Any, Any]]:
    """The rows of a run's confusion.csv, for each split, true and predicted class."""
    columns = ["split", "target", "predicted", "count"]
    return _read_rows(Path(folder) / CONFUSION, columns, dict.fromkeys(columns[1:], int))


def read_sharpness(folder: Path | str) -> list[dict[Any, Any]]:
    """The rows of a run's sharpness.csv, one for each measurement.

    Args:
        folder: of the run, finished or not.

    Returns:
        A dictionary for each row, by column of `SHARPNESS_COLUMNS`, nan where there is no
        value, with the reason; none where nothing is written yet.

    Raises:
        RunFolderError: where the table is damaged.
    """
    return _read_rows(Path(folder) / SHARPNESS, list(SHARPNESS_COLUMNS), _types(SHARPNESS_COLUMNS))


def read_noise(folder: Path | str) -> list[dict[Any, Any]]:
    """The rows of a run's noise.csv, one for each measurement.

    Args:
        folder: of the run, finished or not.

    Returns:
        A dictionary for each row, by column of `NOISE_COLUMNS`, `PRECONDITIONED_COLUMNS` and
        `SIGN_COLUMNS`: each estimate with its standard error (_stderr) and 95 % interval (_low,
        _high), nan where there is no value, as of preconditioned ones in a run of SGD; none where
        nothing is written yet.

    Raises:
        RunFolderError: where the table is damaged.
    """
    columns = (*NOISE_COLUMNS, *PRECONDITIONED_COLUMNS, *SIGN_COLUMNS)
    return _read_rows(Path(folder) / NOISE, list(columns), _types(columns))


def noise_table(folders: Iterable[Path]) -> pd.DataFrame:
    """The rows of noise.csv of a run that was made several times, each step once, by step.

    Args:
        folders: of the run; each may have rows that others lack.
    """
    import pandas as pd

    rows: dict[int, dict[Any, Any]] = {}
    for folder in folders:
        rows |= {row["step"]: row for row in read_noise(folder)}
    return pd.DataFrame([rows[step] for step in sorted(rows)])


def read_noise_layers(folder: Path | str) -> list[dict[Any, Any]]:
    """The rows of a run's noise_layers.csv, one for each measurement and parameter tensor.

    Args:
        folder: of the run, finished or not.

    Returns:
        A dictionary for each row, by column of `NOISE_LAYER_COLUMNS` and
        `PRECONDITIONED_LAYER_COLUMNS`: each estimate with its standard error (_stderr) and 95 %
        interval (_low, _high), nan where there is no value; none where nothing is written yet.

    Raises:
        RunFolderError: where the table is damaged.
    """
    columns = (*NOISE_LAYER_COLUMNS, *PRECONDITIONED_LAYER_COLUMNS)
    return _read_rows(Path(folder) / NOISE_LAYERS, list(columns), _types(columns))


def read_batch_size(folder: Path | str) -> list[dict[Any, Any]]:
    """The rows of a run's batch_size.csv, one for each change of an adaptive batch size.

    Args:
        folder: of the run, finished or not.

    Returns:
        A dictionary for each row, by column of `BATCH_SIZE_COLUMNS`: each estimate with its
        standard error (_stderr) and 95 % interval (_low, _high), nan where there is no value; none
        where nothing is written yet.

    Raises:
        RunFolderError: where the table is damaged.
    """
    return _read_rows(
        Path(folder) / BATCH_SIZE, list(BATCH_SIZE_COLUMNS), _types(BATCH_SIZE_COLUMNS)
    )


def read_losses(folder: Path | str) -> pd.DataFrame:
    """The losses.csv of a run, a row for each window of its steps, or of a run of a study.

    Of a run, the loss of a step is the mean over its batch, of before the update; the first 256
    steps have a row each, those up to 512 one for two steps, up to 1,024 for four and so on, and
    the last 100 one each. Of a run under a study's cells/, it is the mean over a fixed subset.

    Args:
        folder: of the run, finished or not.

    Returns:
        Columns step, the last of its window, and loss, the mean over it; of a run also the epoch
        after it, num_steps in it, and the smallest and largest loss. No column where nothing is
        written yet.

    Raises:
        RunFolderError: where the table is damaged.
    """
    import pandas as pd

    path = Path(folder) / LOSSES
    if not path.exists():
        return pd.DataFrame()
    columns = ["step", "loss"]
    with path.open() as file:
        if "num_steps" in file.readline():
            columns = list(LOSS_COLUMNS)
    types = {name: int if name in ("step", "num_steps") else float for name in columns}
    return _read_table(path, columns, types)


def read_cells(sweep: Path | str) -> pd.DataFrame:
    """A sweep's cells.csv, a row for each batch size, learning rate and seed.

    Args:
        sweep: its folder.

    Returns:
        The table; `error` is empty where a cell has finished, `batch_size` may be "full".

    Raises:
        RunFolderError: where the table is missing, since the sweep has not finished.
    """
    return _read_sweep_table(Path(sweep) / CELLS, {"error": str, "label": str})


def read_boundary(sweep: Path | str) -> pd.DataFrame:
    """A sweep's boundary.csv, a row for each batch size: the measured edge and the predicted ones.

    Args:
        sweep: its folder.

    Raises:
        RunFolderError: where the table is missing, since the sweep has not finished.
    """
    return _read_sweep_table(Path(sweep) / BOUNDARY, {})


def _read_sweep_table(path: Path, types: dict[str, Any]) -> pd.DataFrame:
    import pandas as pd

    check_file(path, RunFolderError)
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=["nan"], dtype=types)
    except FileNotFoundError:
        raise RunFolderError(f"{path} is missing: the sweep has not finished") from None
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}): {MOVE_AWAY}") from error


def _types(columns: tuple[str, ...]) -> dict[str, Any]:
    """Numbers, but for the columns of words."""
    whole = {"step", "batch_size", "num_examples", "num_probes", "hessian_examples"}
    return {name: int if name in whole else float for name in columns if name not in WORDS}


def _read_rows(path: Path, columns: list[str], types: dict[str, Any]) -> list[dict[Any, Any]]:
    return _read_table(path, columns, types).to_dict("records") if path.exists() else []


def _read_table(path: Path, columns: list[str], types: dict[str, Any]) -> pd.DataFrame:
    """These columns of a table, in these types."""
    import pandas as pd

    check_file(path, RunFolderError)
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(REASONS, str))
        for name, value in ADDED.items():
            if name in columns and name not in table:
                table[name] = value
        table = table[columns]
        if reasons := [name for name in REASONS if name in columns]:
            table = table.fillna(dict.fromkeys(reasons, ""))
        # of counts that are missing where nothing was measured
        counts = [name for name in COUNTS if name in columns and table[name].notna().all()]
        wanted = types | dict.fromkeys(counts, int)
        # hundreds of runs of a study are read at once, and most columns are what they should be
        return table.astype({name: of for name, of in wanted.items() if table[name].dtype != of})
    except (KeyError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({first_line(error)}): {MOVE_AWAY}") from error
