"""B_crit of a language model by a constant rate and by warm-up, stable, decay."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, VERMILION, error_bars, plain_log_axis
from paper_figures.composition.equal_loss import draw_geometric, loss_axis, loss_colours
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

SCHEDULES = {  # colour, marker and line, name
    "constant": (BLUE, "o", "-", "constant rate"),
    "wsd": (VERMILION, "s", "--", "decayed at the end"),
}
TABLES = ("fastest", "fits")
CAPTION = (
    "A character GPT on tiny Shakespeare, AdamW. Left: sequences to a training loss at the best "
    "rate, one for all three seeds, geometric means with the fitted hyperbolas; full, at a "
    "constant rate; dashed and open, with a decay in the last fifth. Right: B_crit of all seeds "
    "together, with 95 % intervals; the ratio of the two within a seed is known better."
)


def figure(data: Path) -> Figure:
    """Examples to a loss against the batch size, and B_crit against the loss, of either."""
    fastest, fits = (read_table(data / "schedules" / f"{name}.csv") for name in TABLES)
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.2), layout="constrained")
        left, right = drawn.subplots(1, 2, width_ratios=(1.3, 1))
        _draw_examples(left, fastest, fits)
        _draw_critical(right, fits)
        for axes in (left, right):
            axes.set_yscale("log")
            plain_log_axis(axes.yaxis)
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _draw_examples(axes: Axes, fastest: pd.DataFrame, fits: pd.DataFrame) -> None:
    of_runs = fastest["batch_size"].astype(int)
    best = fastest.assign(batch_size=of_runs, examples=fastest["steps"] * of_runs)
    for goal, colour in loss_colours(fastest["goal"]).items():
        for name, (_, marker, line, _) in SCHEDULES.items():
            rows = best[(best["front"] == name) & (best["goal"] == goal)]
            look = {"color": colour, "fmt": marker, "linewidth": 0}
            look["markerfacecolor"] = colour if line == "-" else "white"
            label = f"{goal:g}" if line == "-" else None
            draw_geometric(axes, rows, "batch_size", "examples", label=label, **look)
            fit = fits[(fits["front"] == name) & (fits["goal"] == goal) & fits["resolved"]]
            if len(fit) and len(rows):
                sizes = np.geomspace(rows["batch_size"].min(), rows["batch_size"].max(), 50)
                least, critical = (
                    fit[column].iloc[0] for column in ("min_examples", "critical_batch_size")
                )
                axes.plot(sizes, least * (1 + sizes / critical), line, color=colour, linewidth=0.8)
    axes.set_xscale("log", base=2)
    plain_log_axis(axes.xaxis)
    axes.set_xlabel("batch size B (sequences)")
    axes.set_ylabel("sequences to the loss, E")
    axes.legend(title="loss", ncols=2, loc="lower right")


def _draw_critical(axes: Axes, fits: pd.DataFrame) -> None:
    for place, (name, (colour, marker, _, label)) in enumerate(SCHEDULES.items()):
        rows = fits[(fits["front"] == name) & (fits["critical_batch_size"] > 0)]
        values = rows["critical_batch_size"]
        bars = error_bars(values, rows["critical_batch_size_low"], rows["critical_batch_size_high"])
        axes.errorbar(
            rows["goal"] * 1.006 ** (2 * place - 1),
            values,
            yerr=bars,
            color=colour,
            fmt=marker,
            markersize=3,
            elinewidth=0.8,
            label=label,
        )
    goals = fits["goal"]
    loss_axis(axes, goals)
    axes.set_xlim(goals.max() * 1.03, goals.min() / 1.03)
    axes.set_ylim(top=1.9 * fits["critical_batch_size_high"].max())  # room for the legend
    axes.set_ylabel(r"$B_{\mathrm{crit}}$ (sequences)")
    axes.legend()
