"""What the figures of noise at equal loss share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from noisescale.plots.style import SERIES, error_bars


def loss_colours(goals: Any) -> dict[float, str]:
    """A colour for each loss, the highest first."""
    ordered = sorted(set(map(float, goals)), reverse=True)
    return {goal: SERIES[place % len(SERIES)] for place, goal in enumerate(ordered)}


def draw_geometric(axes: Axes, rows: pd.DataFrame, x: str, y: str, **style: Any) -> None:
    """Geometric means over seeds of `y` against `x`, with a standard error of the logarithm."""
    logs = pd.Series(np.log(rows[y].to_numpy(dtype=float)), index=rows.index).groupby(rows[x])
    error = logs.sem().fillna(0)
    middle = np.exp(logs.mean().to_numpy())
    bars = middle * np.array([1 - np.exp(-error), np.exp(error) - 1])
    axes.errorbar(
        error.index.to_numpy(dtype=float),
        middle,
        yerr=bars,
        markersize=3,
        elinewidth=0.8,
        **style,
    )


def draw_estimates(axes: Axes, rows: pd.DataFrame, x: Any, name: str, **style: Any) -> None:
    """Values with their 95 % intervals."""
    bars = error_bars(rows[name], rows[f"{name}_low"], rows[f"{name}_high"])
    axes.errorbar(x, rows[name], yerr=bars, markersize=3, elinewidth=0.8, **style)


def loss_axis(axes: Axes, goals: Any, *, label: str = "training loss") -> None:
    """A logarithmic axis of losses, falling to the right as in training, with its own ticks."""
    axes.set_xscale("log")
    ordered = sorted(set(map(float, goals)))
    axes.set_xticks(ordered, [f"{goal:g}".lstrip("0") for goal in ordered], minor=False)
    axes.minorticks_off()
    axes.set_xlim(ordered[-1] * 1.25, ordered[0] / 1.25)
    axes.set_xlabel(label)
