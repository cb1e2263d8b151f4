"""What do wrong labels, and fewer classes, make of the noise scale?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import holm
from analysis.composition.fronts import (
    by_seed_table,
    fitted_table,
    ratios_table as front_ratios,
    steps_table,
    without_fronts,
)
from analysis.composition.slopes import PARTS, over_seeds, quotient
from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_row, from_log_samples, undefined

CASE = ["classes", "label_noise"]
MIXTURE = "imbalance"  # images of the first class for one of the last
MOST_CLASSES = 10  # that the fewer are compared with
CLEAN = "noise0"  # the front of right labels
QUANTITIES = ("simple", *PARTS)


def points_table(runs: Runs) -> pd.DataFrame:
    """A row per run and point: means over its looks, and B_simple, mean tr Σ over mean |G|²."""
    rows = [
        {
            "classes": record["num_classes"],
            "label_noise": record.get("label_noise", 0.0),
            MIXTURE: record.get(MIXTURE, 1.0),
            "seed": record["seed"],
            **{name: row[name] for name in ("point", "step", "validation_loss", *PARTS)},
        }
        for _, record in without_fronts(runs)
        for row in record["rows"]
    ]
    looks = pd.DataFrame(rows).astype({"validation_loss": float})
    grouped = looks.groupby([*CASE, MIXTURE, "seed", "point"])
    table = grouped[["step", "validation_loss", *PARTS]].mean()
    table = table.join(grouped.size().rename("num_looks")).reset_index()
    return table.assign(simple=quotient(table["gradient_variance"], table["squared_gradient_norm"]))


def redrawn_table(runs: Runs) -> pd.DataFrame:
    """A row per seed, classes and share: B_simple at initialisation, its wrong labels the seed's.

    predicted: by the gradients of this seed under right and under evenly drawn labels, a share q =
    p·C/(C − 1) of these; approximate: by (B_simple(0) + 1)/(1 − q)² − 1, as if outputs were equal.
    """
    rows = []
    for _, record in without_fronts(runs):
        if "redrawn" not in record:
            continue
        of = record["mixture"]
        classes = record["num_classes"]
        clean = of["clean_squares"] / of["clean_clean"] - 1
        case: dict[str, Any] = {"classes": classes, "seed": record["seed"]}
        exact = {"predicted": clean, "approximate": clean}
        rows.append(case | {"label_noise": 0.0, "simple": clean} | exact)
        for drawn in record["redrawn"]:
            q = evenly_drawn(drawn["label_noise"], classes)
            signal = (1 - q) ** 2 * of["clean_clean"] + q**2 * of["even_even"]
            signal += 2 * q * (1 - q) * of["clean_even"]
            squares = (1 - q) * of["clean_squares"] + q * of["even_squares"]
            rows.append(
                case
                | {
                    "label_noise": drawn["label_noise"],
                    "simple": drawn["gradient_variance"] / drawn["squared_gradient_norm"],
                    "predicted": squares / signal - 1,
                    "approximate": (clean + 1) / (1 - q) ** 2 - 1,
                }
            )
    return pd.DataFrame(rows).sort_values([*CASE, "seed"], ignore_index=True)


def evenly_drawn(share: Any, classes: Any) -> Any:
    """The share of evenly drawn labels that a share of wrong ones amounts to: p·C/(C − 1)."""
    return share * classes / (classes - 1)


def _clean(table: pd.DataFrame, quantity: str) -> pd.Series[float]:
    """A quantity at p = 0 in equal classes, of the same classes, seed and point, for each row."""
    keys = ["classes", "seed", "point"]
    clean = _equal(table[table["label_noise"] == 0]).set_index(keys)[quantity]
    return pd.Series(
        clean.reindex(pd.MultiIndex.from_frame(table[keys])).to_numpy(), index=table.index
    )


def _equal(points: pd.DataFrame) -> pd.DataFrame:
    """The rows of data sets whose classes are about equal."""
    return points[points[MIXTURE] == 1]


def mixtures_table(points: pd.DataFrame) -> pd.DataFrame:
    """A row per mixture, point and quantity: over that of equal classes, paired by seed.

    A geometric mean with Student's t; p: of no difference, by Holm over mixtures and points of a
    quantity.
    """
    rows = []
    for quantity in QUANTITIES:
        ratios = points.assign(ratio=points[quantity] / _clean(points, quantity))
        ratios = ratios[ratios[MIXTURE] != 1]
        of_quantity = []
        for (imbalance, point), group in ratios.groupby([MIXTURE, "point"]):
            row: dict[str, Any] = {"quantity": quantity, MIXTURE: imbalance, "point": point}
            row |= {"step": group["step"].mean()} | estimate_row(
                "ratio", _geometric(group["ratio"])
            )
            _, beside = over_seeds(np.log(group["ratio"].where(group["ratio"] > 0)).to_numpy())
            of_quantity.append(row | beside)
        for row, p in zip(of_quantity, holm([row["p"] for row in of_quantity]), strict=True):
            rows.append(row | {"p": p})
    return pd.DataFrame(rows)


def law_table(redrawn: pd.DataFrame) -> pd.DataFrame:
    """A row per case at initialisation: B_simple measured, predicted, and the ratio of the two.

    Geometric means over seeds, each with wrong labels of its own, with Student's t. p: of a ratio
    of one, by Holm over all p > 0.
    """
    rows = []
    for case, group in redrawn.groupby(CASE):
        row: dict[str, Any] = dict(zip(CASE, case, strict=True))
        row |= estimate_row("measured", _geometric(group["simple"]))
        row |= estimate_row("predicted", _geometric(group["predicted"]))
        over = _geometric(group["simple"] / group["approximate"])
        row |= estimate_row("over_approximate", over)
        ratio = group["simple"] / group["predicted"]
        _, beside = over_seeds(np.log(ratio.to_numpy()))
        if row["label_noise"] == 0:
            beside["p"] = np.nan  # one measurement
        rows.append(row | estimate_row("ratio", _geometric(ratio)) | beside)
    table = pd.DataFrame(rows)
    table["p"] = holm(table["p"].tolist())
    return table


def ratios_table(points: pd.DataFrame) -> pd.DataFrame:
    """A row per case, point and quantity: over that at p = 0, or at ten classes, paired by seed.

    over: "right labels", of the same classes, or "ten classes", of right labels alone.
    """
    points = _equal(points)
    rows = []
    for quantity in QUANTITIES:
        noisy = points.assign(ratio=points[quantity] / _clean(points, quantity))
        noisy = noisy[noisy["label_noise"] > 0].assign(over="right labels")
        clean = points[points["label_noise"] == 0]
        all_classes = clean[clean["classes"] == MOST_CLASSES].set_index(["seed", "point"])[quantity]
        fewer = clean[clean["classes"] < MOST_CLASSES]
        index = pd.MultiIndex.from_frame(fewer[["seed", "point"]])
        whole = all_classes.reindex(index).to_numpy()
        fewer = fewer.assign(ratio=fewer[quantity] / whole, over="ten classes")
        for key, group in pd.concat([noisy, fewer]).groupby(["over", *CASE, "point"]):
            row: dict[str, Any] = {"quantity": quantity}
            row |= dict(zip(["over", *CASE, "point"], key, strict=True))
            row |= {"step": group["step"].mean()}
            row |= estimate_row("ratio", _geometric(group["ratio"]))
            rows.append(row | {"num_seeds": int(group["ratio"].notna().sum())})
    return pd.DataFrame(rows)


def fronts_table(by_seed: pd.DataFrame) -> pd.DataFrame:
    """A row per share of wrong labels and goal: log B_crit over that of right labels, and the law.

    predicted: the log of the law's factor at initialisation, 1/(1 − q)².
    """
    table = front_ratios(by_seed, CLEAN, quantities=["critical_batch_size"])
    table["label_noise"] = table["front"].str.removeprefix("noise").astype(float)
    evenly = evenly_drawn(table["label_noise"], MOST_CLASSES)
    return table.assign(predicted=-2 * np.log(1 - evenly)).drop(columns=["quantity"])


def _geometric(values: pd.Series[float]) -> Any:
    """The geometric mean over seeds with Student's t, undefined of fewer than two."""
    known = values[values > 0].to_numpy()
    return from_log_samples(known) if len(known) > 1 else undefined(num_samples=len(known))


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    points = points_table(runs)
    redrawn = redrawn_table(runs)
    made = {"points": points, "redrawn": redrawn, "law": law_table(redrawn)}
    made |= {"ratios": ratios_table(points), "mixtures": mixtures_table(points)}
    steps = steps_table(runs)
    if steps.empty:
        return made
    by_seed = by_seed_table(steps)
    return made | {
        "steps_to_goal": steps,
        "fits": fitted_table(steps),
        "by_seed": by_seed,
        "fronts": fronts_table(by_seed),
    }


heterogeneity = analysis(
    "heterogeneity",
    tables,
    help="Tables of the noise scale under wrong labels and fewer classes from the experiment's "
    "runs.",
)
