"""Tables of a page: those that lie on disk, with each estimate in a column of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from noisescale.cli.printing.noise import ALONG_TRAINING
from noisescale.cli.printing.tables import NumberTable, plain_table
from noisescale.statistics.estimate import estimate_of

MOST_ROWS = 400  # of a table; beyond, those in the middle are in the file alone
WORDS = ("split", "label", "error", "reason", "parameter", "run", "population")
CELLS_SHOWN = ("batch_size", "learning_rate", "seed", "steps", "diverged_at_step")


def noise_table(rows: pd.DataFrame) -> NumberTable:
    """noise.csv, a row for each measurement."""
    return _estimates(rows, ("step", "loss"), ALONG_TRAINING, ("num_examples", "reason"))


def layers_table(rows: pd.DataFrame) -> NumberTable:
    """The last measurement of noise_layers.csv, a row for each parameter tensor."""
    names = {name: label for name, label in ALONG_TRAINING.items() if name != "full"}
    return _estimates(rows[rows["step"] == rows["step"].max()], ("step", "parameter"), names)


def sizes_table(rows: pd.DataFrame) -> NumberTable:
    """batch_size.csv, a row for each change."""
    return _estimates(rows, ("step", "batch_size", "learning_rate"), {"simple": "B_simple"})


def sharpness_table(rows: pd.DataFrame) -> NumberTable:
    """sharpness.csv, a row for each measurement."""
    return plain_frame(rows.drop(columns=["epoch", "seconds", "num_matvecs"], errors="ignore"))


def plain_frame(rows: pd.DataFrame) -> NumberTable:
    """A table as it is, its numbers in six digits; of a long one the middle is left out."""
    names = [str(name) for name in rows if not _is_empty(rows[name])]
    table = plain_table(*map(_heading, names), left=_words(names))
    for row in _shown(rows):
        table.add_row(*(cell_text(row[name]) for name in names) if row else ["…"])
    return table


def cells_so_far(folder: Path) -> tuple[NumberTable, int]:
    """The finished runs of a study that has not come to its end, and how many they are."""
    from noisescale.training.records.folder import SUMMARY, finished_runs, read_json

    summaries = [read_json(path / SUMMARY) or {} for path in finished_runs(folder)]
    rows = pd.DataFrame(
        [{name: summary.get(name) for name in CELLS_SHOWN} for summary in summaries],
        columns=list(CELLS_SHOWN),
    )
    return plain_frame(rows.sort_values(list(CELLS_SHOWN[:3]))), len(rows)


def _estimates(
    rows: pd.DataFrame,
    keys: tuple[str, ...],
    names: Mapping[str, str],
    last: tuple[str, ...] = (),
) -> NumberTable:
    """A column for each key and, with value, error and interval, for each estimate measured."""
    measured = [name for name in names if name in rows and _has_estimate(rows, name)]
    keys, last = (tuple(name for name in part if name in rows) for part in (keys, last))
    last = tuple(name for name in last if not _is_empty(rows[name]))
    headings = [*keys, *(names[name] for name in measured), *last]
    table = plain_table(*map(_heading, headings), left=_words(headings))
    for row in _shown(rows):
        table.add_row(
            *(
                [
                    *(cell_text(row[name]) for name in keys),
                    *(str(estimate_of(row, name)) for name in measured),
                    *(cell_text(row[name]) for name in last),
                ]
                if row
                else ["…"]
            )
        )
    return table


def _is_empty(column: pd.Series[Any]) -> bool:
    """Whether no row has anything in a column."""
    return bool((column.isna() | (column == "")).all())


def _heading(name: str) -> str:
    """A column's name in words; a label of a quantity as it is."""
    return name if name in ALONG_TRAINING.values() else name.replace("_", " ")


def _has_estimate(rows: pd.DataFrame, name: str) -> bool:
    """Whether there is anything of an estimate, a bound at least."""
    columns = [column for column in (name, f"{name}_low", f"{name}_high") if column in rows]
    return bool(rows[columns].notna().any(axis=None))


def _shown(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows, of too many the first and the last, with an empty one between."""
    records = rows.to_dict("records")
    if len(records) <= MOST_ROWS:
        return records
    half = MOST_ROWS // 2
    return [*records[:half], {}, *records[-half:]]


def _words(names: list[str]) -> tuple[str, ...]:
    return tuple(_heading(name) for name in names if name in WORDS)


def cell_text(value: Any) -> str:
    """A cell: whole numbers in full, others in six digits, nothing where there is nothing."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
