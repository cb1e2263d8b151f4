"""The noise scale along a run: B_simple by step and by loss, B_noise, and the parameter tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from noisescale.plots.noise import Scale, plot_noise
from noisescale.plots.style import BLUE, GREEN, ORANGE, VERMILION
from paper_figures.style import STYLE, read_table

COLOURS = {"128": BLUE, "32": ORANGE}
LAYERS = {
    "1.weight": ("layer 1", BLUE, "-"),
    "3.weight": ("layer 2", GREEN, "-"),
    "5.weight": ("layer 3", VERMILION, "-"),
    "1.bias": ("layer 1, bias", BLUE, ":"),
    "3.bias": ("layer 2, bias", GREEN, ":"),
    "5.bias": ("layer 3, bias", VERMILION, ":"),
}


def figure(data: Path) -> Figure:
    """Above B_simple against step and loss, below B_noise and the parameters against the loss."""
    curves = read_table(data / "noise_growth" / "curves.csv")
    layers = read_table(data / "noise_growth" / "layers.csv")
    published = read_table(data / "published.csv")
    marks = published[published["figure"] == "noise_growth"].set_index("quantity")["value"]
    with plt.rc_context(STYLE):
        drawn = Figure(figsize=(9, 6.4), layout="constrained")
        grid = drawn.subplots(2, 2)
        _runs(grid[0, 0], curves, quantity="simple", against="step")
        _published(grid[0, 0], marks)
        _runs(grid[0, 1], curves, quantity="simple", against="loss")
        _runs(grid[1, 0], curves, quantity="full", against="loss")
        _negative(grid[1, 0], curves)
        _layers(grid[1, 1], layers[layers["batch_size"] == "128"])
        for axes, title in zip(grid.flat, "abcd", strict=True):
            axes.set_title(title, loc="left", fontweight="bold")
        seeds = ", ".join(str(seed) for seed in sorted(curves["seed"].unique()))
        drawn.supxlabel(
            "MNIST, unit pixels, 784–1024–1024–10, SGD at lr 0.01, two epochs, on a random 10,000 "
            "training images (population: dataset).\n"
            f"a–c: a line for each seed, {seeds}, with 95 % band; triangles: lower bounds. "
            "d: B = 128, geometric mean of the seeds, where all are resolved.",
            fontsize=7,
        )
    return drawn


def _runs(
    axes: Axes, curves: pd.DataFrame, *, quantity: Scale, against: Literal["step", "loss"]
) -> None:
    """A line with its band for each run, coloured by batch size."""
    for batch_size, colour in COLOURS.items():
        runs = curves[curves["batch_size"] == batch_size]
        for number, (_, run) in enumerate(runs.groupby("seed")):
            label = f"B = {batch_size}" if number == 0 else "_"
            plot_noise(
                axes,
                run,
                quantity=quantity,
                against=against,
                label=label,
                color=colour,
                linewidth=0.9,
            )
    name = {"simple": "simple", "full": "noise"}[quantity]
    axes.set_ylabel(rf"$B_{{\mathrm{{{name}}}}}$ (examples)")
    axes.set_ylim(*{"simple": (30, 2e4), "full": (50, 2e5)}[quantity])
    axes.legend(loc="upper left")


def _published(axes: Axes, published: pd.Series[float]) -> None:
    """The published start, and average over the run."""
    marks = {"simple_start": ("start", "--"), "simple_average": ("average", ":")}
    for name, (label, style) in marks.items():
        value = published[name]
        axes.axhline(
            value,
            color="black",
            linestyle=style,
            linewidth=1,
            label=f"published {label}, {value:g}",
        )
    axes.legend(loc="upper left")


def _negative(axes: Axes, curves: pd.DataFrame) -> None:
    """Shades the losses at which the curvature along the gradient is negative in some run."""
    below = curves[curves["gradient_curvature"] + 2 * curves["gradient_curvature_stderr"] < 0]
    axes.axvspan(
        below["loss"].min(),
        below["loss"].max(),
        color="black",
        alpha=0.08,
        linewidth=0,
        label=r"$G^\top HG < 0$: none",
    )
    axes.legend(loc="upper left")


def _layers(axes: Axes, layers: pd.DataFrame) -> None:
    """Every parameter tensor's B_simple against the loss."""
    for parameter, (label, colour, style) in LAYERS.items():
        rows = layers[layers["parameter"] == parameter].sort_values("step")
        resolved = rows["num_resolved"] == rows["num_seeds"]
        values = rows["simple"].where(resolved, np.nan)
        axes.plot(rows["loss"], values, style, color=colour, label=label, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("mean training loss")
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ (examples)")
    axes.legend(loc="upper left", ncols=2)
