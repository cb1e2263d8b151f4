"""The edge of stability: λ_max of gradient descent and batch sharpness of SGD, in units of 2/η."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, ORANGE, plot_band
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

LOSSES = {"cross_entropy": "cross-entropy", "mse": "squared error"}
COLOURS = (BLUE, ORANGE, GREEN)  # one a learning rate, the smallest first
SEED_LINES = ("-", "--")
HIGHEST = 2.0  # of the ratios drawn: so that single peaks do not set the axis; the highest is said
KINDS = {"full": ("gradient descent", 300), "8": ("SGD at B = 8", 3750)}  # and the window's steps
CAPTION = (
    "MNIST, a random 5,000 images; 784–200–200–10, ReLU. Solid: seed 0, dashed: seed 1. "
    "Gradient descent: $\\lambda_{{\\max}}$; SGD: batch sharpness, and $\\lambda_{{\\max}}$ "
    "dotted. Eigenvalues are over all 5,000 images, with residuals below 0.1 %; bands are ± 2 "
    "standard errors of the batch sharpness over 256 batches. Grey: the last half of the run; "
    "bars above: the {descent} (SGD: "
    "{stochastic:,}) steps after the first crossing of 2/η, where there is one."
)


def figure(data: Path) -> Figure:
    """Above gradient descent, below SGD; a column for each loss, and the loss where it is known."""
    curves = read_table(data / "edge_of_stability" / "curves.csv")
    windows = read_table(data / "edge_of_stability" / "windows.csv")
    with_loss = "training_loss" in curves
    heights = (3, 1, 3, 1) if with_loss else (1, 1)
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 6.4 if with_loss else 5.0), layout="constrained")
        grid = drawn.subplots(len(heights), 2, height_ratios=heights)
        for column, (loss, title) in enumerate(LOSSES.items()):
            for row, (batch_size, (kind, length)) in enumerate(KINDS.items()):
                axes = grid[2 * row if with_loss else row, column]
                chosen = (curves["loss"] == loss) & (curves["batch_size"] == batch_size)
                of_kind = (windows["loss"] == loss) & (windows["batch_size"] == batch_size)
                _draw_ratios(axes, curves[chosen], is_sgd=batch_size != "full")
                _draw_windows(axes, windows[of_kind], length)
                axes.set_title(f"{title}, {kind}", loc="left", fontweight="bold", pad=14)
                if with_loss:
                    _draw_loss(grid[2 * row + 1, column], curves[chosen])
        (_, descent), (_, stochastic) = KINDS.values()
        caption = CAPTION.format(descent=descent, stochastic=stochastic)
        drawn.supxlabel(fill(caption, 104), fontsize=7)
    return drawn


def _draw_ratios(axes: Axes, runs: pd.DataFrame, *, is_sgd: bool) -> None:
    """The curvature that the theory sets at the limit, in units of 2/η, against the step."""
    leading = "batch_sharpness" if is_sgd else "largest_eigenvalue"
    highest = 0.0
    for run, colour, line in _lines(runs):
        limit = run["stable_sharpness"]
        ratio = run[leading] / limit
        axes.plot(run["step"], ratio, line, color=colour, linewidth=1)
        if is_sgd:
            error = 2 * run["batch_sharpness_stderr"] / limit
            plot_band(axes, run["step"], ratio - error, ratio + error, color=colour)
            eigenvalue = run["largest_eigenvalue"] / limit
            axes.plot(run["step"], eigenvalue, ":", color=colour, linewidth=0.8)
        highest = max(highest, ratio.max())
    for rate, colour in zip(sorted(runs["learning_rate"].unique()), COLOURS, strict=False):
        axes.plot([], [], color=colour, label=f"η = {rate:g}")
    axes.axhline(1, color="black", linestyle="--", linewidth=0.8)
    axes.set_ylim(0, HIGHEST)
    if highest > HIGHEST:
        where: Any = {"transform": axes.transAxes, "ha": "left", "va": "top"}
        axes.text(0.36, 0.98, f"peaks up to {highest:.2g}", **where)
    axes.set_xlabel("step")
    axes.set_ylabel("batch sharpness / (2/η)" if is_sgd else r"$\lambda_{\max}$ / (2/η)")
    place: Any = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.985), "ncols": 3}
    axes.legend(handlelength=1.2, columnspacing=1.0, **place)


def _draw_windows(axes: Axes, windows: pd.DataFrame, length: int) -> None:
    """The last half of the run, and the steps after each rate's first crossing."""
    left, right = axes.dataLim.intervalx
    axes.axvspan((left + right) / 2, right, color="grey", alpha=0.12, linewidth=0)
    rates = sorted(windows["learning_rate"].unique())
    for place, (rate, colour) in enumerate(zip(rates, COLOURS, strict=False)):
        crossing = windows.loc[windows["learning_rate"] == rate, "crossing_step"].min()
        if np.isfinite(crossing):
            height = (0.83 - 0.03 * place) * HIGHEST
            axes.hlines(height, crossing, crossing + length, color=colour, linewidth=2, alpha=0.6)


def _draw_loss(axes: Axes, runs: pd.DataFrame) -> None:
    """The training loss of the same runs."""
    for run, colour, line in _lines(runs):
        axes.plot(run["step"], run["training_loss"], line, color=colour, linewidth=0.8)
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")


def _lines(runs: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str, str]]:
    """Each run's measurements in order, the colour of its learning rate and its seed's line."""
    colours = dict(zip(sorted(runs["learning_rate"].unique()), COLOURS, strict=False))
    lines = dict(zip(sorted(runs["seed"].unique()), SEED_LINES, strict=False))
    for (rate, seed), run in runs.groupby(["learning_rate", "seed"]):
        yield run.sort_values("step"), colours[rate], lines[seed]
