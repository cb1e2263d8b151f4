"""The picture of a line between two models: loss and accuracy against α."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLACK, BLUE, GREEN, VERMILION, finish, panels, plot_band

COLOURS = {"train": BLUE, "validation": GREEN, "test": VERMILION}
STYLES = {"train": "-", "validation": "-.", "test": "--"}
LARGEST_RANGE = 100  # largest over smallest loss, beyond which the axis is logarithmic


def interpolation_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """Loss and, of classes, accuracy of each split along the line, with 95 % bands.

    Args:
        table: the rows of `Interpolation.to_frame`.
        title: of the whole.
    """
    scores = [score for score in ("loss", "accuracy") if score in table]
    figure, axes = panels(len(scores), width=4.2, height=3.6, title=title)
    for one, score in zip(axes, scores, strict=True):
        plot_line(one, table, score)
    return figure


def plot_line(axes: Axes, table: pd.DataFrame, score: str) -> None:
    """A score of each split against α, the two models at 0 and 1 as lines.

    Args:
        axes: to draw on.
        table: the rows of `Interpolation.to_frame`.
        score: "loss" or "accuracy".
    """
    for split, rows in table.groupby("split", sort=False):
        name = str(split)
        colour, style = COLOURS.get(name, BLACK), STYLES.get(name, "-")
        low, high = rows[f"{score}_low"], rows[f"{score}_high"]
        plot_band(axes, rows["alpha"], low, high, color=colour)
        axes.plot(rows["alpha"], rows[score], style, color=colour, label=name)
    for end in (0, 1):
        axes.axvline(end, color=BLACK, linewidth=0.8, linestyle=":")
    finite = table[score].to_numpy(dtype=float)
    finite = finite[np.isfinite(finite)]
    if score == "loss" and len(finite) and 0 < finite.min() < finite.max() / LARGEST_RANGE:
        axes.set_yscale("log")
    name = "mean loss" if score == "loss" else score
    finish(axes, "α, from the first model (0) to the second (1)", name)
