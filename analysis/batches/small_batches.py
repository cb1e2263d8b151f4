"""How does the accuracy depend on the batch size at fixed η/B, and how wide is the usable range?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import DRAWS, bootstrap_interval, holm, p_value, paired
from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_row

AT = -9  # log2 of the η̃ = η/B that batch sizes are compared at
COMPARED_WITH = 16  # the batch size whose accuracy is subtracted
WITHIN = 0.01  # of the best accuracy: what is usable
CLIFF = 0.05  # of accuracy, lost within an octave: where in it is not known


def cells_table(runs: Runs) -> pd.DataFrame:
    """A row per run: norm, batch size, log2 of η̃, ghost size, seed, scores.

    test_accuracy: with batch norm, under statistics of all training images; running_accuracy: under
    the running ones.
    """
    rows = [
        {
            "norm": record["norm"],
            "batch_size": record["batch_size"],
            "exponent": round(float(np.log2(record["learning_rate"] / record["batch_size"]))),
            "ghost_size": record.get("ghost_size"),
            "seed": record["seed"],
            "test_accuracy": record.get("renewed_test_accuracy", record["test_accuracy"]),
            "running_accuracy": record["test_accuracy"],
            "train_loss": record["train_loss"],
            "diverged_at_step": record["diverged_at_step"],
        }
        for _, record in runs
    ]
    table = pd.DataFrame(rows).astype({"ghost_size": float, "train_loss": float})
    key = ["norm", "batch_size", "ghost_size", "exponent", "seed"]
    return table.sort_values(key, ignore_index=True)


def fixed_ratio_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A row per norm and batch size at η̃ = 2⁻⁹ (or the nearest that there is).

    difference: of the accuracy from that at B = 16 (or the nearest), paired by seed; p: that it is
    zero, by Holm over batch sizes.
    """
    rows = []
    for norm, group in _grids(cells).groupby("norm"):
        at = min(group["exponent"].unique(), key=lambda exponent: abs(exponent - AT))
        table = group[group["exponent"] == at].pivot_table(
            index="seed", columns="batch_size", values="test_accuracy"
        )
        base = min(table.columns, key=lambda size: abs(np.log2(size / COMPARED_WITH)))
        others = [size for size in table.columns if size != base]
        adjusted = dict(
            zip(others, holm([p_value(table[size] - table[base]) for size in others]), strict=True)
        )
        for size in table.columns:
            row: dict[str, Any] = {"norm": norm, "exponent": at, "batch_size": size}
            row |= estimate_row("accuracy", paired(table[size]))
            row |= {"compared_with": base}
            row |= estimate_row("difference", paired(table[size] - table[base]))
            rows.append(row | {"p": adjusted.get(size, np.nan), "num_seeds": len(table)})
    return pd.DataFrame(rows)


def usable_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A row per norm and batch size: the η̃ whose mean accuracy is within .01 of the best.

    best: the highest mean accuracy over η̃, best_exponent: where; low_end, high_end: log2 η̃ at the
    ends of the usable range, by linear interpolation, or at a cliff the middle of the octave in
    which it lies; width: the octaves between. Their intervals are of a bootstrap over seeds, and
    reach over the whole octave of a cliff. open_low, open_high: the range goes on beyond the grid.
    """
    rows = []
    for (norm, size), group in _grids(cells).groupby(["norm", "batch_size"]):
        table = group.pivot_table(index="seed", columns="exponent", values="test_accuracy")
        exponents, by_seed = table.columns.to_numpy(dtype=float), table.to_numpy()
        row: dict[str, Any] = {"norm": norm, "batch_size": size}
        means = by_seed.mean(0)
        row |= {"best_exponent": int(exponents[means.argmax()])}
        row |= _range_columns(exponents, by_seed)
        row |= _with_interval("best", by_seed, _best)
        row |= {
            "open_low": int(means[0] >= means.max() - WITHIN),
            "open_high": int(means[-1] >= means.max() - WITHIN),
            "num_seeds": len(by_seed),
        }
        rows.append(row)
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class End:
    """An end of the usable range: log2 of η̃, and between what it is known to lie."""

    value: float
    low: float
    high: float


def usable_range(exponents: np.ndarray, by_seed: np.ndarray) -> tuple[End, End]:
    """The ends of the run of exponents around the best that is usable.

    Args:
        exponents: ascending.
        by_seed: accuracies, a row per seed.
    """
    means = by_seed.mean(0)
    best = int(means.argmax())
    limit = means[best] - WITHIN
    ends = []
    for direction in (-1, 1):
        place = best
        while 0 <= place + direction < len(means) and means[place + direction] >= limit:
            place += direction
        beyond = place + direction
        if not 0 <= beyond < len(means):
            ends.append(End(*[float(exponents[place])] * 3))
        elif means[place] - means[beyond] > CLIFF:
            low, high = sorted(map(float, exponents[[place, beyond]]))
            ends.append(End((low + high) / 2, low, high))
        else:  # where the line between the two meets the limit
            share = (means[place] - limit) / (means[place] - means[beyond])
            end = float(exponents[place] + share * (exponents[beyond] - exponents[place]))
            ends.append(End(end, end, end))
    return ends[0], ends[1]


def _range_columns(exponents: np.ndarray, by_seed: np.ndarray) -> dict[str, float]:
    """Both ends and the width, each with its interval."""

    def bounds(statistic: Callable[[End, End], float]) -> tuple[float, float]:
        return bootstrap_interval(by_seed, lambda rows: statistic(*usable_range(exponents, rows)))[
            1:
        ]

    ends = usable_range(exponents, by_seed)
    row: dict[str, float] = {}
    # of each quantity its value, and what it is at least and at most
    for name, value, least, most in (
        ("low_end", lambda a, b: a.value, lambda a, b: a.low, lambda a, b: a.high),
        ("high_end", lambda a, b: b.value, lambda a, b: b.low, lambda a, b: b.high),
        (
            "width",
            lambda a, b: b.value - a.value,
            lambda a, b: b.low - a.high,
            lambda a, b: b.high - a.low,
        ),
    ):
        row |= {
            name: value(*ends),
            f"{name}_low": bounds(least)[0],
            f"{name}_high": bounds(most)[1],
        }
    return row


def _best(by_seed: np.ndarray) -> float:
    return float(by_seed.mean(0).max())


def norms_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A row per batch size: the best accuracy over η̃ with batch norm less that without.

    batch, none: the accuracies themselves; running: that of batch norm under running statistics.
    Each at its own best η̃ by the mean over the seeds that both have, on the same test images: what
    that adds to either is not in the interval.
    """
    grids = _grids(cells)
    rows = []
    for size, group in grids.groupby("batch_size"):
        seeds = [set(of_norm["seed"]) for _, of_norm in group.groupby("norm")]
        shared = group[group["seed"].isin(set.intersection(*seeds))]
        best: dict[str, pd.Series[float]] = {}
        for norm in ("none", "batch"):
            of_norm = shared[shared["norm"] == norm]
            means = of_norm.groupby("exponent")["test_accuracy"].mean()
            if len(means):
                at_best = of_norm[of_norm["exponent"] == means.idxmax()].set_index("seed")
                best[norm] = at_best["test_accuracy"]
        if len(best) == 2:
            row: dict[str, Any] = {"batch_size": size}
            differences = best["batch"] - best["none"]
            row |= {name: scores.mean() for name, scores in best.items()}
            row |= {"running": at_best["running_accuracy"].mean()}  # the last one's, batch norm
            row |= estimate_row("difference", paired(differences))
            rows.append(row | {"p": p_value(differences), "num_seeds": len(differences)})
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"].tolist()))


def ghosts_table(cells: pd.DataFrame) -> pd.DataFrame:
    """A row per batch size and ghost size: the accuracy less that of ghosts as large as the batch.

    The rate is the one at which the whole batch's statistics did best, on the same test images,
    which favours these. p: by Holm over the ghost sizes of a batch size. share_best: of bootstrap
    draws over seeds, in how many this ghost size has the highest mean accuracy.
    """
    rows = []
    for size, group in cells[cells["norm"] == "ghost"].groupby("batch_size"):
        table = group.pivot_table(index="seed", columns="ghost_size", values="test_accuracy")
        whole = table[table.columns.max()]
        others = [ghost for ghost in table.columns if ghost != table.columns.max()]
        adjusted = dict(
            zip(others, holm([p_value(table[ghost] - whole) for ghost in others]), strict=True)
        )
        shares = _shares_best(table.to_numpy())
        for ghost, share in zip(table.columns, shares, strict=True):
            row: dict[str, Any] = {"batch_size": size, "ghost_size": int(ghost)}
            row |= {"exponent": int(group["exponent"].iloc[0])}
            row |= estimate_row("accuracy", paired(table[ghost]))
            row |= estimate_row("difference", paired(table[ghost] - whole))
            row |= {"p": adjusted.get(ghost, np.nan), "share_best": share}
            rows.append(row | {"num_seeds": len(table)})
    return pd.DataFrame(rows)


def _shares_best(by_seed: np.ndarray) -> np.ndarray:
    """In what share of draws of the seeds each column has the highest mean."""
    generator = np.random.default_rng(0)
    draws = generator.integers(len(by_seed), size=(DRAWS, len(by_seed)))
    best = by_seed[draws].mean(1).argmax(1)
    return np.bincount(best, minlength=by_seed.shape[1]) / DRAWS


def _grids(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[cells["norm"].isin(["none", "batch"])]


def _with_interval(name: str, by_seed: np.ndarray, statistic: Any) -> dict[str, float]:
    value, low, high = bootstrap_interval(by_seed, statistic)
    return {name: value, f"{name}_low": low, f"{name}_high": high}


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    cells = cells_table(runs)
    return {
        "cells": cells,
        "fixed_ratio": fixed_ratio_table(cells),
        "usable": usable_table(cells),
        "norms": norms_table(cells),
        "ghosts": ghosts_table(cells),
    }


small_batches = analysis(
    "small_batches",
    tables,
    help="Tables of accuracy against batch size at fixed η/B from the experiment's runs.",
)
