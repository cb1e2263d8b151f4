"""What importance sampling leaves of the noise and of B_crit, beside a forecast."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, VERMILION, plain_log_axis
from paper_figures.composition.equal_loss import draw_estimates, draw_geometric, loss_axis
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

FRONTS = {
    "even": (BLUE, "o-", "evenly"),
    "importance": (VERMILION, "s-", "by importance"),
}
FACTORS = {
    "measured": (VERMILION, "s", "measured"),
    "left": (BLUE, "o", "forecast"),
    "best": (GREEN, "^", "forecast, fresh norms"),
}
CAPTION = (
    "6,144 images of MNIST, 784–256–256–10, SGD. Left: share of tr Σ left along runs at B = 64 by "
    "their own chances and by fresh gradient norms, means over five seeds in tenths of a decade "
    "of the loss, bars ± a standard error. Middle: B_crit of each seed's runs, geometric means ± "
    "a standard error. Right: B_crit by importance over B_crit of even draws, with 95 % intervals, "
    "beside the factors forecast before the runs."
)


def figure(data: Path) -> Figure:
    """The noise left, the critical batch sizes, and their ratio."""
    courses, by_seed, results = (
        read_table(data / "importance" / f"{name}.csv")
        for name in ("courses", "by_seed", "results")
    )
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.2), layout="constrained")
        left, middle, right = drawn.subplots(1, 3)
        _draw_noise(left, courses)
        _draw_fronts(middle, by_seed)
        _draw_factors(right, results)
        for axes in (middle, right):
            loss_axis(axes, results["goal"])
            axes.set_yscale("log")
            plain_log_axis(axes.yaxis)
        for axes in (left, middle, right):
            axes.legend(loc="lower left", bbox_to_anchor=(-0.2, 1.0))
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _draw_noise(axes: Axes, courses: pd.DataFrame) -> None:
    """Where a run's loss is between two tenths of a decade, its looks there are one point."""
    binned = courses.assign(near=10 ** (np.log10(courses["loss"]).round(1)))
    for name in ("left", "best"):
        colour, marker, _ = FACTORS[name]
        grouped = binned.groupby(["near", "seed"])[name].mean().groupby("near")
        axes.errorbar(
            grouped.mean().index.to_numpy(dtype=float),
            grouped.mean().to_numpy(),
            yerr=grouped.sem().fillna(0).to_numpy(),
            color=colour,
            fmt=f"{marker}-",
            markersize=3,
            linewidth=1,
            label={"left": "by running scores", "best": "by fresh norms"}[name],
        )
    axes.set_xscale("log")
    axes.invert_xaxis()
    plain_log_axis(axes.xaxis)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("training loss")
    axes.set_ylabel(r"share of tr $\Sigma$ left")


def _draw_fronts(axes: Axes, by_seed: pd.DataFrame) -> None:
    for front, (colour, marker, label) in FRONTS.items():
        rows = by_seed[by_seed["front"] == front].dropna(subset=["critical_batch_size"])
        draw_geometric(
            axes,
            rows,
            "goal",
            "critical_batch_size",
            color=colour,
            fmt=marker,
            linewidth=1,
            label=label,
        )
    axes.set_ylabel(r"$B_{\mathrm{crit}}$ (examples)")


def _draw_factors(axes: Axes, results: pd.DataFrame) -> None:
    for place, (quantity, (colour, marker, label)) in enumerate(FACTORS.items()):
        rows = results[results["quantity"] == quantity].copy()
        for name in ("log", "log_low", "log_high"):
            rows[name] = np.exp(rows[name])
        shifted = rows["goal"] * 1.06 ** (place - 1)
        draw_estimates(axes, rows, shifted, "log", color=colour, fmt=marker, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("factor of $B_{\\mathrm{crit}}$")
