"""B_simple against the number of parameters at equal loss, and its slope."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, PURPLE, VERMILION, plain_log_axis
from paper_figures.composition.equal_loss import (
    draw_estimates,
    draw_geometric,
    loss_axis,
    loss_colours,
)
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

RATE = 0.1  # of the runs drawn
FAMILIES = {  # of networks: colour, marker, name
    "all": (BLUE, "o", "all, against P"),
    "widths": (VERMILION, "s", "widths, against P"),
    "depths": (GREEN, "^", "depths, against depth"),
}
CAPTION = (
    "MNIST, SGD, B = 64, ε = .1. Left: circles, widths 8 to 1,024 at depth 2; triangles, depths 1, "
    "3 and 4 at widths 16, 64 and 256; geometric means over five seeds, bars ± a standard error. "
    "Right: slope of log $B_{\\mathrm{simple}}$ and, of widths 16 to 256 at tuned rates, three "
    "seeds, of log $B_{\\mathrm{crit}}$; means over seeds with 95 % intervals; below zero larger "
    "networks have less noise."
)


def figure(data: Path) -> Figure:
    """The noise scales, and their slopes."""
    sizes, slopes, front_slopes = (
        read_table(data / "model_size" / f"{name}.csv")
        for name in ("sizes", "slopes", "front_slopes")
    )
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.4), layout="constrained")
        left, right = drawn.subplots(1, 2)
        _draw_sizes(left, sizes[sizes["learning_rate"] == RATE])
        chosen = (slopes["learning_rate"] == RATE) & (slopes["quantity"] == "simple")
        _draw_slopes(right, slopes[chosen], front_slopes)
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _draw_sizes(axes: Axes, sizes: pd.DataFrame) -> None:
    for goal, colour in loss_colours(sizes["goal"]).items():
        at_loss = sizes[sizes["goal"] == goal]
        of_width, of_depth = at_loss[at_loss["depth"] == 2], at_loss[at_loss["depth"] != 2]
        draw_geometric(
            axes,
            of_width,
            "num_parameters",
            "simple",
            color=colour,
            fmt="o-",
            linewidth=1,
            label=f"loss {goal:g}",
        )
        draw_geometric(axes, of_depth, "num_parameters", "simple", color=colour, fmt="^")
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_log_axis(axes.xaxis)
    plain_log_axis(axes.yaxis)
    axes.set_xlabel("parameters P")
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ (examples)")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2)


def _draw_slopes(axes: Axes, slopes: pd.DataFrame, front_slopes: pd.DataFrame) -> None:
    for place, (family, (colour, marker, label)) in enumerate(FAMILIES.items()):
        rows = slopes[slopes["family"] == family].sort_values("goal")
        shifted = rows["goal"] * 1.06 ** (place - 1)
        draw_estimates(axes, rows, shifted, "slope", color=colour, fmt=marker, label=label)
    shifted = front_slopes["goal"] * 1.12
    label = r"$B_{\mathrm{crit}}$, against P"
    draw_estimates(axes, front_slopes, shifted, "slope", color=PURPLE, fmt="D", label=label)
    axes.axhline(0, color="black", linewidth=0.8)
    loss_axis(axes, slopes["goal"])
    axes.set_ylabel("slope of log B")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0))
