"""Does the noise scale follow the temperature ε/B of SGD, at equal loss?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.batches.intervals import holm
from analysis.composition.slopes import PARTS, at_equal_loss, over_seeds, slopes_by_seed
from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import estimate_row

RUN = ["batch_size", "learning_rate", "seed"]
SLOPES = {  # in the logs of which columns, by what their slopes are called
    ("size_over_rate",): ("B/ε",),
    ("batch_size", "inverse_rate"): ("B", "1/ε"),
}


def looks_table(runs: Runs) -> pd.DataFrame:
    """A row per look."""
    rows = [
        {name: record[name] for name in RUN} | row for _, record in runs for row in record["rows"]
    ]
    columns = [*RUN, "goal", "step", "loss", *PARTS]
    return pd.DataFrame(rows)[columns].sort_values(columns[:5], ignore_index=True)


def pairs_table(looks: pd.DataFrame) -> pd.DataFrame:
    """A row per run and loss: B_simple, and B/ε."""
    table = at_equal_loss(looks, [*RUN, "goal"])
    table["size_over_rate"] = table["batch_size"] / table["learning_rate"]
    return table


def exponents_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """A row per loss and exponent of B_simple, its mean over seeds: 1 by the law, 0: no effect.

    exponent: of B/ε alone, or of B and 1/ε fitted together. p: of none, by Holm over the losses.
    num_pairs: that reach this loss, of any seed.
    """
    pairs = pairs.assign(inverse_rate=1 / pairs["learning_rate"])
    rows = []
    for goal, group in pairs.groupby("goal"):
        num_pairs = len(group.groupby(["batch_size", "learning_rate"]))
        for against, names in SLOPES.items():
            by_seed = slopes_by_seed(group, "simple", against)
            for name, slopes in zip(names, by_seed.T, strict=True):
                estimate, beside = over_seeds(slopes)
                row: dict[str, Any] = {"goal": goal, "exponent": name, "num_pairs": num_pairs}
                rows.append(row | estimate_row("value", estimate) | beside)
    table = pd.DataFrame(rows)
    for _, group in table.groupby("exponent"):
        table.loc[group.index, "p"] = holm(group["p"].tolist())
    return table


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    looks = looks_table(runs)
    pairs = pairs_table(looks)
    return {"looks": looks, "pairs": pairs, "exponents": exponents_table(pairs)}


temperature = analysis(
    "temperature",
    tables,
    help="Tables of the noise scale against rate over batch size from the experiment's runs.",
)
