"""Runs to one goal as a matrix of seeds and batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from noisescale.errors import SettingError
from noisescale.statistics.critical_batch.curves.hyperbola import Curve, Hyperbola

FEWEST_SIZES = 4  # two parameters, the scatter, and a point to judge them by


@dataclass(frozen=True)
class Runs:
    """Log steps, a row for each seed and a column for each batch size, ascending.

    Where `crossed`, a row is one seed at all batch sizes; else the runs of a batch size stand in
    any order, independent of those at the others.
    """

    sizes: np.ndarray  # (n,)
    log_steps: np.ndarray  # (R, n), nan where there is no run
    bounds: np.ndarray  # (R, n), runs that did not reach the goal
    crossed: bool

    @cached_property
    def means(self) -> np.ndarray:
        """Of the seeds' log steps at each batch size (n,)."""
        means: np.ndarray = np.nanmean(self.log_steps, axis=0)
        return means

    @cached_property
    def counts(self) -> np.ndarray:
        """Runs at each batch size (n,)."""
        counts: np.ndarray = np.isfinite(self.log_steps).sum(0)
        return counts

    @cached_property
    def reached(self) -> np.ndarray:
        """Batch sizes at which each run reaches the goal (n,); the others' means are bounds."""
        reached: np.ndarray = np.logical_not(self.bounds.any(axis=0))
        return reached

    def rows(self, kept: np.ndarray) -> Runs:
        """Those of the seeds `kept` (R,), at the batch sizes at which they have a run."""
        some = np.isfinite(self.log_steps[kept]).any(0)
        return Runs(
            self.sizes[some],
            self.log_steps[kept][:, some],
            self.bounds[kept][:, some],
            self.crossed,
        )

    def hyperbola(self) -> Hyperbola:
        """That of the means."""
        return Hyperbola(self.sizes, np.exp(self.means), ~self.reached)

    def residuals(self, curve: Curve) -> np.ndarray:
        """Of the known means' logs from a curve, by batch size."""
        all_residuals = self.means - np.log(curve.at(self.sizes))
        residuals: np.ndarray = all_residuals[self.reached]
        return residuals

    def interaction(self, curve: Curve) -> tuple[float, int]:
        """Variance of a run's log steps that neither its batch size nor its seed explains; dof.

        Each seed may have a curve of its own: the directions in which S_min and B_crit move log S
        are taken out of its deviations from the means. Where runs are not crossed, the variance is
        that within batch sizes.
        """
        deviations = (self.log_steps - self.means)[:, self.reached]
        dof = int(np.isfinite(deviations).sum()) - int(self.reached.sum())
        if self.crossed:
            bend_share = 1 - curve.plateau / curve.at(self.sizes[self.reached])
            directions = np.stack([np.ones_like(bend_share), bend_share], axis=1)  # (n, 2)
            deviations = np.array([_remainder(row, directions) for row in deviations])
            dof -= 2 * (len(deviations) - 1)
        return (float(np.nansum(deviations**2)) / dof if dof > 0 else np.nan), max(dof, 0)


def _remainder(row: np.ndarray, directions: np.ndarray) -> np.ndarray:
    """What of a seed's deviations (n,) no combination of the directions gives; nan stays."""
    there = np.isfinite(row)
    weights, *_ = np.linalg.lstsq(directions[there], row[there], rcond=None)
    remainder: np.ndarray = row - directions @ weights
    return remainder


def runs_of(
    batch_sizes: Sequence[float] | np.ndarray,
    steps: Sequence[float] | np.ndarray,
    seeds: Sequence[Any] | np.ndarray | None,
    censored: Sequence[bool] | np.ndarray | None,
) -> Runs:
    """The matrix of runs (m,), of one seed each where there are seeds.

    Raises:
        SettingError: fewer than four batch sizes, a seed twice at one, or what is no number.
    """
    sizes, numbers = np.asarray(batch_sizes, dtype=float), np.asarray(steps, dtype=float)
    bounds = np.zeros(sizes.shape, bool) if censored is None else np.asarray(censored, dtype=bool)
    names = np.zeros(sizes.shape, int) if seeds is None else np.asarray(seeds)
    lengths = {len(values) for values in (sizes, numbers, bounds, names) if values.ndim == 1}
    if len(lengths) != 1 or not sizes.ndim == numbers.ndim == bounds.ndim == names.ndim == 1:
        raise SettingError(
            f"{sizes.shape} batch sizes, {numbers.shape} steps, {bounds.shape} censored, "
            f"{names.shape} seeds: give one of each a run"
        )
    for name, values in (("batch size", sizes), ("steps", numbers)):
        wrong = values[~(np.isfinite(values) & (values > 0))]
        if len(wrong):
            raise SettingError(f"{name} {wrong[0]:g}: give a number above 0")
    distinct, columns = np.unique(sizes, return_inverse=True)
    if len(distinct) < FEWEST_SIZES:
        raise SettingError(few_sizes(distinct))
    if seeds is None:
        rows = _order_within(columns)
    else:
        _, rows = np.unique(names, return_inverse=True)
    _check_cells(rows, columns, names, sizes)
    shape = (int(rows.max()) + 1, len(distinct))
    log_steps, missed = np.full(shape, np.nan), np.zeros(shape, bool)
    log_steps[rows, columns], missed[rows, columns] = np.log(numbers), bounds
    return Runs(distinct, log_steps, missed, crossed=seeds is not None and shape[0] > 1)


def _order_within(columns: np.ndarray) -> np.ndarray:
    """0, 1, ... for the first, second, ... run in each column."""
    rows = np.zeros_like(columns)
    for column in np.unique(columns):
        there = columns == column
        rows[there] = np.arange(there.sum())
    return rows


def _check_cells(
    rows: np.ndarray, columns: np.ndarray, names: np.ndarray, sizes: np.ndarray
) -> None:
    """SettingError where a seed has two runs at one batch size."""
    _, first, counts = np.unique(
        np.stack([rows, columns]), axis=1, return_index=True, return_counts=True
    )
    if (counts > 1).any():
        run = first[np.flatnonzero(counts > 1)[0]]
        raise SettingError(
            f"seed {names[run]} has {counts.max()} runs at batch size {sizes[run]:g}: give one, "
            "that at the best learning rate"
        )


def left_over(scatter: float, noise: float) -> float:
    """The share of the means' variance about a curve that single runs do not explain, 0 to 1.

    It is of batch sizes rather than of seeds: a badly tuned rate at one of them, or the curve.

    Args:
        scatter: standard deviation of the means about the curve.
        noise: the variance of a mean that single runs explain; 0 where that is unknown.
    """
    return max(0.0, 1 - noise / scatter**2) if scatter > 0 else 0.0


def few_sizes(sizes: Sequence[float] | np.ndarray) -> str:
    """What to say of too few batch sizes."""
    return (
        f"{len(sizes)} batch sizes ({', '.join(f'{size:g}' for size in sizes)}): a critical batch "
        f"size takes {FEWEST_SIZES} or more, on both sides of it"
    )
