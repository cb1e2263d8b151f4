"""Estimates and whatever holds them as strict JSON, and as the columns of tables."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from noisescale.statistics.estimate.value import Estimate


def jsonable(record: Any) -> Any:
    """`record` as strict JSON takes it: None for nan and infinity, and plain containers.

    Dictionaries, lists, tuples, dataclasses, named tuples, arrays and tables (a list of rows) are
    gone through; a record that has a `to_dict` of its own gives that.
    """
    pandas = sys.modules.get("pandas")  # there are no tables where it has not been imported
    if pandas is not None and isinstance(record, pandas.DataFrame):
        return jsonable(record.to_dict("records"))
    if isinstance(record, np.ndarray | np.generic):
        return jsonable(record.tolist())
    if isinstance(record, float):
        return record if math.isfinite(record) else None
    if isinstance(record, Mapping):
        return {str(name): jsonable(value) for name, value in record.items()}
    if hasattr(record, "to_dict"):
        return jsonable(record.to_dict())
    if dataclasses.is_dataclass(record):
        return {
            field.name: jsonable(getattr(record, field.name))
            for field in dataclasses.fields(record)
        }
    if hasattr(record, "_asdict"):
        return jsonable(record._asdict())
    if isinstance(record, list | tuple):
        return [jsonable(value) for value in record]
    return record


def estimate_columns(*names: str) -> list[str]:
    """The columns of estimates: each one's value, standard error and 95 % interval."""
    return [f"{name}{part}" for name in names for part in ("", "_stderr", "_low", "_high")]


def estimate_row(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate under these columns; exact ones have stderr 0."""
    values = (estimate.value, estimate.stderr, estimate.low, estimate.high)
    return dict(zip(estimate_columns(name), values, strict=True))


def estimate_of(row: Mapping[Any, Any], name: str, *, num_samples: int = 0) -> Estimate:
    """The estimate that `estimate_row` wrote into a row; a part that the row lacks is nan.

    Args:
        row: values by column.
        name: of the estimate.
        num_samples: behind it; 0 where the row does not say.
    """
    value, stderr, low, high = (
        float(row.get(column, math.nan)) for column in estimate_columns(name)
    )
    return Estimate(value=value, stderr=stderr, low=low, high=high, num_samples=num_samples)


def from_record(values: Mapping[str, Any], *, num_samples: int = 0) -> Estimate:
    """The estimate that `Estimate.to_dict` made a record of.

    Of an interval with a lower end alone the upper one is open.

    Args:
        values: the four parts by name, None where not finite.
        num_samples: behind it; 0 where the record does not say.

    Raises:
        KeyError, TypeError: a part is missing, or no number.
    """
    value, stderr, low, high = (
        math.nan if values[name] is None else float(values[name])
        for name in ("value", "stderr", "low", "high")
    )
    if math.isnan(high) and not math.isnan(low):
        high = math.inf
    return Estimate(value=value, stderr=stderr, low=low, high=high, num_samples=num_samples)
