"""What all pictures share: colours, error bars, labels and legends, and a figure as a file."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette (2008): told apart with any kind of colour vision
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, YELLOW, BLACK, SKY = "#CC79A7", "#F0E442", "#000000", "#56B4E9"

LINE_STYLES = ("-", "--", ":", "-.")  # one a run
TITLE_SIZE = 10  # points: room for a run's whole name
DOTS_PER_INCH = 150  # sharp on a screen at 700 to 1,400 pixels a figure, and some 100 kB


def panels(
    count: int, *, width: float, height: float, title: str | None = None, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure and its `count` Axes side by side, each `width` by `height` inches."""
    figure = Figure(figsize=(count * width, height), layout="constrained")
    axes = list(np.ravel(figure.subplots(1, count, sharey=sharey)))
    if title is not None:
        figure.suptitle(title, fontsize=TITLE_SIZE)
    return figure, axes


def plot_band(
    axes: Axes, x: pd.Series[Any], low: pd.Series[float], high: pd.Series[float], *, color: str
) -> None:
    """The intervals from `low` to `high` as a band, interrupted where they are nan.

    A point without a neighbour, whose band would have no width, gets an error bar.
    """
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    known = (low.notna() & high.notna()).to_numpy()
    before, after = np.append(False, known[:-1]), np.append(known[1:], False)
    lone = known & ~before & ~after
    axes.vlines(x[lone], low[lone], high[lone], color=color, alpha=0.5, linewidth=1)


def error_bars(values: Any, low: Any, high: Any) -> np.ndarray:
    """Distances (2, n) down and up to the ends of n intervals, as `Axes.errorbar` takes them.

    0 where an end is unknown or open, so that the other one is still drawn.
    """
    distances = np.abs(np.array([values - low, high - values], dtype=float))
    return np.where(np.isfinite(distances), distances, 0.0)


def finish(axes: Axes, x: str, y: str, *, legend_size: float | None = None) -> None:
    """Labels, grid and, where something has a name, the legend; its size in points."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=legend_size)


def checkpoint_positions(entries: list[dict[str, Any]]) -> tuple[pd.DataFrame, str]:
    """Columns run and step for the entries that a measurement prints with --json; what step counts.

    Where the step of one is not known, the checkpoints themselves, in their order, as if of one
    run.
    """
    steps = [entry["step"] for entry in entries]
    if None in steps:
        return pd.DataFrame({"run": "", "step": range(len(entries))}), "checkpoint"
    return pd.DataFrame({"run": [entry["run"] for entry in entries], "step": steps}), "step"


def by_run(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str, str]]:
    """Each run's rows, line style and addition to labels; all rows without a column "run"."""
    if "run" not in table:
        yield table, LINE_STYLES[0], ""
        return
    runs = table["run"].unique()
    for run, style in zip(runs, itertools.cycle(LINE_STYLES), strict=False):
        yield table[table["run"] == run], style, f", {run}" if len(runs) > 1 else ""


def image(figure: Figure, format: str = "png") -> bytes:
    """The figure as the content of a png, pdf or svg file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=DOTS_PER_INCH)
    return buffer.getvalue()
