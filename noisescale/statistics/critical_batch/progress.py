"""Noise scales along a run, row by row of its noise.csv, and their average by progress."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.calibration.model import Scale
from noisescale.statistics.critical_batch.curves.steps_vs_examples import Tradeoff
from noisescale.statistics.estimate import estimate_columns
from noisescale.statistics.gradient_noise import (
    CURVATURE_NOISE,
    GRADIENT_NOISE,
    UNDER_PRECONDITIONER,
    under_preconditioner,
)

PARTS = ("value", "stderr", "low", "high")
# what 1/𝓑 is the ratio of, where 𝓑 itself is not resolved
INVERSE = {
    "simple": ("squared_gradient_norm", "gradient_variance"),
    "full": ("gradient_curvature", "hessian_covariance_trace"),
}


def up_to(table: pd.DataFrame, steps: float) -> pd.DataFrame:
    """The rows up to a point of a run, and the first one there or beyond: the stretch has an end.

    Args:
        table: the rows of noise.csv, by ascending step.
        steps: of the point.
    """
    place = int(np.searchsorted(table["step"].to_numpy(dtype=float), steps))
    return table.iloc[: place + 1]


def is_under_preconditioner(table: pd.DataFrame) -> np.ndarray:
    """Which rows have noise scales under a preconditioner."""
    column = f"{UNDER_PRECONDITIONER}gradient_variance"
    measured: np.ndarray = table.get(column, pd.Series(np.nan, table.index)).notna().to_numpy()
    return measured


def with_preconditioned(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that have noise scales under a preconditioner, with these in the plain ones' place.

    Raises:
        MeasurementError: there are none.
    """
    rows = table[is_under_preconditioner(table)]
    if not len(rows):
        raise MeasurementError(
            "no noise scale was measured under the optimizer's preconditioner: track it with "
            "--noise-geometry both, or take the plain one"
        )
    plain = estimate_columns(*GRADIENT_NOISE, *CURVATURE_NOISE)
    values = {
        name: rows.get(under, pd.Series(np.nan, rows.index))
        for name, under in zip(plain, under_preconditioner(*plain), strict=True)
    }
    return rows.assign(**values)


def is_resolved(table: pd.DataFrame, quantity: Scale) -> np.ndarray:
    """Which rows have a noise scale."""
    values = table[quantity].to_numpy(dtype=float)
    resolved: np.ndarray = np.isfinite(values) & (values > 0)
    return resolved


def share_covered(table: pd.DataFrame, quantity: Scale) -> float:
    """The share of steps in stretches at both of whose ends the quantity is known."""
    resolved, steps = is_resolved(table, quantity), table["step"].to_numpy(dtype=float)
    if len(steps) < 2:
        return 0.0
    return float((np.diff(steps) * (resolved[1:] & resolved[:-1])).sum() / (steps[-1] - steps[0]))


def parts_of(rows: pd.DataFrame, quantity: Scale) -> dict[str, np.ndarray]:
    """Value, stderr and interval of resolved rows; no interval: that of the value alone."""
    names = dict(zip(PARTS, estimate_columns(quantity), strict=True))
    columns = {part: rows[name].to_numpy(dtype=float) for part, name in names.items()}
    columns["high"] = np.where(np.isnan(columns["high"]), columns["value"], columns["high"])
    # below one example there is no smaller batch to tell it from
    columns["low"] = np.fmax(columns["low"], np.minimum(1.0, columns["value"]))
    return columns


def inverse_of(table: pd.DataFrame, quantity: Scale) -> dict[str, np.ndarray]:
    """1/𝓑 of each row, its value and the ends of its interval; nan where there is none.

    Where 𝓑 is resolved they are those of 𝓑; else of the ratio that 1/𝓑 is, whose denominator is
    known far better than its numerator. A numerator significantly below zero, of GᵀHG, gives none.
    """
    resolved, parts = is_resolved(table, quantity), parts_of(table, quantity)
    upper, lower = INVERSE[quantity]
    columns = {
        part: table.get(name, pd.Series(np.nan, index=table.index)).to_numpy(dtype=float)
        for part, name in (
            ("value", upper),
            ("low", f"{upper}_low"),
            ("high", f"{upper}_high"),
            ("below", lower),
        )
    }
    usable = (columns["below"] > 0) & (columns["high"] >= 0)
    denominator = np.where(usable, columns["below"], np.nan)
    swapped = {"value": "value", "low": "high", "high": "low"}  # the ends of 1/𝓑 and of 𝓑
    # a value below zero is one by chance and stands, to be averaged; an end is not
    floor = {"value": -np.inf, "low": 0.0, "high": 0.0}
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            part: np.where(
                resolved,
                1 / parts[swapped[part]],
                np.maximum(columns[part], floor[part]) / denominator,
            )
            for part in swapped
        }


def share_of_negative_curvature(table: pd.DataFrame) -> float | None:
    """The share of steps that begin where GᵀHG lies significantly below zero."""
    if "gradient_curvature_high" not in table or table["gradient_curvature_high"].isna().all():
        return None
    steps = np.diff(table["step"].to_numpy(dtype=float))
    negative = (table["gradient_curvature_high"] < 0).to_numpy()[:-1]
    return float(steps @ negative / steps.sum())


def course_of(table: pd.DataFrame, inverse: np.ndarray) -> Tradeoff:
    """The trade-off over the steps between rows, each stretch at its ends' mean 1/𝓑."""
    known = ~np.isnan(inverse)
    values, steps = inverse[known], table["step"].to_numpy(dtype=float)[known]
    sizes = table["batch_size"].to_numpy(dtype=float)[known]
    means = np.maximum((values[1:] + values[:-1]) / 2, 0.0)  # where noise takes it below zero
    course = Tradeoff()
    for mean, batch_size, made in zip(means, sizes, np.diff(steps), strict=False):
        scale = 1 / mean if mean > 0 else math.inf
        course = course.after(float(scale), batch_size=float(batch_size), steps=float(made))
    return course
