"""The picture of a recommendation: learning rates tried, the noise scale, and the sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.noise import plot_noise
from noisescale.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    LEGEND_SIZE,
    ORANGE,
    VERMILION,
    error_bars,
    finish,
    panels,
)

COLOURS = (GREEN, BLACK, ORANGE)  # of the three aims


def recommendation_figure(
    tried: pd.DataFrame,
    noise: pd.DataFrame,
    sizes: Sequence[Mapping[str, Any]],
    *,
    best: float,
    title: str,
) -> Figure:
    """The loss that each rate reached, the noise scale along the run, and a batch size per aim.

    Args:
        tried: the rows of learning_rates.csv.
        noise: the rows of the run's noise.csv.
        sizes: aim, batch_size, low, high and learning_rate of each; none where not resolved.
        best: the best rate; nan where it is not known.
        title: of the whole.
    """
    figure, (rates, scales, chosen) = panels(3, width=3.6, height=3.8, title=title)
    _plot_rates(rates, tried, best)
    plot_noise(scales, noise)
    _plot_sizes(chosen, sizes)
    return figure


def _plot_rates(axes: Axes, tried: pd.DataFrame, best: float) -> None:
    """The loss by rate, the best one as a line; what does not train stands at the upper edge."""
    trained = tried[np.isfinite(tried["loss"])]
    axes.plot(trained["learning_rate"], trained["loss"], "o-", color=BLUE, markersize=4)
    failed = tried[~np.isfinite(tried["loss"])]
    if len(failed):
        axes.plot(
            failed["learning_rate"],
            np.full(len(failed), 0.97),
            "x",
            color=VERMILION,
            transform=axes.get_xaxis_transform(),
            label="does not train",
        )
    if not math.isnan(best):
        axes.axvline(best, color=BLACK, linewidth=1, linestyle="--", label="best")
    axes.set_xscale("log")
    if len(trained) and (trained["loss"] > 0).all():
        axes.set_yscale("log")
    finish(axes, "learning rate", "loss after as many steps")


def _plot_sizes(axes: Axes, sizes: Sequence[Mapping[str, Any]]) -> None:
    """Each aim's batch size with its interval, and the learning rate that goes with it."""
    if not sizes:
        axes.text(0.5, 0.5, "not resolved", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.set_xscale("log")
    axes.set_yticks(range(len(sizes)), [size["aim"].replace(" ", "\n") for size in sizes])
    axes.set_ylim(len(sizes) - 0.5, -0.5)
    for row, (size, colour) in enumerate(zip(sizes, COLOURS, strict=True)):
        high = math.inf if size["high"] is None else size["high"]
        bars = error_bars(np.array([size["batch_size"]]), np.array([size["low"]]), np.array([high]))
        axes.errorbar(size["batch_size"], row, xerr=bars, fmt="o", color=colour, capsize=3)
        rate = "" if size["learning_rate"] is None else f", lr {size['learning_rate']:g}"
        axes.annotate(
            f"{size['batch_size']:,}{rate}",
            (size["batch_size"], row),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=LEGEND_SIZE,
        )
    axes.margins(x=0.3)
    finish(axes, "batch size (examples), with 95 % interval", "")
