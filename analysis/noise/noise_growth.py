"""Does the noise scale grow along a run? Curves, layers, its growth, and equal losses compared."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.tables import Committed, Runs, analysis, mean_and_std
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.statistics.estimate import (
    estimate_columns,
    estimate_row,
    from_log_samples,
    undefined,
)
from noisescale.training.records.tables import read_noise, read_noise_layers

CASE = ["batch_size", "seed"]
PARTS = ["squared_gradient_norm", "gradient_variance"]
SCALES = ["simple", "full"]
CURVATURE = ["gradient_curvature", "hessian_covariance_trace"]
TURNED = 1.5  # the loss below which B_simple has turned upwards in every run
LOSSES = (1.0, 0.8, 0.6, 0.5, 0.4, 0.35, 0.325)  # compared; those at B = 128 reach the last
# columns that the committed measurements lack, of 10,000 of MNIST's images
FORMER = {"num_examples": 10_000, "population_size": 60_000}
PAIR = (128, 32)  # batch sizes, at one learning rate: temperatures ε/B a factor of four apart


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per run and measurement."""
    rows = [
        pd.DataFrame(read_noise(folder)).assign(**{name: record[name] for name in CASE})
        for folder, record in runs
    ]
    quantities = estimate_columns(*PARTS, *SCALES, *CURVATURE)
    columns = [*CASE, "step", "epoch", "num_examples", "population_size", "loss", *quantities]
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


def growth_table(curves: pd.DataFrame) -> pd.DataFrame:
    """A row per batch size: B_simple at the start, its mean over the steps, and at the end.

    growth: the end over the start, two points of a series that jumps; least: the smallest value.
    exponent: of the loss, as the slope of log B_simple in log 1/loss once it has turned upwards,
    of all measurements from there. loss: at the end.
    critical_batch_size: E_min/S_min, the mean weighted by progress. gain: γ of an adaptive batch
    size.
    full_start, full_end: B_noise. negative_curvature: the share of measurements at which GᵀHG lies
    significantly below zero. end_subset: the standard error of the end that the subset of examples
    brings, which is one for all seeds, so that their spread does not show it.
    """
    rows = []
    for (batch_size, seed), table in curves.groupby(CASE):
        recommendation = recommend(table.assign(full=np.nan))
        turned = table[table["loss"] < TURNED]
        exponent = np.nan
        if len(turned) > 2:
            exponent = np.polyfit(-np.log(turned["loss"]), np.log(turned["simple"]), 1)[0]
        rows.append(
            {
                "batch_size": batch_size,
                "seed": seed,
                "start": recommendation.start.value,
                "average": recommendation.average.value,
                "end": recommendation.end.value,
                "end_subset": recommendation.end.stderr,
                "growth": recommendation.end.value / recommendation.start.value,
                "exponent": exponent,
                "least": table["simple"].min(),
                "loss": table["loss"].iloc[-1],
                "critical_batch_size": recommendation.course.critical_batch_size,
                "gain": recommendation.course.gain,
                "full_start": table["full"].iloc[0],
                "full_end": table["full"].iloc[-1],
                "negative_curvature": (
                    table["gradient_curvature"] + 2 * table["gradient_curvature_stderr"] < 0
                ).mean(),
            }
        )
    numbers = [name for name in rows[0] if name not in CASE]
    return mean_and_std(pd.DataFrame(rows).groupby("batch_size"), numbers)


def equal_loss_table(curves: pd.DataFrame) -> pd.DataFrame:
    """A row per loss: B_simple at either batch size of PAIR, and the ratio, paired by seed.

    Interpolated in log–log at the first passage of the loss; geometric means over seeds with
    Student's t, nan where fewer than two reach it. The pairs share the subset of examples and where
    they start. McCandlish et al. 2018 (arXiv 1812.06162), appendix C: B ∝ 1/T, so a ratio of 4.
    """
    rows = []
    for loss in LOSSES:
        logs = pd.DataFrame(
            {
                size: {
                    seed: _log_simple(run, loss)
                    for seed, run in curves[curves["batch_size"] == size].groupby("seed")
                }
                for size in PAIR
            }
        ).dropna()
        values = {f"simple_{size}": logs[size] for size in PAIR}
        values["ratio"] = logs[PAIR[0]] - logs[PAIR[1]]
        row = {"loss": loss, "num_seeds": len(logs)}
        for name, samples in values.items():
            estimate = undefined(num_samples=len(logs))
            if len(logs) > 1:
                estimate = from_log_samples(np.exp(samples.to_numpy()))
            row |= estimate_row(name, estimate)
        rows.append(row)
    return pd.DataFrame(rows)


def _log_simple(run: pd.DataFrame, loss: float) -> float:
    """Log B_simple where the loss is first at or below this one; nan if it never is."""
    logs = np.log(run["loss"].to_numpy())
    below = np.flatnonzero(logs <= np.log(loss))
    if not len(below) or below[0] == 0:
        return np.nan
    pair = slice(below[0] - 1, below[0] + 1)
    values = np.log(run["simple"].to_numpy())[pair]
    return float(np.interp(-np.log(loss), -logs[pair], values))


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    curves = curves_table(runs)
    return {
        "curves": curves,
        "layers": layers_table(runs),
        **derived(curves),
    }


def derived(curves: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is made of the measurements."""
    return {"growth": growth_table(curves), "equal_loss": equal_loss_table(curves)}


def again(committed: Committed) -> dict[str, pd.DataFrame]:
    """What is made of the committed measurements."""
    curves = committed("curves").astype({"batch_size": int})
    for name, value in FORMER.items():
        if name not in curves:
            curves[name] = value
    return derived(curves)


noise_growth = analysis(
    "noise_growth",
    tables,
    help="Tables of the noise scale along training from the experiment's run folders; without "
    "RUNS, from the committed measurements.",
    reuses="curves",
    again=again,
)
