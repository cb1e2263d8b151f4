"""Bias, variance and bagging by batch size, and the error of rates by folds and by test images."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, ORANGE, error_bars
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

COLOURS = (BLUE, ORANGE, GREEN)  # one a batch size, the smallest first
PARTS = {  # of the Brier score, as ticks
    "bias² + noise": "bias²+\nnoise",
    "variance": "all\nvar.",
    "variance, data": "data",
    "variance, initialisation": "init.",
    "variance, order": "order",
}
ERRORS = (0.06, 0.16)  # drawn, of the folds and the test images
CAPTION = (
    "MNIST, a pool of 2,000, 784–128–128–10, to a training loss of .02. Left: the Brier score's "
    "parts on 10,000 test images: eight bootstrap samples × two initialisations × two orders; "
    "the variance and three of its components (what is left are interactions). Middle: score of "
    "the mean of models that differ in all three. Right: error left out by five folds (lines) "
    "and on the test images, trained on the whole pool, two seeds (crosses), against the rate in "
    "units of .5/(1 + 100/B); at twice that and B = 256 runs die, beyond the panel. Bars: 95 % "
    "intervals, for this pool, these two initialisations and two orders; of the folds ± a "
    "standard error; batch sizes share test images, so that their differences are known better "
    "than this."
)


def figure(data: Path) -> Figure:
    """Parts of the score, bagging, and folds."""
    parts, bagging, folds = (
        read_table(data / "bias_variance" / f"{name}.csv").astype({"batch_size": int})
        for name in ("parts", "bagging", "folds")
    )
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.6), layout="constrained")
        left, middle, right = drawn.subplots(1, 3, width_ratios=(1.4, 1, 1))
        for place, (size, colour) in enumerate(zip(_sizes(parts), COLOURS, strict=False)):
            _draw_parts(left, parts[parts["batch_size"] == size], size, colour, 0.2 * (place - 1))
            of_size = bagging[bagging["batch_size"] == size]
            middle.plot(of_size["models"], of_size["score"], color=colour, marker="o", markersize=3)
            middle.fill_between(
                of_size["models"],
                of_size["score_low"],
                of_size["score_high"],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
            _draw_folds(right, folds[folds["batch_size"] == size], colour)
        left.axhline(0, color="black", linewidth=0.8)
        left.set_xticks(range(len(PARTS)), list(PARTS.values()))
        left.set_ylabel("part of the Brier score")
        middle.set_xscale("log", base=2)
        middle.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
        middle.set_xlabel("models in the mean")
        middle.set_ylabel("Brier score")
        right.set_xscale("log", base=2)
        right.set_xticks([0.25, 0.5, 1, 2, 4], ["¼", "½", "1", "2", "4"])
        right.set_xlabel("learning rate")
        right.set_ylabel("error")
        right.set_ylim(*ERRORS)
        drawn.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3)
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _sizes(parts: pd.DataFrame) -> list[int]:
    return sorted(parts["batch_size"].unique())


def _draw_parts(axes: Axes, parts: pd.DataFrame, size: int, colour: str, shift: float) -> None:
    rows = parts.set_index("part").loc[list(PARTS)]
    values = rows["value"]
    axes.errorbar(
        [place + shift for place in range(len(rows))],
        values,
        yerr=error_bars(values, rows["value_low"], rows["value_high"]),
        color=colour,
        marker="o",
        markersize=3,
        linestyle="none",
        label=f"B = {size}",
    )


def _draw_folds(axes: Axes, folds: pd.DataFrame, colour: str) -> None:
    ordered = folds.sort_values("factor")
    axes.errorbar(
        ordered["factor"],
        ordered["left_out"],
        yerr=ordered["left_out_stderr"],
        color=colour,
        marker="o",
        markersize=3,
        linewidth=1,
    )
    axes.plot(ordered["factor"], ordered["test"], "x", color=colour, markersize=5)
