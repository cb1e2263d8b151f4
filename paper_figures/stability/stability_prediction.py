"""How far the predicted edges of stability lie from the measured ones, against batch size."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.stability_map import CURVES
from noisescale.plots.style import BLACK
from paper_figures.stability.stability_map import COMPACT, MAPS, read_map
from paper_figures.style import STYLE

LOWER = "lower, mean square; from initialisation\nβ is that of a subset, so no bound"
TICKS = (0.001, 0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 100)
CAPTION = (
    "Predicted over measured $\\eta_{\\max}$; above the line at 1 a curve promises more than was "
    "found. Grey: the 95 % interval of the measured edge. Bands: 95 % intervals of the "
    "predictions, by the errors of their constants ($\\lambda$ and $\\kappa$ of 10,000 images, "
    "the others of 1,000; at the minima all 1,000 that there are, without error) or the chance of "
    "the simulated batches. Runs and networks as in the figure before; predictions are measured "
    "where the runs of seed 0 start."
)


def figure(data: Path) -> Figure:
    """A panel for each map, a line for each prediction."""
    boundary = read_map(data, "boundary")
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 5.4), layout="constrained")
        grid = drawn.add_gridspec(3, 2, height_ratios=(1, 1, 0.28))
        handles: dict[str, Any] = {}
        for index, (name, (title, _)) in enumerate(MAPS.items()):
            axes = drawn.add_subplot(grid[index // 2, index % 2])
            _draw_ratios(axes, boundary[boundary["map"] == name])
            axes.set_title(f"From {title}", loc="left", fontweight="bold")
            lines, labels = axes.get_legend_handles_labels()
            handles |= zip(labels, lines, strict=True)
        below = drawn.add_subplot(grid[2, :])
        below.axis("off")
        below.legend(list(handles.values()), list(handles), ncols=2, loc="center")
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _draw_ratios(axes: Axes, boundary: pd.DataFrame) -> None:
    """Each curve over the measured edges, at the batch sizes that were run."""
    sizes, measured = boundary["batch_size"], boundary["lr_max"]
    ends = (boundary["lr_max_low"] / measured, boundary["lr_max_high"] / measured)
    axes.fill_between(sizes, *ends, color="grey", alpha=0.35, linewidth=0, label="measured, 95 %")
    axes.axhline(1, color=BLACK, linewidth=1.2)
    for name, (colour, style, words) in CURVES.items():
        ratio = boundary[name] / measured
        label = LOWER if name == "lower" else words
        axes.plot(sizes, ratio, style, color=colour, marker="o", markersize=2.5, label=label)
        if (boundary[f"{name}_low"] > 0).all():  # not where β is a lower estimate
            band = (boundary[f"{name}_low"] / measured, boundary[f"{name}_high"] / measured)
            axes.fill_between(sizes, *band, color=colour, alpha=0.25, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    low, high = axes.get_ylim()
    axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_ylim(low, high)
    axes.minorticks_off()
    axes.set_xlabel("batch size B (examples)")
    axes.set_ylabel("predicted / measured")
