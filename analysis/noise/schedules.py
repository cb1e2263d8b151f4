"""Is a language model's critical batch size another under warm-up, stable, decay?"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from analysis.composition.fronts import by_seed_table, fitted_table, ratios_table
from analysis.tables import Runs, analysis
from noisescale.statistics.critical_batch.goal_table import fastest_runs

GOALS = (2.5, 2.4, 2.3)  # training loss
CONSTANT, DECAYED = "constant", "wsd"
RUN = ["schedule", "batch_size", "learning_rate", "seed"]


def losses_table(runs: Runs) -> pd.DataFrame:
    """A row per run, schedule and length in sequences: the loss at its end; nan: it diverged."""
    rows = [
        {name: record[name] for name in RUN[1:]} | row
        for _, record in runs
        for row in record["rows"]
    ]
    table = pd.DataFrame(rows)[[*RUN, "length", "steps", "loss"]]
    # of a run that has diverged the later lengths are missing, or all of them
    keys = pd.DataFrame([{name: record[name] for name in RUN[1:]} for _, record in runs])
    each = keys.merge(table[["schedule"]].drop_duplicates(), how="cross")
    each = each.merge(table[["length"]].drop_duplicates(), how="cross")
    table = each.merge(table, how="left", on=[*RUN, "length"])[table.columns.tolist()]
    table["steps"] = np.ceil(table["length"] / table["batch_size"]).astype(int)
    return table.astype({"loss": float}).sort_values([*RUN, "length"], ignore_index=True)


def steps_table(losses: pd.DataFrame) -> pd.DataFrame:
    """A row per schedule (the column front), run and goal: the steps it takes, by interpolation.

    Of the log of the length between two lengths, along the lowest loss up to each. censored: the
    longest run does not come to the goal. diverged: a loss is nan. A goal that some run has reached
    in the shortest length is left out, since it is not known how much sooner.
    """
    rows = []
    for key, run in losses.groupby(RUN, sort=False):
        lengths = run["length"].to_numpy(dtype=float)
        lowest = np.minimum.accumulate(run["loss"].fillna(math.inf).to_numpy())
        own = dict(zip(["front", *RUN[1:]], key, strict=True))
        for goal in GOALS:
            examples, censored = _examples_to(goal, lengths, lowest)
            row = {**own, "goal": goal, "steps": examples / run["batch_size"].iloc[0]}
            diverged = bool(run["loss"].isna().any())
            rows.append(row | {"censored": int(censored), "diverged": int(diverged)})
    table = pd.DataFrame(rows)
    too_early = table[table["steps"].isna()]["goal"].unique()
    return table[~table["goal"].isin(too_early)].reset_index(drop=True)


def fastest_table(steps: pd.DataFrame) -> pd.DataFrame:
    """Of each schedule, goal and batch size the runs at its best rate that come to the goal."""
    best = pd.concat([fastest_runs(rows) for _, rows in steps.groupby("front", sort=False)])
    return best[best["censored"] == 0].reset_index(drop=True)


def _examples_to(goal: float, lengths: np.ndarray, losses: np.ndarray) -> tuple[float, bool]:
    """The length at which losses that never rise come to a goal, and whether they do not.

    nan: the first of them is there already.
    """
    reached = np.flatnonzero(losses <= goal)
    if not len(reached):
        return float(lengths[-1]), True
    after = int(reached[0])
    if after == 0:
        return math.nan, False
    before, logs = after - 1, np.log(lengths)
    if math.isinf(losses[before]):
        return float(lengths[after]), False
    share = (losses[before] - goal) / (losses[before] - losses[after])
    return float(np.exp(logs[before] + share * (logs[after] - logs[before]))), False


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from.

    fastest: the runs at the rate that is best for all seeds together, of which fits are. ratios: of
    the decayed runs, the log_ratio of a seed's B_crit, S_min and E_min to those at the constant
    rate.
    """
    losses = losses_table(runs)
    steps = steps_table(losses)
    by_seed = by_seed_table(steps)
    return {
        "losses": losses,
        "steps_to_goal": steps,
        "fastest": fastest_table(steps),
        "fits": fitted_table(steps),
        "by_seed": by_seed,
        "ratios": ratios_table(by_seed, CONSTANT),
    }


schedules = analysis(
    "schedules",
    tables,
    help="Tables of B_crit by a constant rate and by warm-up, stable, decay from the runs.",
)
