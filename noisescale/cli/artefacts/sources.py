"""What a path holds: a run, a study, a measurement's JSON or a table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from noisescale.errors import NoisescaleError, check_file

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal[
    "run", "sweep", "critical batch", "recommendation", "comparison", "noise", "sharpness", "table"
]
# What a folder holds first of all, before any table, or at the latest
STABILITY_MAP = ("sweep.json", "cells.csv")
CRITICAL_BATCH = ("critical_batch.json", "steps_to_goal.csv", "branches.json", "branches.csv")
RECOMMENDATION = ("recommend.json",)
RUN = ("config.json", "metrics.csv")
FOLDERS: dict[Kind, tuple[str, ...]] = {
    "sweep": STABILITY_MAP,
    "critical batch": CRITICAL_BATCH,
    "recommendation": RECOMMENDATION,
    "run": RUN,
}
COMPARISON = "comparison*.csv"  # beside the runs that it compares
# The columns by which a table is known whatever its file is called; the first that fits
TABLES = {
    "comparison": {"run", "batch_size", "learning_rate", "steps", "diverged_at_step"},
    "losses": {"step", "epoch", "num_steps", "loss", "smallest", "largest"},
    "curves": {"epoch", "split", "loss", "accuracy"},
    "confusion": {"split", "target", "predicted", "count"},
    "sharpness": {"step", "largest_eigenvalue", "converged", "batch_sharpness", "stable_sharpness"},
    "noise": {"step", "loss", "simple", "simple_low", "simple_high", "full"},
    "batch_size": {"epoch", "batch_size", "learning_rate", "simple", "simple_low", "simple_high"},
    "map": {"batch_size", "learning_rate", "seed", "label", "unstable", "test_accuracy", "error"},
    "line": {"split", "alpha", "loss", "loss_low", "loss_high"},
    "pareto": {"batch_size", "steps"},
}
# The keys by which the entries of a measurement's JSON are known
MEASUREMENTS: dict[Kind, set[str]] = {
    "sharpness": {"run", "step", "reason", "eigenvalues", "density", "phi"},
    "noise": {"run", "step", "reason", "simple", "full", "top_examples"},
}
# what reading and drawing raise where a file holds other things than it should
DAMAGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
ALLOWED = (
    "give the folder of a run, a sweep, a critical batch size, branches or a recommendation, or a "
    "folder of such; a JSON file that measure-noise or sharpness printed with --json; or one of "
    "the tables metrics.csv, losses.csv, confusion.csv, sharpness.csv, noise.csv, batch_size.csv, "
    "comparison.csv, cells.csv and steps_to_goal.csv, or that of interpolate --csv"
)


def sources(path: Path) -> Iterator[Path]:
    """The folders and files shown each by itself: `path`, or the runs and studies below it."""
    if not path.is_dir() or folder_kind(path) is not None:
        yield path
        return
    yield from sorted(path.glob(COMPARISON))
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from sources(entry)


def folder_kind(folder: Path) -> Kind | None:
    """What a folder holds; None for none of what is known."""
    return next((kind for kind, names in FOLDERS.items() if holds(folder, *names)), None)


def holds(folder: Path, *names: str) -> bool:
    """Whether a folder has one of these files."""
    return any((folder / name).exists() for name in names)


def kind_of(path: Path) -> Kind:
    """What one of the `sources` is; NoisescaleError where it is nothing that can be shown."""
    if path.is_dir():
        kind = folder_kind(path)
        assert kind is not None, "one of the sources"
        return kind
    if path.suffix == ".json":
        return measurement_kind(read_entries(path))
    kind_of_table = table_kind(read_table(path))
    if kind_of_table is None:
        raise NoisescaleError(f"there is no picture of a table with these columns; {ALLOWED}")
    return "comparison" if kind_of_table == "comparison" else "table"


def read_entries(path: Path) -> Any:
    """The content of a JSON file; NoisescaleError where it is none."""
    from noisescale.training.records.folder import parse_json

    try:
        return parse_json(path, NoisescaleError)
    except NoisescaleError as error:
        raise NoisescaleError(f"{error}; {ALLOWED}") from error


def measurement_kind(entries: Any) -> Kind:
    """Which command's measurements these are; NoisescaleError for anything else."""
    measured = (
        isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)
    )
    keys = set(entries[0]) if measured else set()
    for kind, needed in MEASUREMENTS.items():
        if needed <= keys:
            return kind
    raise NoisescaleError(f"no measurements of measure-noise or sharpness; {ALLOWED}")


def read_table(path: Path) -> pd.DataFrame:
    """A CSV file as it is; NoisescaleError where it is none."""
    import pandas as pd

    check_file(path, NoisescaleError)
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=["nan"], dtype={"reason": str})
    except ValueError as error:  # no table, or no text at all
        raise NoisescaleError(f"no table ({error}); {ALLOWED}") from error


def table_kind(table: pd.DataFrame) -> str | None:
    """Which picture a table makes, by its columns; None: none."""
    return next((kind for kind, columns in TABLES.items() if columns <= set(table.columns)), None)
