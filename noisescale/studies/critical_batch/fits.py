"""The fits to a folder's steps to goals, remembered beside them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from noisescale import statistics
from noisescale.statistics.critical_batch.curves.runs import Runs
from noisescale.statistics.critical_batch.fit import CriticalBatchFit
from noisescale.statistics.critical_batch.goal_table import fit_goals
from noisescale.statistics.estimate import Estimate
from noisescale.training.records.folder import may_write, write_atomically

FITS = ".fits.json"  # what is remembered of the fits


def remembered_fits(
    out: Path, table: pd.DataFrame, *, keep: bool = True
) -> dict[float, CriticalBatchFit]:
    """The fits to steps_to_goal.csv, computed unless the folder `out` has those of this table.

    Their intervals take seconds, of which a finished measurement is to be shown in none. keep:
    whether computed ones are written there.
    """
    path = out / FITS
    key = hashlib.sha256(_source_of_fits() + table.to_csv(index=False).encode()).hexdigest()
    try:
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            return {float(goal): _fit_of(values) for goal, values in stored["fits"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent, damaged or by other code: they can be had again
    fits = fit_goals(table)
    # with NaN and Infinity, which are no strict JSON: for this code alone
    values = [(goal, dataclasses.asdict(fit)) for goal, fit in fits.items()]
    text = json.dumps({"key": key, "fits": values}, default=np.ndarray.tolist)
    if keep and may_write(out):
        write_atomically(path, text.encode())
    return fits


@lru_cache(maxsize=1)
def _source_of_fits() -> bytes:
    """The code that fits, of which what is remembered must be."""
    folder = Path(statistics.__path__[0])
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*.py")))


def _fit_of(values: dict[str, Any]) -> CriticalBatchFit:
    """A fit from its fields, estimates and runs as theirs."""
    fields: dict[str, Any] = {
        name: Estimate(**value) if isinstance(value, dict) and name != "runs" else value
        for name, value in values.items()
    }
    if (runs := values["runs"]) is not None:
        arrays: dict[str, Any] = {
            name: np.array(value) if isinstance(value, list) else value
            for name, value in runs.items()
        }
        fields["runs"] = Runs(**arrays)
    return CriticalBatchFit(**fields)
