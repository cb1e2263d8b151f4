"""The noise scale along a run by the loss: B_simple, what it is made of, B_noise's, and layers."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from noisescale.plots.style import BLACK, BLUE, GREEN, ORANGE, VERMILION, error_bars
from paper_figures.style import STYLE, read_table

COLOURS = {"128": BLUE, "32": ORANGE}
LAYERS = {
    "1.weight": ("layer 1", BLUE, "-"),
    "3.weight": ("layer 2", GREEN, "-"),
    "5.weight": ("layer 3", VERMILION, "-"),
    "1.bias": ("its bias", BLUE, ":"),
    "3.bias": ("its bias", GREEN, ":"),
    "5.bias": ("its bias", VERMILION, ":"),
}
CAPTION = (
    "MNIST, unit pixels, 784–1024–1024–10, SGD at lr 0.01, two epochs, on a random 10,000 training "
    "images (population: dataset). a, c: a line for each seed, {seeds}. a: 95 % bands. b: the "
    "ratio of the batch sizes' B_simple at equal loss, paired by seed, 95 % intervals. "
    "c: the two parts of B_noise with their signs. d: B = 128, geometric "
    "mean of the seeds, where all are resolved."
)
LINEAR = 0.1  # about the error of GᵀHG: within, the axis of the two parts is linear


def figure(data: Path) -> Figure:
    """Panels against the falling loss."""
    curves, layers, equal = (
        read_table(data / "noise_growth" / f"{name}.csv")
        for name in ("curves", "layers", "equal_loss")
    )
    with plt.rc_context({**STYLE, "font.size": 7, "axes.titlesize": 7.5, "legend.fontsize": 7}):
        drawn = Figure(figsize=(5.5, 5), layout="constrained")
        grid = drawn.subplots(2, 2)
        _runs(grid[0, 0], curves, "simple")
        _equal_losses(grid[0, 1], equal)
        _parts(grid[1, 0], curves)
        _layers(grid[1, 1], layers[layers["batch_size"] == "128"])
        titles = (
            "a  The noise scale",
            "b  A larger one at the smaller ε/B",
            "c  B_noise = tr(HΣ)/GᵀHG",
            "d  Parameter tensors",
        )
        for axes, title in zip(grid.flat, titles, strict=True):
            axes.set_title(title, loc="left", fontweight="bold")
            _losses(axes)
        seeds = ", ".join(str(seed) for seed in sorted(curves["seed"].unique()))
        drawn.supxlabel(fill(CAPTION.format(seeds=seeds), 100), fontsize=7)
    return drawn


def _runs(axes: Axes, curves: pd.DataFrame, name: str) -> None:
    """A line with its band for each run, coloured by batch size."""
    for batch_size, colour in COLOURS.items():
        for number, (_, run) in enumerate(
            curves[curves["batch_size"] == batch_size].groupby("seed")
        ):
            label = f"B = {batch_size}" if number == 0 else "_"
            axes.plot(run["loss"], run[name], color=colour, label=label, linewidth=0.9)
            axes.fill_between(
                run["loss"], run[f"{name}_low"], run[f"{name}_high"], color=colour, alpha=0.2, lw=0
            )
    axes.set_yscale("log")
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ (examples)")
    axes.legend(loc="upper left")


def _equal_losses(axes: Axes, equal: pd.DataFrame) -> None:
    """The ratio of the two batch sizes' noise scales, beside what temperature alone would give."""
    bars = error_bars(equal["ratio"], equal["ratio_low"], equal["ratio_high"])
    axes.errorbar(
        equal["loss"], equal["ratio"], yerr=bars, fmt="o", color=BLACK, markersize=3, elinewidth=0.7
    )
    axes.axhline(1, color=BLACK, linewidth=0.8)
    axes.axhline(4, color=BLACK, linewidth=0.8, linestyle=":", label=r"$\propto B/\varepsilon$")
    axes.set_xlim(0.9 * equal["loss"].min(), 1.1 * equal["loss"].max())
    axes.set_yscale("log")
    axes.set_ylim(0.5, 20)
    axes.set_yticks([0.5, 1, 2, 4, 10, 20])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("B = 128 over B = 32")
    axes.legend(loc="upper left")


def _parts(axes: Axes, curves: pd.DataFrame) -> None:
    """tr(HΣ) and GᵀHG, both of which may have either sign."""
    styles: dict[str, tuple[str, Literal["-", "--"]]] = {
        "hessian_covariance_trace": (r"$\mathrm{tr}(H\Sigma)$", "-"),
        "gradient_curvature": (r"$G^\top HG$", "--"),
    }
    for batch_size, colour in COLOURS.items():
        for _, run in curves[curves["batch_size"] == batch_size].groupby("seed"):
            for name, (_, style) in styles.items():
                axes.plot(run["loss"], run[name], style, color=colour, linewidth=0.8)
    axes.axhline(0, color=BLACK, linewidth=0.8)
    axes.set_yscale("symlog", linthresh=LINEAR)
    axes.set_ylim(bottom=-1)
    axes.set_ylabel("loss per squared rate")
    handles = [
        Line2D([], [], color=BLACK, linestyle=style, linewidth=0.8, label=label)
        for label, style in styles.values()
    ]
    axes.legend(handles=handles, loc="lower right")


def _layers(axes: Axes, layers: pd.DataFrame) -> None:
    """Every parameter tensor's B_simple."""
    for parameter, (label, colour, style) in LAYERS.items():
        rows = layers[layers["parameter"] == parameter].sort_values("step")
        resolved = rows["num_resolved"] == rows["num_seeds"]
        values = rows["simple"].where(resolved, np.nan)
        axes.plot(rows["loss"], values, style, color=colour, label=label, linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(top=3e4)  # room for the names
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ (examples)")
    axes.legend(loc="upper left", ncols=2)


def _losses(axes: Axes) -> None:
    """The falling loss as the abscissa."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("mean training loss")
