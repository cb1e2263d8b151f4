"""Noise scales at equal loss, and slopes between logarithms, with seeds as blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import p_value
from noisescale.statistics.estimate import Estimate, from_samples

PARTS = ["squared_gradient_norm", "gradient_variance"]


def at_equal_loss(looks: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """A row per run and loss: means over its looks, and B_simple, mean tr Σ over mean |G|².

    Not the mean of ratios, which a |G|² near zero would govern. nan: the mean |G|² is not above
    zero. num_looks: how many there were.

    Args:
        looks: a row per look.
        keys: columns that name a run and a loss.
    """
    grouped = looks.groupby(list(keys))
    table = grouped[[*PARTS, "loss"]].mean().join(grouped.size().rename("num_looks"))
    table["simple"] = quotient(table["gradient_variance"], table["squared_gradient_norm"])
    return pd.DataFrame(table.reset_index())


def quotient(above: pd.Series[float], below: pd.Series[float]) -> pd.Series[float]:
    """The quotient where both are above zero, else nan."""
    return (above / below).where((above > 0) & (below > 0))


def slopes_by_seed(table: pd.DataFrame, of: str, against: Sequence[str]) -> np.ndarray:
    """The slopes of log `of` in the logs of the columns `against`, least squares: (seeds, slopes).

    Each seed has a constant of its own. Seeds without enough rows to tell the slopes are left out.
    """
    rows = []
    for _, group in table.dropna(subset=[of]).groupby("seed"):
        logs = np.log(group[list(against)].to_numpy(dtype=float))
        design = np.column_stack([np.ones(len(group)), logs])
        if np.linalg.matrix_rank(design) == design.shape[1]:
            rows.append(np.linalg.lstsq(design, np.log(group[of].to_numpy()), rcond=None)[0][1:])
    return np.array(rows).reshape(len(rows), len(against))


def over_all_seeds(values: np.ndarray) -> tuple[Estimate, dict[str, Any]]:
    """As `over_seeds`, but nan where a seed has no value; num_seeds: how many have one."""
    estimate, beside = over_seeds(values)
    if not np.isfinite(values).all():
        nothing, without = over_seeds(np.array([np.nan]))
        return nothing, without | {"num_seeds": beside["num_seeds"]}
    return estimate, beside


def over_seeds(values: np.ndarray) -> tuple[Estimate, dict[str, Any]]:
    """The mean with Student's t, and what a row says beside it: p of zero, number of seeds."""
    known = values[np.isfinite(values)]
    if not len(known):
        known = np.array([np.nan])
    return from_samples(known), {"p": p_value(known), "num_seeds": int(np.isfinite(known).sum())}
