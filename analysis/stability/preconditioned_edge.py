"""Does the curvature under RMSprop's preconditioner settle at 2/η?"""

from __future__ import annotations

import pandas as pd

from analysis.tables import Runs, analysis
from noisescale.training.records.tables import read_sharpness

CASE = ["learning_rate", "seed"]


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per run and measurement; ratio: λ_max of P^½HP^½ over its limit 2/η."""
    rows = [
        pd.DataFrame(read_sharpness(folder)).assign(**{name: record[name] for name in CASE})
        for folder, record in runs
    ]
    curves = pd.concat(rows, ignore_index=True)
    curves["ratio"] = curves["preconditioned_eigenvalue"] / curves["preconditioned_stable"]
    columns = [*CASE, "step", "loss", "preconditioned_stable", "preconditioned_eigenvalue", "ratio"]
    return curves[columns].sort_values([*CASE, "step"], ignore_index=True)


def windows_table(curves: pd.DataFrame) -> pd.DataFrame:
    """A row per run: median, least and largest ratio over the last half of its steps."""
    late = curves[curves["step"] >= curves.groupby(CASE)["step"].transform("max") / 2]
    ratios = late.groupby(CASE)["ratio"]
    return ratios.agg(["median", "min", "max"]).reset_index()


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything that is said of it."""
    curves = curves_table(runs)
    return {"curves": curves, "windows": windows_table(curves)}


preconditioned_edge = analysis(
    "preconditioned_edge",
    tables,
    help="Tables of the curvature under RMSprop's P along training from the experiment's runs.",
)
