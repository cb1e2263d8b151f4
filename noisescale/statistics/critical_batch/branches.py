"""The critical batch size at one point of training, from branches of equal examples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from noisescale.errors import SettingError
from noisescale.statistics.estimate import CONFIDENCE, Estimate, from_stderr, undefined

BRANCH_COLUMNS = ("batch_size", "learning_rate", "seed", "examples", "loss", "diverged")
BRANCH_HEADINGS = ("batch size", "learning rate", "loss", "± stderr", "seeds")
FEWEST_BRANCHES = 3  # batch sizes: two leave open whether a loss rises or scatters
TOLERANCES = (0.01, 0.02, 0.05, 0.1)  # shares of the loss, for each of which there is an answer
RESAMPLES = 1000  # leave the ends of the interval a few per cent of its width of noise


def branch_critical_batch(table: pd.DataFrame, *, tolerance: float) -> Estimate:
    """The largest batch size whose loss is within `tolerance` of that of every smaller one.

    Branched training, Merrill et al. 2025 (arXiv 2505.23971): from one checkpoint, branches at
    several batch sizes, the learning rate scaled with them, are compared after the same number of
    examples.

    The losses are averaged over the seeds, which are orders of the examples; a batch size with a
    seed that diverged fails. Between the largest batch size that passes and the next one, log B is
    interpolated to where the loss is just within the tolerance. The interval is that of the
    bootstrap over the seeds, widened as few of them need it.

    Args:
        table: a row for each branch and seed, with the columns `batch_size`, `learning_rate`,
            `seed`, `examples`, `loss` (smoothed; anything where it diverged) and `diverged` (0 or
            1).
        tolerance: in units of the loss.

    Returns:
        The critical batch size in examples; without an interval from one seed. Where the largest
        batch size passes, that is the lower bound of a size that is not defined. Where only the
        smallest one does, against which there is none to hold it, the size is not defined either,
        and has an upper bound: see `at_base`. An interval that reaches down to where only the
        smallest one passes is open below, down to 0.

    Raises:
        SettingError: fewer than three batch sizes, a tolerance that is no positive number, or a
            smallest batch size that diverged.

    Examples:
        >>> import pandas as pd
        >>> from noisescale import branch_critical_batch
        >>> rows = [
        ...     (size, 0.01 * size, seed, 4096, 0.5 + 0.001 * size + 0.002 * seed, 0)
        ...     for size in (16, 32, 64, 128)
        ...     for seed in range(3)
        ... ]
        >>> columns = ["batch_size", "learning_rate", "seed", "examples", "loss", "diverged"]
        >>> branch_critical_batch(pd.DataFrame(rows, columns=columns), tolerance=0.05)
        Estimate(65.4 ± 3.0 (58.4–70.3))
    """
    if not (isinstance(tolerance, int | float) and 0 < tolerance < math.inf):
        raise SettingError(f"tolerance {tolerance!r}: give a loss above 0")
    losses = [
        np.where(rows["diverged"] == 1, math.inf, rows["loss"]).astype(float)
        for _, rows in table.groupby("batch_size")
    ]
    sizes = np.array(sorted(table["batch_size"].unique()), dtype=float)
    if len(sizes) < FEWEST_BRANCHES:
        raise SettingError(
            f"{len(sizes)} batch sizes: branches take {FEWEST_BRANCHES} or more to compare"
        )
    if not np.isfinite(losses[0]).all():
        raise SettingError(
            f"batch size {sizes[0]:g} diverged: give smaller learning rates or batch sizes"
        )
    num_seeds = min(map(len, losses))
    value = _largest(sizes, np.array([of_size.mean() for of_size in losses]), tolerance)
    low, high = _interval(sizes, losses, tolerance) if num_seeds > 1 else (math.nan, math.nan)
    if value < sizes[1]:
        highest = float(np.fmax(value, high))
        return Estimate(
            value=math.nan, stderr=math.nan, low=0.0, high=highest, num_samples=num_seeds
        )
    if math.isinf(value) or math.isinf(high):
        return undefined(num_samples=num_seeds, low=float(np.fmin(low, sizes[-1])))
    if num_seeds < 2:
        return from_stderr(value, math.nan, num_samples=num_seeds)
    low = low if low >= sizes[1] else 0.0
    return Estimate.from_interval(value, low, high, num_samples=num_seeds)


def at_base(critical: Estimate) -> bool:
    """Whether no batch size beyond the smallest passes, so that it may be critical, or too large.

    Args:
        critical: by `branch_critical_batch`.

    Returns:
        True where there is no value, but an upper bound.
    """
    return math.isnan(critical.value) and critical.high < math.inf


def branch_tolerances(table: pd.DataFrame, *, tolerance: float) -> dict[float, Estimate]:
    """The critical batch size for several tolerances, shares of the smallest batch size's loss.

    Args:
        table: see `branch_critical_batch`.
        tolerance: a share beside 1, 2, 5 and 10 %.

    Returns:
        The size by the share, ascending.

    Raises:
        SettingError: see `branch_critical_batch`.
    """
    smallest = table[table["batch_size"] == table["batch_size"].min()]
    mean = float(smallest["loss"].mean(skipna=False))
    return {
        share: branch_critical_batch(table, tolerance=share * mean)
        for share in sorted({*TOLERANCES, tolerance})
    }


def _interval(sizes: np.ndarray, losses: list[np.ndarray], tolerance: float) -> tuple[float, float]:
    """The ends of the interval, by the bootstrap over the seeds of each batch size."""
    num_seeds = min(map(len, losses))
    generator = np.random.default_rng(0)
    tail = (1 - CONFIDENCE) / 2
    # a bootstrap of few seeds is too narrow: 1/n in its variance, and the normal for Student's t
    wider = (
        math.sqrt(num_seeds / (num_seeds - 1))
        * special.stdtrit(num_seeds - 1, tail)
        / special.ndtri(tail)
    )
    means = []
    for of_size in losses:
        drawn = generator.choice(of_size, (RESAMPLES, len(of_size))).mean(1)  # (RESAMPLES,)
        mean = of_size.mean()
        if not math.isfinite(mean):
            means.append(np.full(RESAMPLES, math.inf))
        elif (of_size > 0).all():  # in logs, where widening leaves them above zero
            means.append(mean * (drawn / mean) ** wider)
        else:
            means.append(mean + wider * (drawn - mean))
    draws = [_largest(sizes, draw, tolerance) for draw in np.transpose(means)]
    low, high = np.quantile(draws, [tail, 1 - tail], method="nearest").tolist()
    return low, high


def _largest(sizes: np.ndarray, losses: np.ndarray, tolerance: float) -> float:
    """The size up to which losses pass, between two tried; infinity where the last one does."""
    losses = np.where(np.isfinite(losses), losses, math.inf)
    allowed = np.concatenate([[math.inf], np.minimum.accumulate(losses)[:-1] + tolerance])
    last = int(np.flatnonzero(losses <= allowed)[-1])
    if last == len(sizes) - 1:
        return math.inf
    excess = np.array([losses[index] - allowed[last + 1] for index in (last, last + 1)])
    share = 0.0 if math.isinf(excess[1]) or excess[0] >= 0 else -excess[0] / (excess[1] - excess[0])
    return float(sizes[last] * (sizes[last + 1] / sizes[last]) ** share)


def branch_means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean loss and its stderr over the seeds of each batch size; nan where one diverged."""
    rows: list[dict[str, Any]] = []
    for size, of_size in table.groupby("batch_size"):
        kept = of_size["loss"].where(of_size["diverged"] == 0).to_numpy(dtype=float)
        rows.append(
            {
                "batch_size": size,
                "learning_rate": of_size["learning_rate"].iloc[0],
                "loss": float(kept.mean()),
                "loss_stderr": float(kept.std(ddof=1)) / math.sqrt(len(kept))
                if len(kept) > 1
                else math.nan,
                "num_seeds": len(kept),
            }
        )
    return pd.DataFrame(rows)


def branch_cells(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """A row of `branch_means` under `BRANCH_HEADINGS`."""
    loss, stderr = row["loss"], row["loss_stderr"]
    return (
        f"{row['batch_size']:,}",
        f"{row['learning_rate']:.3g}",
        "diverged" if math.isnan(loss) else f"{loss:.4g}",
        "–" if math.isnan(stderr) else f"{stderr:.2g}",
        str(row["num_seeds"]),
    )
