"""The edge of stability: λ_max of gradient descent and batch sharpness of SGD, in units of 2/η."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, ORANGE
from paper_figures.style import STYLE, read_table

LOSSES = {"cross_entropy": "cross-entropy", "mse": "squared error"}
COLOURS = (BLUE, ORANGE, GREEN)  # one a learning rate, the smallest first


def figure(data: Path) -> Figure:
    """Above gradient descent, below SGD at B = 8; a column for each loss, a line for each seed."""
    curves = read_table(data / "edge_of_stability" / "curves.csv")
    with plt.rc_context(STYLE):
        drawn = Figure(figsize=(9, 6.2), layout="constrained")
        grid = drawn.subplots(2, 2)
        for column, (loss, title) in enumerate(LOSSES.items()):
            runs = curves[curves["loss"] == loss]
            _descent(grid[0, column], runs[runs["batch_size"] == "full"])
            _stochastic(grid[1, column], runs[runs["batch_size"] == "8"])
            grid[0, column].set_title(f"{title}, gradient descent", loc="left", fontweight="bold")
            grid[1, column].set_title(f"{title}, SGD at B = 8", loc="left", fontweight="bold")
        seeds = " and ".join(str(seed) for seed in sorted(curves["seed"].unique()))
        drawn.supxlabel(
            f"MNIST, a random 5,000 images; 784–200–200–10, ReLU. A line for each seed, {seeds}. "
            "Eigenvalues are over all 5,000 images,\nwith residuals below 0.1 %; bands are ± 2 "
            "standard errors of the batch sharpness over 256 batches.",
            fontsize=7,
        )
    return drawn


def _descent(axes: Axes, runs: pd.DataFrame) -> None:
    """λ_max in units of 2/η against the step."""
    for run, colour in _lines(runs):
        ratio = run["largest_eigenvalue"] / run["stable_sharpness"]
        axes.plot(run["step"], ratio, color=colour, linewidth=1)
    rates = runs.groupby("learning_rate")["stable_sharpness"].first()
    for (rate, limit), colour in zip(rates.items(), COLOURS, strict=False):
        axes.plot([], [], color=colour, label=f"η = {rate:g}, 2/η = {limit:.3g}")
    _finish(axes, r"$\lambda_{\max}\,/\,(2/\eta)$")


def _stochastic(axes: Axes, runs: pd.DataFrame) -> None:
    """Batch sharpness and, dotted, λ_max in units of 2/η against the step."""
    for run, colour in _lines(runs):
        ratio = run["batch_sharpness"] / run["stable_sharpness"]
        error = 2 * run["batch_sharpness_stderr"] / run["stable_sharpness"]
        axes.plot(run["step"], ratio, color=colour, linewidth=1)
        axes.fill_between(
            run["step"], ratio - error, ratio + error, color=colour, alpha=0.2, linewidth=0
        )
        eigenvalue = run["largest_eigenvalue"] / run["stable_sharpness"]
        axes.plot(run["step"], eigenvalue, ":", color=colour, linewidth=1)
    for rate, colour in zip(sorted(runs["learning_rate"].unique()), COLOURS, strict=False):
        axes.plot([], [], color=colour, label=f"batch sharpness, η = {rate:g}")
    axes.plot([], [], ":", color="black", label=r"$\lambda_{\max}$")
    _finish(axes, r"curvature$\,/\,(2/\eta)$")


def _lines(runs: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str]]:
    """Each run's measurements in order, and the colour of its learning rate."""
    colours = dict(zip(sorted(runs["learning_rate"].unique()), COLOURS, strict=False))
    for (rate, _), run in runs.groupby(["learning_rate", "seed"]):
        yield run.sort_values("step"), colours[rate]


def _finish(axes: Axes, label: str) -> None:
    axes.axhline(1, color="black", linestyle="--", linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])
    axes.legend(loc="upper right")
