"""Do large batches end in sharper minima, at equal epochs, updates and loss?"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import holm, p_value, paired
from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_columns, estimate_row, from_log_samples

KEY = ["case", "stop"]
BOXES = ("phi_0.001", "phi_0.0005", "phi_filter")
RATIOS = (
    "sharpness",
    "trace",
    *(f"{box}_{iterations}" for box in BOXES for iterations in (10, 50)),
)
DIFFERENCES = ("test_accuracy", "test_loss", "gap")
COMPARED = (
    *(*KEY, "quantity", "kind", "small", "large"),
    *(*estimate_columns("value"), "p", "num_seeds"),
)


def states_table(runs: Runs) -> pd.DataFrame:
    """A row per case, batch size, seed and stop: curvature and scores of the model there.

    gap: test loss less training loss.
    """
    rows = [
        {"case": record["case"], "seed": record["seed"]}
        | {name: record[name] for name in ("batch_size", "learning_rate")}
        | {name: value for name, value in state.items() if not name.endswith("_because")}
        for _, record in runs
        if record["part"] == "minima"
        for state in record["states"]
    ]
    table = pd.DataFrame(rows)
    table["gap"] = table["test_loss"] - table["train_loss"]
    return table.sort_values([*KEY, "batch_size", "seed"], ignore_index=True)


def comparisons_table(states: pd.DataFrame) -> pd.DataFrame:
    """A row per case, stop and quantity: large batch over small, or less it, paired by seed.

    kind: "ratio", a geometric mean, or "difference". p: by Holm over the cases and stops of a
    quantity. Only seeds that both batch sizes have, and where a case has two or more of them.
    """
    rows = []
    for case, group in states.groupby(KEY, sort=False):
        sizes = sorted(group["batch_size"].unique())
        if len(sizes) < 2:  # one of them has not come so far
            continue
        for name in (*RATIOS, *DIFFERENCES):
            table = group.pivot_table(index="seed", columns="batch_size", values=name).dropna()
            if len(table) < 2:
                continue
            small, large = table[sizes[0]].to_numpy(), table[sizes[1]].to_numpy()
            is_ratio = name in RATIOS
            changes = np.log(large / small) if is_ratio else large - small
            estimate = from_log_samples(large / small) if is_ratio else paired(changes)
            row: dict[str, Any] = {**dict(zip(KEY, case, strict=True)), "quantity": name}
            row |= {"kind": "ratio" if is_ratio else "difference"}
            row |= {"small": small.mean(), "large": large.mean()}
            row |= estimate_row("value", estimate)
            rows.append(row | {"p": p_value(changes), "num_seeds": len(table)})
    if not rows:  # no case has two seeds
        return pd.DataFrame(columns=list(COMPARED))
    found = pd.DataFrame(rows)
    for _, group in found.groupby("quantity"):
        found.loc[group.index, "p"] = holm(group["p"].tolist())
    return found


def lines_table(runs: Runs) -> pd.DataFrame:
    """A row per case, stop and α: scores on the line, means over seeds with their deviation."""
    rows = pd.DataFrame(
        {"case": record["case"], "seed": record["seed"]}
        | {name: value for name, value in row.items() if not name.endswith("_because")}
        for _, record in runs
        if record["part"] == "line"
        for row in record["rows"]
    )
    scores = ["train_loss", "train_accuracy", "test_loss", "test_accuracy"]
    rows[scores] = rows[scores].astype(float)
    rows["alpha"] = rows["alpha"].round(6)
    grouped = rows.groupby([*KEY, "alpha"])[scores]
    means, spreads = grouped.mean(), grouped.std().add_suffix("_std")
    table = means.join(spreads).join(grouped.size().rename("num_seeds"))
    return pd.DataFrame(table.reset_index())


def barriers_table(runs: Runs) -> pd.DataFrame:
    """A row per case and stop: the largest excess of the loss over the chord between the ends."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _, record in runs:
        if record["part"] != "line" or not record["rows"]:  # no stop that both have come to
            continue
        for stop, line in pd.DataFrame(record["rows"]).groupby("stop"):
            inside = line[line["alpha"].between(-1e-9, 1 + 1e-9)].astype({"alpha": float})
            heights = (_barrier(inside, "train_loss"), _barrier(inside, "test_loss"))
            found.setdefault((record["case"], str(stop)), []).append(heights)
    rows = []
    for case, by_seed in found.items():
        row: dict[str, Any] = dict(zip(KEY, case, strict=True))
        for split, values in zip(("train", "test"), np.array(by_seed).T, strict=True):
            row |= estimate_row(f"{split}_barrier", paired(values))
        rows.append(row | {"num_seeds": len(by_seed)})
    return pd.DataFrame(rows)


def _barrier(line: pd.DataFrame, name: str) -> float:
    alpha, loss = line["alpha"].to_numpy(), line[name].to_numpy(dtype=float)
    chord = loss[0] + (loss[-1] - loss[0]) * (alpha - alpha[0]) / (alpha[-1] - alpha[0])
    return float((loss - chord).max())


def rates_table(runs: Runs) -> pd.DataFrame:
    """A row per tuning run: loss, batch size, rate, accuracy on images that are not its own.

    chosen: the rate with the highest accuracy. at_an_end: it is the smallest or largest tried.
    """
    rows = [
        {
            "loss": re.split("-bs", folder.name)[0],
            **{name: record[name] for name in ("batch_size", "learning_rate", "held_out")},
        }
        for folder, record in runs
        if record["part"] == "tuning"
    ]
    columns = ["loss", "batch_size", "learning_rate", "held_out"]
    table = pd.DataFrame(rows, columns=columns).sort_values(columns[:3], ignore_index=True)
    by_size = table.groupby(columns[:2])
    lowest, highest = (by_size["learning_rate"].transform(end) for end in ("min", "max"))
    at_an_end = (table["learning_rate"] == lowest) | (table["learning_rate"] == highest)
    chosen = table["held_out"] == by_size["held_out"].transform("max")
    return table.assign(chosen=chosen.astype(int), at_an_end=(chosen & at_an_end).astype(int))


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    states = states_table(runs)
    return {
        "states": states,
        "comparisons": comparisons_table(states),
        "lines": lines_table(runs),
        "barriers": barriers_table(runs),
        "rates": rates_table(runs),
    }


sharp_minima = analysis(
    "sharp_minima",
    tables,
    help="Tables of the minima of small and large batches from the experiment's runs.",
)
