"""Does the noise scale depend on the size of the model, at equal loss?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.batches.intervals import holm
from analysis.composition.fronts import (
    by_seed_table,
    fitted_table,
    steps_table,
    without_fronts,
)
from analysis.composition.slopes import (
    PARTS,
    at_equal_loss,
    over_seeds,
    quotient,
    slopes_by_seed,
)
from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_row

RUN = ["learning_rate", "width", "depth", "num_parameters", "seed"]
CURVATURE = ["hessian_covariance_trace", "gradient_curvature"]
FAMILIES = {  # which networks, against what
    "all": "num_parameters",
    "widths": "num_parameters",
    "depths": "depth",
}
DEPTH = 2  # of the networks that differ in width alone


def looks_table(runs: Runs) -> pd.DataFrame:
    """A row per look."""
    rows = [
        {name: record[name] for name in RUN} | row
        for _, record in without_fronts(runs)
        for row in record["rows"]
    ]
    columns = [*RUN, "goal", "step", "loss", *PARTS, *CURVATURE]
    return pd.DataFrame(rows).reindex(columns=columns).sort_values(columns[:7], ignore_index=True)


def sizes_table(looks: pd.DataFrame) -> pd.DataFrame:
    """A row per run and loss: B_simple, and B_noise by the means over the looks nearest to it."""
    keys = [*RUN, "goal"]
    table = at_equal_loss(looks, keys)
    means = looks.dropna(subset=CURVATURE).groupby(keys)[CURVATURE].mean()
    full = quotient(means["hessian_covariance_trace"], means["gradient_curvature"])
    return table.merge(full.rename("full").reset_index(), on=keys, how="left")


def slopes_table(sizes: pd.DataFrame) -> pd.DataFrame:
    """A row per rate, loss, quantity and family of networks: the slope, its mean over seeds.

    family: "all" networks and those of depth 2, "widths", against the number of parameters;
    "depths": log quantity less its mean at this width, against log depth; networks that every seed
    has a value of alone. p: of no slope, by Holm over the losses.
    """
    rows = []
    for (rate, goal), group in sizes.groupby(["learning_rate", "goal"]):
        for quantity in ("simple", "full"):
            for family, against in FAMILIES.items():
                estimate, beside = over_seeds(_slopes(group, quantity, family, against))
                row: dict[str, Any] = {"learning_rate": rate, "goal": goal}
                row |= {"quantity": quantity, "family": family}
                rows.append(row | estimate_row("slope", estimate) | beside)
    table = pd.DataFrame(rows)
    for _, group in table.groupby(["learning_rate", "quantity", "family"]):
        table.loc[group.index, "p"] = holm(group["p"].tolist())
    return table


def _slopes(sizes: pd.DataFrame, quantity: str, family: str, against: str) -> np.ndarray:
    """The slope of each seed in a family of networks (S,)."""
    known = sizes.dropna(subset=[quantity])
    reached = known.groupby(["width", "depth"])["seed"].transform("nunique")
    sizes = known[reached == sizes["seed"].nunique()]
    if family == "widths":
        sizes = sizes[sizes["depth"] == DEPTH]
    elif family == "depths":
        several = sizes.groupby("width")["depth"].transform("nunique") > 1
        sizes = sizes[several].copy()
        # each width's own level is taken off both, so that the slope is within widths
        for column in (quantity, against):
            logs = np.log(sizes[column])
            level = logs.groupby([sizes["seed"], sizes["width"]]).transform("mean")
            sizes[column] = np.exp(logs - level)
    return slopes_by_seed(sizes, quantity, [against])[:, 0]


def front_slopes_table(by_seed: pd.DataFrame) -> pd.DataFrame:
    """A row per goal: the slope of log B_crit against log P, its mean over seeds.

    p: of no slope, by Holm over the goals.
    """
    rows = []
    for goal, group in by_seed.groupby("goal"):
        slopes = slopes_by_seed(group, "critical_batch_size", ["num_parameters"])[:, 0]
        estimate, beside = over_seeds(slopes)
        rows.append({"goal": goal} | estimate_row("slope", estimate) | beside)
    table = pd.DataFrame(rows)
    return table.assign(p=holm(table["p"].tolist()))


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    looks = looks_table(runs)
    sizes = sizes_table(looks)
    made = {"looks": looks, "sizes": sizes, "slopes": slopes_table(sizes)}
    steps = steps_table(runs)
    if steps.empty:
        return made
    of_depth = sizes[sizes["depth"] == DEPTH].drop_duplicates("width")
    counts = of_depth.set_index("width")["num_parameters"]
    by_seed = by_seed_table(steps)
    widths = by_seed["front"].str.removeprefix("width").astype(int)
    by_seed["num_parameters"] = counts[widths].to_numpy()
    return made | {
        "steps_to_goal": steps,
        "fits": fitted_table(steps),
        "by_seed": by_seed,
        "front_slopes": front_slopes_table(by_seed),
    }


model_size = analysis(
    "model_size",
    tables,
    help="Tables of the noise scale against the size of the model from the experiment's runs.",
)
