"""Do λ_max of gradient descent and the batch sharpness of SGD settle at 2/η?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.tables import Committed, Runs, analysis
from noisescale.training.records.tables import read_sharpness

CASE = ["loss", "batch_size", "learning_rate", "seed"]
QUANTITIES = ["largest_eigenvalue", "batch_sharpness"]
# The steps after a quantity first reaches its limit, over which its median is taken: the same for
# all rates, and chosen from none of them: three eighths of gradient descent's run and of SGD's
AFTER_CROSSING = {"full": 300, "8": 3750}


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per run and measurement."""
    rows = [
        pd.DataFrame(read_sharpness(folder))
        .rename(columns={"loss": "training_loss"})
        .assign(**{name: record[name] for name in CASE})
        for folder, record in runs
    ]
    columns = [name for quantity in QUANTITIES for name in (quantity, f"{quantity}_stderr")]
    return pd.concat(rows, ignore_index=True)[
        [*CASE, "step", "training_loss", "stable_sharpness", "converged", *columns]
    ]


def windows_table(curves: pd.DataFrame) -> pd.DataFrame:
    """A row per run: how λ_max and batch sharpness stand to the limit 2/η, over stated windows.

    leading: the quantity that the theory sets at the limit, λ_max of gradient descent and batch
    sharpness of SGD. crossing_step: the first measurement at which it is at or above the limit;
    nan where there is none. For both quantities, as ratios to the limit, _peak: the largest.
    _after_crossing: the median over so many steps from there on. _last_half: the median over the
    last half of the run. slope: the least-squares slope of the leading one's ratio over the last
    half, per 1,000 steps.
    """
    rows = []
    for case, run in curves.groupby(CASE, sort=False):
        batch_size = str(case[1])
        ratios = run[QUANTITIES].div(run["stable_sharpness"], axis=0)
        leading = "largest_eigenvalue" if batch_size == "full" else "batch_sharpness"
        steps = run["step"]
        crossing = steps[ratios[leading] >= 1].min()
        windows = {
            "after_crossing": steps.between(crossing, crossing + AFTER_CROSSING[batch_size]),
            "last_half": steps >= steps.max() / 2,
        }
        numbers = {"leading": leading, "crossing_step": crossing}
        for name in QUANTITIES:
            numbers[f"{name}_peak"] = ratios[name].max()
            for window, inside in windows.items():
                numbers[f"{name}_{window}"] = ratios.loc[inside, name].median()
        late = windows["last_half"]
        slope, _ = np.polyfit(steps[late] / 1000, ratios.loc[late, leading], 1)
        rows.append(dict(zip(CASE, case, strict=True)) | numbers | {"slope": slope})
    return pd.DataFrame(rows).sort_values(CASE, ignore_index=True)


def again(committed: Committed) -> dict[str, pd.DataFrame]:
    """What is made of the committed measurements."""
    return {"windows": windows_table(committed("curves"))}


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    curves = curves_table(runs)
    return {"curves": curves, "windows": windows_table(curves)}


edge_of_stability = analysis(
    "edge_of_stability",
    tables,
    help="Tables of sharpness along training from the experiment's run folders; without RUNS, from "
    "the committed measurements.",
    reuses="curves",
    again=again,
)
