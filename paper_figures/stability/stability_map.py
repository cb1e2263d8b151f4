"""Which learning rates are stable at which batch size: four maps, and cuts of the first."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.stability_map import map_handles, plot_cut, plot_map, plot_usable
from paper_figures.style import STYLE

MAPS = {  # title, and whether the runs start from a minimum
    "unit": ("initialisation, unit pixels", False),
    "raw": ("initialisation, raw pixels", False),
    "mse": ("a minimum, squared error", True),
    "cross_entropy": ("a minimum, cross-entropy", True),
}
MEASURED = ["map", "batch_size", "lr_max", "lr_max_low", "lr_max_high", "num_seeds"]
CAPTION = (
    "MNIST, ReLU. From initialisation: 784–256–256–10, one epoch; stars: where the study's runs "
    "lie, whose network is four times as wide. From a minimum: a random 1,000 images, "
    "784–200–200–10, 1,000 steps; a run has left it once the loss is ten times that at its start. "
    "Shade: mean over the seeds tried at a rate, a single one in {single:.0f} % of the patches; "
    "red: as much of a patch as the share of them that diverged, or left. "
    "Numbers above: seeds that locate each edge, by bisection; bars: 95 % "
    "intervals, at a minimum over orders of the examples alone. At B = 1,000 all seeds are one "
    "run. Bottom: the map at unit pixels; small points are seeds, paler: between two "
    "rates tried; a line ends where the next batch size was not run."
)


def figure(data: Path) -> Figure:
    """Maps from initialisation, from a minimum; the usable rates and two cuts of the first."""
    cells, boundary = (read_map(data, name) for name in ("cells", "boundary"))
    boundary = boundary[MEASURED]
    with plt.rc_context({**STYLE, "axes.grid": False, **COMPACT}):
        drawn = Figure(figsize=(5.5, 8.7), layout="constrained")
        parts: Any = drawn.subfigures(3, 1, height_ratios=(4.6, 2.7, 1.15))
        maps, cuts, below = parts
        handles: dict[str, Any] = {}
        for axes, (name, (title, minimum)) in zip(
            maps.subplots(2, 2).flat, MAPS.items(), strict=True
        ):
            _draw_map(axes, name, cells, boundary, minimum=minimum)
            axes.set_title(f"From {title}", loc="left", fontweight="bold", pad=12)
            named = map_handles(axes, unstable="diverged or left")
            handles |= {handle.get_label(): handle for handle in named}
        maps.legend(handles=list(handles.values()), ncols=3, loc="outside lower center")
        unit = cells[cells["map"] == "unit"]
        usable, along_rate, along_ratio = cuts.subplots(1, 3)
        plot_usable(usable, unit, boundary[boundary["map"] == "unit"], legend=False)
        plot_cut(along_rate, unit, along="learning_rate", legend=False)
        plot_cut(along_ratio, unit, along="rate_over_batch", legend=False)
        for axes in (usable, along_rate, along_ratio):
            axes.tick_params(axis="x", labelrotation=90)
            lines, labels = axes.get_legend_handles_labels()
            place: Any = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.42)}
            short = [label.partition(":")[0] for label in labels]
            axes.legend(lines, short, handlelength=1.5, labelspacing=0.2, **place)
        seeds = cells.groupby(["map", "batch_size", "learning_rate"])["seed"].nunique()
        caption = CAPTION.format(single=100 * float(np.mean(seeds == 1)))
        below.text(0.5, 0.5, fill(caption, 100), ha="center", va="center")
    return drawn


COMPACT: Any = {  # for a figure as wide as a page's text, 5.5 inches
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.labelsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "hatch.linewidth": 0.5,
}


def read_map(data: Path, name: str) -> pd.DataFrame:
    """A table of the stability maps."""
    return pd.read_csv(
        data / "stability_map" / f"{name}.csv",
        comment="#",
        keep_default_na=False,
        na_values=["nan"],
        dtype={"error": str},
    )


def _draw_map(
    axes: Axes, name: str, cells: pd.DataFrame, boundary: pd.DataFrame, *, minimum: bool
) -> None:
    """One map without predictions, and above each batch size its number of seeds."""
    edges = boundary[boundary["map"] == name]
    plot_map(
        axes,
        cells[cells["map"] == name],
        edges,
        quantity="final_loss" if minimum else "test_accuracy",
        unstable="left" if minimum else "diverged",
        cases=name == "raw",
        legend=False,
    )
    axes.tick_params(axis="x", labelrotation=90)  # side by side they touch
    for size, num_seeds in zip(edges["batch_size"], edges["num_seeds"], strict=True):
        where: Any = {"transform": axes.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axes.text(size, 1.01, str(num_seeds), fontsize=7, **where)
