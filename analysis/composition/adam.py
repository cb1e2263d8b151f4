"""Which noise scale goes with the critical batch size of Adam?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import holm
from analysis.composition.fronts import by_seed_table, fitted_table, front_folders, steps_table
from analysis.composition.slopes import over_all_seeds
from analysis.tables import Runs, analysis
from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.calibration.model import Scale
from noisescale.statistics.critical_batch.calibration.shipped import Geometry
from noisescale.statistics.critical_batch.curves.steps_to_goal import (
    smoothed_losses,
    steps_to_goal,
)
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.statistics.estimate import estimate_row
from noisescale.training.records.tables import noise_table, read_losses

# name: quantity and geometry
NOISE: dict[str, tuple[Scale, Geometry]] = {
    "simple": ("simple", "plain"),
    "full": ("full", "plain"),
    "preconditioned_simple": ("simple", "optimizer"),
    "preconditioned_full": ("full", "optimizer"),
}
PLAIN = "simple"  # which the others are compared with
FEWEST_LOSSES = 3  # that a spread is told of


def scales_table(runs: Runs) -> pd.DataFrame:
    """A row per front, seed and goal: each noise scale averaged by progress up to the goal.

    nan: it is not resolved along the run, or the run does not reach the goal.
    """
    steps = steps_table(runs)
    goals = sorted(steps["goal"].unique(), reverse=True)
    rows = []
    for name, root in front_folders(runs).items():
        for parts in _noise_runs(runs, root):
            folder, record = parts[0]
            losses = read_losses(folder)
            noise = noise_table(part for part, _ in parts)
            smoothed = smoothed_losses(losses["step"].to_numpy(), losses["loss"].to_numpy())
            for goal in goals:
                end = steps_to_goal(*smoothed, goal)
                row: dict[str, Any] = {"front": name, "seed": record["seed"], "goal": goal}
                row |= {"batch_size": record["batch_size"]}
                if end is None:
                    rows.append(row | dict.fromkeys(NOISE, math.nan))
                    continue
                rows.append(row | _averages(noise[noise["step"] <= end]))
    return pd.DataFrame(rows, columns=["front", "seed", "goal", "batch_size", *NOISE])


def _noise_runs(runs: Runs, root: Path) -> Iterable[Runs]:
    """The runs with the noise scale along them, each in one folder or in parts, by its name."""
    parts: dict[str, Runs] = defaultdict(list)
    for folder, record in runs:
        inside = folder.parents[: folder.parents.index(root)] if root in folder.parents else ()
        if any(parent.name.startswith("noise-") for parent in inside):
            parts[folder.name].append((folder, record))
    return parts.values()


def _averages(noise: pd.DataFrame) -> dict[str, float]:
    """Each noise scale averaged by progress along the rows of a run's noise.csv."""
    found = {}
    for name, (quantity, geometry) in NOISE.items():
        try:
            found[name] = recommend(noise, quantity=quantity, geometry=geometry).by_progress.value
        except MeasurementError:
            found[name] = math.nan
    return found


def ratios_table(by_seed: pd.DataFrame, scales: pd.DataFrame) -> pd.DataFrame:
    """A row per front, seed, goal and noise scale: log of B_crit over it."""
    keys = ["front", "seed", "goal"]
    joined = by_seed[[*keys, "critical_batch_size"]].merge(scales, on=keys)
    long = joined.melt(
        id_vars=[*keys, "critical_batch_size"],
        value_vars=list(NOISE),
        var_name="scale",
        value_name="noise",
    )
    known = (long["noise"] > 0) & (long["critical_batch_size"] > 0)
    logs = np.log(long["critical_batch_size"] / long["noise"].where(known))
    return long.assign(log_ratio=logs)


def spreads_table(ratios: pd.DataFrame) -> pd.DataFrame:
    """A row per front, seed and noise scale: mean and standard deviation of log ratios over goals.

    nan: fewer than three goals have one.
    """
    rows = []
    for key, group in ratios.groupby(["front", "seed", "scale"], sort=False):
        logs = group["log_ratio"].dropna()
        known = len(logs) >= FEWEST_LOSSES
        row: dict[str, Any] = dict(zip(("front", "seed", "scale"), key, strict=True))
        row |= {"num_goals": len(logs), "mean": logs.mean() if known else math.nan}
        rows.append(row | {"spread": logs.std() if known else math.nan})
    return pd.DataFrame(rows)


def results_table(spreads: pd.DataFrame) -> pd.DataFrame:
    """A row per front, noise scale and quantity, over seeds with Student's t.

    nan unless every seed has a value.

    ratio: the mean log of B_crit over the noise scale. spread: the log of its standard deviation
    over goals; against_plain: that less the plain B_simple's, p of none by Holm over all.
    """
    keys = ["front", "seed"]
    plain = spreads[spreads["scale"] == PLAIN].set_index(keys)["spread"]
    base = plain.reindex(pd.MultiIndex.from_frame(spreads[keys])).to_numpy()
    spreads = spreads.assign(
        ratio=spreads["mean"],
        log_spread=np.log(spreads["spread"]),
        against_plain=np.log(spreads["spread"] / base),
    )
    rows = []
    for (front, scale), group in spreads.groupby(["front", "scale"], sort=False):
        for quantity in ("ratio", "log_spread", "against_plain"):
            tested = quantity == "against_plain"
            if tested and scale == PLAIN:
                continue
            estimate, beside = over_all_seeds(group[quantity].to_numpy())
            beside["p"] = beside["p"] if tested else math.nan
            row: dict[str, Any] = {"front": front, "scale": scale, "quantity": quantity}
            rows.append(row | estimate_row("value", estimate) | beside)
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"].tolist()))


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    steps = steps_table(runs)
    by_seed, scales = by_seed_table(steps), scales_table(runs)
    ratios = ratios_table(by_seed, scales)
    spreads = spreads_table(ratios)
    return {
        "steps_to_goal": steps,
        "fits": fitted_table(steps),
        "by_seed": by_seed,
        "scales": scales,
        "ratios": ratios,
        "spreads": spreads,
        "results": results_table(spreads),
    }


adam = analysis(
    "adam",
    tables,
    help="Tables of Adam's critical batch size beside noise scales from the experiment's runs.",
)
