"""η·λ_max/2 in the first updates from raw pixels, and how runs end, by batch size."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

SIZES = ("1", "32", "1024")
LINES = 5  # rates drawn, of those that begin above 2/η
HIGHEST = 1e5  # of η·λ_max/2 drawn: what has gone beyond does not come back
LABELS = {  # how a run ends: colour and marker
    "converged": (BLUE, "o", "trains"),
    "catapult": (GREEN, "^", "trains after a rise"),
    "slow": (BLACK, ".", "loss above chance"),
    "dead": (PURPLE, "X", "dead"),
    "diverged": (ORANGE, "x", "diverged"),
}
CAPTION = (
    "MNIST at raw pixels. Above: 784–256–256–10, $\\lambda_{\\max}$ of the loss of 200 images "
    "after each update, three seeds a rate; below the line gradient descent is stable; a line ends "
    "where the loss is no longer finite or the curvature no longer computable. Below: how each "
    "run of that network ends after 300 updates (small) and, above these, the study's network "
    "of 1,024 units (large; 59, 1,875 and 20,000 updates at B = 1,024, 32 and 1); dashed: "
    "2/$\\lambda_{\\max}$ at initialisation."
)


def figure(data: Path) -> Figure:
    """A column for each batch size above; below, the ends of all runs."""
    curves = read_table(data / "catapult" / "curves.csv")
    runs = read_table(data / "catapult" / "runs.csv")
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 5.2), layout="constrained")
        grid = drawn.add_gridspec(2, 3, height_ratios=(1.5, 1))
        rates = _rates(runs)
        first: Axes | None = None
        for column, size in enumerate(SIZES):
            axes = drawn.add_subplot(grid[0, column], sharey=first)
            first = first or axes
            _draw_curves(axes, curves[curves["batch_size"] == size], rates)
            axes.set_title(f"B = {int(size):,}", loc="left", fontweight="bold")
        assert first is not None
        first.set_ylabel("$\\eta\\,\\lambda_{\\max}/2$")
        lines, labels = first.get_legend_handles_labels()
        ends = drawn.add_subplot(grid[1, :])
        _draw_ends(ends, runs)
        marks, names = ends.get_legend_handles_labels()
        drawn.legend(lines + marks, labels + names, loc="outside upper center", ncols=3)
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _rates(runs: pd.DataFrame) -> list[float]:
    """Rates that begin above 2/η, evenly spread."""
    watched = runs[(runs["part"] == "watched") & (runs["start"] > 1)]
    rates = np.sort(watched["learning_rate"].unique())
    places = np.unique(np.linspace(0, len(rates) - 1, LINES).round().astype(int))
    return [float(rates[place]) for place in places]


def _draw_curves(axes: Axes, curves: pd.DataFrame, rates: list[float]) -> None:
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(rates)))
    for rate, colour in zip(rates, colours, strict=True):
        of_rate = curves[np.isclose(curves["learning_rate"], rate)]
        label: str | None = f"η = {rate:.2g}"
        for _, run in of_rate.groupby("seed"):
            relative = run["relative"].where(run["relative"] < HIGHEST)
            axes.plot(run["step"], relative, color=colour, linewidth=0.9, label=label)
            label = None
    axes.axhline(1, color="black", linestyle="--", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylim(0.05, HIGHEST)
    axes.set_xlabel("update")


def _draw_ends(axes: Axes, runs: pd.DataFrame) -> None:
    """Every run's end at its rate, a row for each batch size, seeds side by side."""
    named: set[str] = set()
    for place, size in enumerate(reversed(SIZES)):
        of_size = runs[runs["batch_size"] == size]
        for _, run in of_size.iterrows():
            is_on_its_way = run["label"] == "slow" and run["trained"] == 1
            colour, marker, words = LABELS["converged" if is_on_its_way else run["label"]]
            is_star = run["part"] == "star"
            height = place + (0.28 if is_star else -0.2 + 0.12 * run["seed"])
            axes.plot(
                run["learning_rate"],
                height + (0.09 * run["seed"] if is_star else 0),
                marker,
                color=colour,
                markersize=5 if is_star else 3,
                label=None if words in named else words,
                linestyle="none",
            )
            named.add(words)
    start = runs.loc[runs["part"] == "watched"]
    axes.axvline(
        (start["learning_rate"] / start["start"]).median(),
        color="black",
        linestyle="--",
        linewidth=0.8,
    )
    axes.set_xscale("log")
    axes.set_yticks(range(len(SIZES)), [f"B = {int(size):,}" for size in reversed(SIZES)])
    axes.set_ylim(-0.5, len(SIZES) - 0.3)
    axes.set_xlabel("learning rate η")
