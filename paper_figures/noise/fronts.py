"""B_crit of tasks not seen, predicted from single runs, against the measured ones."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, VERMILION, plain_log_axis
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

KINDS = {  # of optimizers: colour, marker, name
    "sgd": (BLUE, "o", "SGD"),
    "momentum": (GREEN, "s", "momentum"),
    "adaptive": (VERMILION, "^", "Adam, AdamW"),
}
CAPTION = (
    "Each task is predicted by a model that has not seen it; a point is a front's goal, by the run "
    "beside it that is nearest to the best rate. Left: with 90 % intervals, across the measured "
    "ones' of 95 %; small points, the other runs. Right: the two-batch estimator's mean along the "
    "same runs, read as B_crit, as is common."
)
TABLES = ("intervals", "coverage")
FACTOR = 2  # of the dotted lines


def figure(data: Path) -> Figure:
    """Predictions with intervals, and peers' practice."""
    rows, coverage = (read_table(data / "fronts" / f"{name}.csv") for name in TABLES)
    of_all = coverage[(coverage["model"] == "search") & (coverage["tasks"] == "all")]
    off = of_all[of_all["geometry"] == "plain"].set_index("quantity")["off"]
    nearest = np.log(rows["rate_over_best"]).abs().groupby([rows["task"], rows["goal"]]).idxmin()
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.5), layout="constrained")
        left, right = drawn.subplots(1, 2, sharex=True, sharey=True)
        _draw(left, rows.loc[nearest], "predicted", others=rows.drop(nearest), intervals=True)
        _draw(right, rows.loc[nearest], "two_batch", others=rows.drop(nearest), intervals=False)
        left.set_title(_title("Predicted", rows.loc[nearest], "predicted"))
        right.set_title(_title("Two-batch estimator", rows.loc[nearest], "two_batch"))
        left.set_ylabel("predicted $B_{\\mathrm{crit}}$ (examples)")
        handles, labels = left.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=len(KINDS))
        alike = (
            " Fitted and held out as the left is, it is off by ×/÷ "
            f"{off['two-batch estimator']:.3g} over all runs, the left by {off['simple']:.3g}."
        )
        drawn.supxlabel(fill(CAPTION + alike, 104), fontsize=7)
    return drawn


def _title(name: str, rows: pd.DataFrame, column: str) -> str:
    """With how far the median point is off."""
    logs = np.log((rows[column] / rows["critical_batch_size"]).dropna().to_numpy())
    return f"{name}: off by ×/÷ {np.exp(np.median(np.abs(logs))):.2g}"


def _draw(
    axes: Axes, rows: pd.DataFrame, column: str, *, others: pd.DataFrame, intervals: bool
) -> None:
    ends = np.array([rows["critical_batch_size"].min() / 3, rows["critical_batch_size"].max() * 3])
    axes.plot(ends, ends, color="black", linewidth=0.8)
    for factor in (FACTOR, 1 / FACTOR):
        axes.plot(ends, factor * ends, color="black", linewidth=0.8, linestyle=":")
    for kind, (colour, marker, label) in KINDS.items():
        own, rest = rows[rows["optimizer"] == kind], others[others["optimizer"] == kind]
        axes.scatter(
            rest["critical_batch_size"], rest[column], s=2, color=colour, alpha=0.3, linewidths=0
        )
        x, y = own["critical_batch_size"], own[column]
        axes.errorbar(
            x,
            y,
            xerr=[x - own["critical_batch_size_low"], own["critical_batch_size_high"] - x],
            yerr=[y - own["low"], own["high"] - y] if intervals else None,
            fmt=marker,
            color=colour,
            markersize=3,
            linewidth=0.5,
            label=label,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_log_axis(axes.xaxis)
    plain_log_axis(axes.yaxis)
    axes.set_xlabel("measured $B_{\\mathrm{crit}}$ (examples)")
