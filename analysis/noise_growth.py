"""Does the noise scale grow along a run? Curves, layers, and start, average and end."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.tables import Runs, analysis, mean_and_std
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.statistics.estimate import estimate_columns
from noisescale.training.records.tables import read_noise, read_noise_layers

CASE = ["batch_size", "seed"]
SCALES = ["simple", "full"]
CURVATURE = ["gradient_curvature", "gradient_curvature_stderr", "hessian_covariance_trace"]


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per run and measurement."""
    rows = [
        pd.DataFrame(read_noise(folder)).assign(**{name: record[name] for name in CASE})
        for folder, record in runs
    ]
    columns = [*CASE, "step", "epoch", "loss", *estimate_columns(*SCALES), *CURVATURE]
    return pd.concat(rows, ignore_index=True)[columns]


def layers_table(runs: Runs) -> pd.DataFrame:
    """A row per batch size, step and tensor: B_simple's geometric mean over resolved seeds.

    num_resolved: of num_seeds. share: of tr Σ, the mean over seeds.
    """
    rows = []
    for folder, record in runs:
        layers = pd.DataFrame(read_noise_layers(folder)).assign(
            **{name: record[name] for name in CASE}
        )
        layers["share"] = layers["gradient_variance"] / layers.groupby("step")[
            "gradient_variance"
        ].transform("sum")
        losses = pd.DataFrame(read_noise(folder))[["step", "loss"]]
        rows.append(layers.merge(losses, on="step"))
    layers = pd.concat(rows, ignore_index=True)
    layers["log"] = np.log(layers["simple"])
    grouped = layers.groupby(["batch_size", "step", "parameter"], sort=False)
    table = grouped.agg(
        loss=("loss", "mean"),
        share=("share", "mean"),
        log=("log", "mean"),
        num_resolved=("log", "count"),
        num_seeds=("seed", "nunique"),
    )
    table["simple"] = np.exp(table.pop("log"))
    return table.reset_index()


def growth_table(runs: Runs) -> pd.DataFrame:
    """A row per batch size: B_simple at the start, its mean over the steps, and at the end.

    growth: the end over the start. least: the smallest value along the run. loss: at the end.
    critical_batch_size: E_min/S_min, the mean weighted by progress. gain: γ of an adaptive batch
    size.
    full_start, full_end: B_noise. negative_curvature: the share of measurements at which GᵀHG lies
    significantly below zero.
    """
    rows = []
    for folder, record in runs:
        table = pd.DataFrame(read_noise(folder))
        recommendation = recommend(table.assign(full=np.nan))
        rows.append(
            {
                **{name: record[name] for name in CASE},
                "start": recommendation.start.value,
                "average": recommendation.average.value,
                "end": recommendation.end.value,
                "growth": recommendation.end.value / recommendation.start.value,
                "least": table["simple"].min(),
                "loss": table["loss"].iloc[-1],
                "critical_batch_size": recommendation.course.critical_batch_size,
                "gain": recommendation.course.gain,
                "full_start": table["full"].iloc[0],
                "full_end": table["full"].iloc[-1],
                "negative_curvature": (table["gradient_curvature_high"] < 0).mean(),
            }
        )
    numbers = [name for name in rows[0] if name not in CASE]
    return mean_and_std(pd.DataFrame(rows).groupby("batch_size"), numbers)


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    return {
        "curves": curves_table(runs),
        "layers": layers_table(runs),
        "growth": growth_table(runs),
    }


noise_growth = analysis(
    "noise_growth",
    tables,
    help="Tables of the noise scale along training from the experiment's run folders.",
)
