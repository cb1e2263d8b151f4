"""Steps against examples to a training loss: fixed batch sizes, and those that follow the noise."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from noisescale.plots.style import BLUE, VERMILION
from paper_figures.style import STYLE, read_table

RULES = {
    "noise": ("rate follows the noise", BLUE, "s", (-16, -8)),
    "none": ("constant rate", VERMILION, "^", (5, 0)),
}  # label, colour, marker, and where the name stands from it


def figure(data: Path) -> Figure:
    """A panel for each goal, each batch size or exchange rate at its best learning rate."""
    front = read_table(data / "adaptive_batch" / "front.csv")
    goals = sorted(front["goal"].unique(), reverse=True)
    with plt.rc_context(STYLE):
        drawn = Figure(figsize=(9, 3.9), layout="constrained")
        panels = drawn.subplots(1, len(goals), squeeze=False)[0]
        for axes, goal in zip(panels, goals, strict=True):
            rows = front[front["goal"] == goal]
            _fixed(axes, rows[rows["batch_size"] != "adaptive"])
            _adaptive(axes, rows[rows["batch_size"] == "adaptive"])
            axes.set_title(f"to training loss {goal:g}", loc="left", fontweight="bold")
            _finish(axes)
        panels[0].set_ylabel("steps")
        drawn.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        drawn.supxlabel(
            "MNIST, unit pixels, 784–256–256–10, SGD, each point at the best of three learning "
            f"rates; geometric means of {front['num_seeds'].max()} seeds, 95 % intervals.\n"
            "Small numbers: batch size, or the examples r that B = √(r·B_simple) trades for a "
            "step. Below and left is better.",
            fontsize=7,
        )
    return drawn


def _fixed(axes: Axes, rows: pd.DataFrame) -> None:
    """The fixed batch sizes, joined."""
    rows = rows.assign(size=rows["batch_size"].astype(int)).sort_values("size")
    _points(axes, rows, label="fixed", color="black", fmt="o-")
    _names(axes, rows, rows["size"], "black", (4, 4))


def _adaptive(axes: Axes, rows: pd.DataFrame) -> None:
    """The adaptive ones, joined for each rule of the learning rate."""
    for rule, (label, colour, marker, offset) in RULES.items():
        of_rule = rows[rows["lr_scaling"] == rule].sort_values("exchange_rate")
        if len(of_rule):
            _points(axes, of_rule, label=f"adaptive, {label}", color=colour, fmt=f"{marker}--")
            _names(axes, of_rule, of_rule["exchange_rate"].astype(int), colour, offset)


def _points(axes: Axes, rows: pd.DataFrame, *, label: str, color: str, fmt: str) -> None:
    errors = {
        name: [rows[name] - rows[f"{name}_low"], rows[f"{name}_high"] - rows[name]]
        for name in ("examples", "steps")
    }
    axes.errorbar(
        rows["examples"],
        rows["steps"],
        xerr=errors["examples"],
        yerr=errors["steps"],
        fmt=fmt,
        color=color,
        label=label,
        markersize=3.5,
        linewidth=1,
        elinewidth=0.7,
    )


def _names(
    axes: Axes, rows: pd.DataFrame, names: pd.Series[int], colour: str, offset: tuple[int, int]
) -> None:
    for (_, row), name in zip(rows.iterrows(), names, strict=True):
        axes.annotate(
            f"{name}",
            (row["examples"], row["steps"]),
            xytext=offset,
            textcoords="offset points",
            fontsize=6,
            color=colour,
        )


def _finish(axes: Axes) -> None:
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,.0f}")
        axis.set_minor_locator(NullLocator())
    axes.tick_params(labelsize=6)
    axes.set_xlabel("examples")
