"""Do λ_max of gradient descent and the batch sharpness of SGD settle at 2/η?"""

from __future__ import annotations

import pandas as pd

from analysis.tables import Runs, analysis, mean_and_std
from noisescale.training.records.tables import read_sharpness

CASE = ["loss", "batch_size", "learning_rate", "seed"]
QUANTITIES = ["largest_eigenvalue", "batch_sharpness"]
NEAR = 0.8  # of the limit of stability counts as at the edge


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per run and measurement."""
    rows = [
        pd.DataFrame(read_sharpness(folder)).assign(**{name: record[name] for name in CASE})
        for folder, record in runs
    ]
    columns = [name for quantity in QUANTITIES for name in (quantity, f"{quantity}_stderr")]
    return pd.concat(rows, ignore_index=True)[
        [*CASE, "step", "stable_sharpness", "converged", *columns]
    ]


def plateau_table(curves: pd.DataFrame) -> pd.DataFrame:
    """A row per loss, batch size and rate: how λ_max and batch sharpness stand to the limit 2/η.

    peak: the largest ratio to the limit in the run. plateau: the median ratio while the run is "at
    the edge", from the first to the last measurement at which the quantity that the theory sets
    there, λ_max of gradient descent and batch sharpness of SGD, is at least 0.8 of the limit; nan
    where it is so at less than half of the measurements between them.
    plateau_steps: how long that lasts. Means and standard deviations over seeds.
    """
    rows = []
    for case, run in curves.groupby(CASE, sort=False):
        ratios = run[QUANTITIES].div(run["stable_sharpness"], axis=0)
        leading = ratios["largest_eigenvalue" if case[1] == "full" else "batch_sharpness"]
        near = run.index[leading >= NEAR]
        window = run.loc[near[0] : near[-1]].index if len(near) else near
        plateau = (
            window if 2 * len(near) >= len(window) else near[:0]
        )  # single hits make no plateau
        numbers = {f"{name}_peak": ratios[name].max() for name in QUANTITIES}
        numbers |= {f"{name}_plateau": ratios.loc[plateau, name].median() for name in QUANTITIES}
        steps = run.loc[plateau, "step"]
        numbers["plateau_steps"] = steps.max() - steps.min() if len(plateau) else 0
        rows.append(dict(zip(CASE, case, strict=True)) | numbers)
    return mean_and_std(
        pd.DataFrame(rows).groupby(CASE[:-1]), [name for name in rows[0] if name not in CASE]
    )


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    curves = curves_table(runs)
    return {"curves": curves, "plateau": plateau_table(curves)}


edge_of_stability = analysis(
    "edge_of_stability",
    tables,
    help="Tables of sharpness along training from the experiment's run folders.",
)
