"""Accuracy against the batch size at fixed η/B, the usable range of η/B, and ghost batch norm."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, ORANGE, error_bars
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

NORMS = {"none": (BLUE, "o", "without norm"), "batch": (ORANGE, "s", "batch norm")}
DRAWN = (-12, -10, -9, -8, -7, -6)  # log2 of the η/B that have a line
LOWEST = 0.8  # accuracy drawn: below are runs that have died or not arrived
GHOSTS = (-0.027, 0.004)  # of the difference drawn: ghosts of two lie far below
CAPTION = (
    "MNIST, a random 6,144 images, 784–128–128–10, SGD, 10 epochs; accuracy on 10,000 test "
    "images. Above: accuracy at fixed η/B, means over five seeds (batch norm: three), bars ± a "
    "standard error, of six of the η/B; lines leave the panel where runs die or do not arrive. "
    "Below left: the η/B within .01 of the best at this B, bootstrap intervals over seeds (of "
    "three or five they hold less than 95 %), over a whole octave at a cliff; arrows: beyond the "
    "grid. Batch norm under statistics of all training images. Right: ghost batch norm at batch "
    "norm's best η/B, less statistics of the whole batch (ghosts of two lie far below), eight "
    "seeds, paired, 95 % intervals."
)


def figure(data: Path) -> Figure:
    """Two panels of accuracy, one of the usable range and one of ghosts."""
    cells, usable, ghosts = (
        read_table(data / "small_batches" / f"{name}.csv").astype({"batch_size": int})
        for name in ("cells", "usable", "ghosts")
    )
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 5.0), layout="constrained")
        grid = drawn.subplots(2, 2)
        for axes, (norm, (_, _, title)) in zip(grid[0], NORMS.items(), strict=True):
            _draw_accuracy(axes, cells[cells["norm"] == norm])
            axes.set_title(title, loc="left", fontweight="bold")
        _draw_usable(grid[1, 0], usable)
        _draw_ghosts(grid[1, 1], ghosts)
        drawn.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        drawn.supxlabel(fill(CAPTION, 98), fontsize=7)
    return drawn


def _draw_accuracy(axes: Axes, cells: pd.DataFrame) -> None:
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(DRAWN)))
    for exponent, colour in zip(DRAWN, colours, strict=True):
        grouped = cells[cells["exponent"] == exponent].groupby("batch_size")["test_accuracy"]
        axes.errorbar(
            grouped.mean().index.to_numpy(),
            grouped.mean(),
            yerr=grouped.sem(),
            color=colour,
            marker="o",
            markersize=2.5,
            linewidth=1,
            label=f"η/B = $2^{{{exponent}}}$",
        )
    axes.set_ylim(LOWEST, 0.97)
    _batch_axis(axes)
    axes.set_ylabel("test accuracy")


def _draw_usable(axes: Axes, usable: pd.DataFrame) -> None:
    """Ends of the usable range, with their intervals."""
    for place, (norm, (colour, marker, label)) in enumerate(NORMS.items()):
        own = usable[usable["norm"] == norm].sort_values("batch_size")
        sizes = own["batch_size"] * 1.15 ** (2 * place - 1)
        axes.vlines(sizes, own["low_end"], own["high_end"], color=colour, linewidth=3, alpha=0.35)
        for end, is_open, arrow in (
            ("low_end", own["open_low"], "v"),
            ("high_end", own["open_high"], "^"),
        ):
            errors = error_bars(own[end], own[f"{end}_low"], own[f"{end}_high"])
            axes.errorbar(
                sizes,
                own[end],
                yerr=errors,
                color=colour,
                marker=marker,
                markersize=2.5,
                linestyle="none",
                label=label if end == "low_end" else None,
            )
            beyond = is_open == 1
            axes.plot(sizes[beyond], own[end][beyond], arrow, color=colour, markersize=5)
    axes.set_ylabel("log2 of usable η/B")
    _batch_axis(axes)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2)


def _draw_ghosts(axes: Axes, ghosts: pd.DataFrame) -> None:
    for place, (size, colour) in enumerate(
        zip(sorted(ghosts["batch_size"].unique()), (BLUE, ORANGE, GREEN), strict=False)
    ):
        own = ghosts[ghosts["batch_size"] == size].sort_values("ghost_size")
        value = own["difference"]
        axes.errorbar(
            own["ghost_size"] * 1.08 ** (place - 1),
            value,
            yerr=error_bars(value, own["difference_low"], own["difference_high"]),
            color=colour,
            marker="o",
            markersize=3,
            linewidth=1,
            label=f"B = {size}",
        )
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylim(*GHOSTS)
    _batch_axis(axes)
    axes.set_xlabel("ghost size b (examples)")
    axes.set_ylabel("accuracy less that at b = B")
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.15, 1.0), ncols=3, columnspacing=0.8, handlelength=1.2
    )


def _batch_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    ticks = (1, 4, 16, 64, 256, 1024)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_xlabel("batch size B (examples)")
