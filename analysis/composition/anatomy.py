"""Who carries the gradient noise along training, and is its growth signal lost or noise gained?"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import holm
from analysis.composition.slopes import PARTS, over_seeds
from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_row

SCALARS = [
    *PARTS,
    "simple",
    "top_share",
    "effective_examples",
    "importance",
    "between_classes",
    "wrong_examples",
    "wrong_variance",
    "without_noisiest",
    "without_random",
]
GROWTH = (0.4, 0.02)  # the losses that growth is measured between
CLEAR = 0.25  # the loss at which leading and trailing components are compared with the start
LEADING, TRAILING = 8, 65  # the last of the leading components, the first of the trailing ones
DELETED = ("without_noisiest", "without_random")  # what is left of the examples
START = np.inf  # the loss that initialisation has in tables, above all others


def points_table(runs: Runs) -> pd.DataFrame:
    """A row per run and loss (inf: at initialisation): the noise and who carries it, by its looks.

    Means over the looks near the loss, and B_simple as mean tr Σ over mean |G|². without_noisiest,
    without_random: B_simple of what is left when 1 % are deleted. step: of the first look.
    """
    rows = []
    for _, record in runs:
        for point in record["points"]:
            anatomy = point["anatomy"]
            wrong = anatomy["misclassified"]
            row = {"seed": record["seed"], "goal": _goal(point), "step": point["step"]}
            row |= {name: point[name] for name in (*PARTS, "top_share")}
            for left in DELETED:
                row |= {f"{left} {name}": point[left][name] for name in PARTS}
            row |= {
                "effective_examples": anatomy["effective_examples"],
                "importance": anatomy["importance"]["value"],
                "between_classes": anatomy["between_classes"]["value"],
                "wrong_examples": wrong["examples"],
                "wrong_variance": wrong["variance"],
            }
            rows.append(row)
    grouped = pd.DataFrame(rows).groupby(["seed", "goal"])
    table = grouped.mean().assign(step=grouped["step"].min(), num_looks=grouped.size())
    for name, start in (("simple", ""), *((left, f"{left} ") for left in DELETED)):
        signal, noise = (table[f"{start}{part}"] for part in PARTS)
        table[name] = noise / signal
    table = table.reset_index()[["seed", "goal", "step", "num_looks", *SCALARS]]
    return table.sort_values(["seed", "goal"], ascending=[True, False], ignore_index=True)


def _goal(point: dict[str, Any]) -> float:
    return START if point["goal"] is None else float(point["goal"])


def means_table(points: pd.DataFrame) -> pd.DataFrame:
    """A row per loss and quantity: its mean over seeds with Student's t."""
    rows = []
    for goal, group in points.groupby("goal", sort=False):
        for quantity in SCALARS:
            estimate, beside = over_seeds(group[quantity].to_numpy())
            row: dict[str, Any] = {"goal": goal, "quantity": quantity}
            rows.append(row | estimate_row("value", estimate) | {"num_seeds": beside["num_seeds"]})
    return pd.DataFrame(rows)


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per loss and point of the Lorenz curve: the share of tr Σ, mean over seeds."""
    rows = [
        {"goal": _goal(point), "seed": record["seed"], **place}
        for _, record in runs
        for point in record["points"]
        for place in point["anatomy"]["lorenz"]
    ]
    by_seed = pd.DataFrame(rows).groupby(["goal", "examples", "seed"])["variance"].mean()
    grouped = by_seed.groupby(["goal", "examples"])
    means = pd.DataFrame({"variance": grouped.mean(), "variance_std": grouped.std()})
    return means.reset_index()


def components_table(runs: Runs) -> pd.DataFrame:
    """A row per seed, loss and group of the pixels' principal components: |G|², tr Σ, B_simple.

    Means over the looks near the loss, and B_simple as their quotient.
    """
    columns = ["first", "last", *PARTS]
    rows = [
        {"seed": record["seed"], "goal": _goal(point)} | {name: group[name] for name in columns}
        for _, record in runs
        for point in record["points"]
        for group in point["anatomy"]["components"] or ()
    ]
    looks = pd.DataFrame(rows, columns=["seed", "goal", *columns])
    table = looks.groupby(["seed", "goal", "first", "last"]).mean().reset_index()
    return table.assign(simple=table["gradient_variance"] / table["squared_gradient_norm"])


def overlaps_table(runs: Runs) -> pd.DataFrame:
    """A row per loss and kind: the share that two measurements' noisiest 1 % have in common.

    between: "seeds", two seeds at this loss, all pairs, by a jackknife over seeds; "losses", this
    loss and the lowest of the same seed, over seeds; at the first look near a loss. By chance it is
    1 %.
    """
    noisiest: dict[tuple[int, float], np.ndarray] = {}
    for _, record in runs:
        for point in record["points"]:
            own = np.array(point["anatomy"]["noisiest"])
            noisiest.setdefault((record["seed"], _goal(point)), own)
    seeds = sorted({seed for seed, _ in noisiest})
    goals = sorted({goal for _, goal in noisiest}, reverse=True)
    rows = []
    for goal in goals:
        here = [noisiest[seed, goal] for seed in seeds if (seed, goal) in noisiest]
        pairs = [
            (noisiest[seed, goal], noisiest[seed, goals[-1]])
            for seed in seeds
            if (seed, goal) in noisiest and (seed, goals[-1]) in noisiest
        ]
        by_kind = {
            "seeds": jackknife_of_pairs(here),
            "losses": np.array([_overlap(*pair) for pair in pairs]),
        }
        if goal == goals[-1]:
            del by_kind["losses"]  # one with itself
        for kind, values in by_kind.items():
            estimate, _ = over_seeds(values)
            row: dict[str, Any] = {"goal": goal, "between": kind}
            rows.append(row | estimate_row("overlap", estimate) | {"num_seeds": len(here)})
    return pd.DataFrame(rows)


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.isin(first, second).mean())


def jackknife_of_pairs(sets: list[np.ndarray]) -> np.ndarray:
    """Pseudo-values (S,) of the mean overlap over all pairs of S sets, whose mean it is.

    S·U − (S − 1)·U without the i-th: pairs that share a set are not independent, seeds are.
    """
    number = len(sets)
    if number < 3:
        return np.array([_overlap(*pair) for pair in itertools.combinations(sets, 2)])
    table = np.array([[_overlap(first, second) for second in sets] for first in sets])
    np.fill_diagonal(table, 0.0)
    whole = table.sum() / (number * (number - 1))
    left = (table.sum() - 2 * table.sum(0)) / ((number - 1) * (number - 2))
    return np.asarray(number * whole - (number - 1) * left)


def results_table(points: pd.DataFrame, components: pd.DataFrame) -> pd.DataFrame:
    """The primary statistics, a row each, over seeds; p by Holm over deletion and components.

    growth_of_signal: of the growth of log B_simple between two losses the part that is −log |G|²;
    growth: that growth, as a factor; deletion: B_simple without the noisiest 1 % over that without
    a random 1 %, clear_first: that of leading over trailing components, at a loss over the start;
    the last three geometric means, in logarithms.
    """
    wide = {name: points.pivot_table(index="seed", columns="goal", values=name) for name in SCALARS}
    first, last = (_nearest(wide["simple"].columns, goal) for goal in GROWTH)
    growth = np.log(wide["simple"][last] / wide["simple"][first])
    fall = -np.log(wide["squared_gradient_norm"][last] / wide["squared_gradient_norm"][first])
    if first == last:  # of a run that was cut short, which shows no growth
        growth, fall = growth * np.nan, fall * np.nan
    deletion = np.log(wide["without_noisiest"][last] / wide["without_random"][last])
    found: dict[str, tuple[float, np.ndarray]] = {
        "log growth": (last, np.asarray(growth)),
        "growth_of_signal": (last, np.asarray(fall / growth)),
        "top_share": (last, wide["top_share"][last].to_numpy()),
        "effective_examples": (last, wide["effective_examples"][last].to_numpy()),
        "importance": (last, wide["importance"][last].to_numpy()),
        "log deletion": (last, np.asarray(deletion)),
        "log clear_first": (_nearest(components["goal"], CLEAR), clear_first(components)),
    }
    rows = []
    for name, (goal, values) in found.items():
        estimate, beside = over_seeds(values)
        tested = name in ("log deletion", "log clear_first")
        beside["p"] = beside["p"] if tested else np.nan
        rows.append({"quantity": name, "goal": goal} | estimate_row("value", estimate) | beside)
    table = pd.DataFrame(rows)
    table["p"] = holm(table["p"].tolist())
    return table


def clear_first(components: pd.DataFrame) -> np.ndarray:
    """Log of B_simple of leading over trailing components, at a loss less at the start (S,)."""
    by_loss = []
    for goal in (_nearest(components["goal"], CLEAR), START):
        here = components[components["goal"] == goal]
        leading = here[here["last"] <= LEADING].groupby("seed")[PARTS].sum()
        trailing = here[here["first"] >= TRAILING].groupby("seed")[PARTS].sum()
        ratio = leading["gradient_variance"] / leading["squared_gradient_norm"]
        ratio /= trailing["gradient_variance"] / trailing["squared_gradient_norm"]
        by_loss.append(ratio)
    return np.asarray(np.log(by_loss[0] / by_loss[1]), dtype=float)


def _nearest(goals: Any, goal: float) -> float:
    """The loss that there is next to this one, initialisation aside."""
    finite = [float(each) for each in goals if np.isfinite(each)]
    return min(finite, key=lambda each: abs(np.log(each / goal)))


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    points, components = points_table(runs), components_table(runs)
    return {
        "points": points,
        "means": means_table(points),
        "curves": curves_table(runs),
        "components": components,
        "overlaps": overlaps_table(runs),
        "results": results_table(points, components),
    }


anatomy = analysis(
    "anatomy",
    tables,
    help="Tables of who carries the gradient noise along training from the experiment's runs.",
)
