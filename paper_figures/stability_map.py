"""Which learning rates are stable at which batch size: four maps with predicted edges, and cuts."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from noisescale.plots.stability_map import map_handles, plot_cut, plot_map, plot_usable
from paper_figures.style import STYLE

MAPS = {  # title, and whether the runs start from a minimum
    "unit": ("From initialisation, unit pixels", False),
    "raw": ("From initialisation, raw pixels", False),
    "mse": ("From a minimum, squared error", True),
    "cross_entropy": ("From a minimum, cross-entropy", True),
}
CAPTION = (
    "MNIST, ReLU. From initialisation: 784–256–256–10, one epoch; stars: where the study's runs"
    " lie, whose network is four times as wide. From a minimum: a random 1,000 images, "
    "784–200–200–10, 1,000 steps; a run has left it once the loss is ten times that at its "
    "start. Colour: mean over the seeds tried at a rate, grey where not finite. {fewest} to "
    "{most} seeds locate each edge, by bisection; bars: 95 % intervals. The curves are "
    "predicted where the runs of seed 0 start. Bottom: the map at unit pixels; small points are"
    " seeds."
)


def figure(data: Path) -> Figure:
    """Maps from initialisation, from a minimum; the usable rates and two cuts of the first."""
    cells, boundary = (
        _read(data / "stability_map" / f"{name}.csv") for name in ("cells", "boundary")
    )
    with plt.rc_context({**STYLE, "axes.grid": False}):
        drawn = Figure(figsize=(9, 12.6), layout="constrained")
        grid = drawn.add_gridspec(4, 6, height_ratios=(1, 1, 0.16, 0.62))
        handles: list[Any] = []
        for index, (name, (title, minimum)) in enumerate(MAPS.items()):
            axes = drawn.add_subplot(grid[index // 2, 3 * (index % 2) : 3 * (index % 2) + 3])
            plot_map(
                axes,
                cells[cells["map"] == name],
                boundary[boundary["map"] == name],
                quantity="final_loss" if minimum else "test_accuracy",
                unstable="left" if minimum else "diverged",
                cases=name == "raw",
                legend=False,
            )
            axes.set_title(title, loc="left", fontweight="bold")
            handles = handles or (
                map_handles(axes, unstable="diverged or left") if name == "raw" else []
            )
        below = drawn.add_subplot(grid[2, :])
        below.axis("off")
        below.legend(handles=handles, ncols=4, loc="center", fontsize=7)
        unit = cells[cells["map"] == "unit"]
        plot_usable(drawn.add_subplot(grid[3, :2]), unit, boundary[boundary["map"] == "unit"])
        plot_cut(drawn.add_subplot(grid[3, 2:4]), unit, along="learning_rate")
        plot_cut(drawn.add_subplot(grid[3, 4:]), unit, along="rate_over_batch")
        seeds = boundary[boundary["map"].isin(MAPS)]["num_seeds"]
        caption = CAPTION.format(fewest=seeds.min(), most=seeds.max())
        drawn.supxlabel(fill(caption, 130), fontsize=7)
    return drawn


def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(
        path, comment="#", keep_default_na=False, na_values=["nan"], dtype={"error": str}
    )
