"""The three-case study: a line a run, how far ours end from the published one, and confusion."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLACK, GREY
from noisescale.plots.training import plot_confusion
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import BATCH_COLOURS, STYLE, read_table

SCALES = {"raw": "raw pixels (0…255)", "unit": "unit pixels (0…1)"}
QUANTITIES = {
    "loss_while_training": ("train_loss", "training loss"),
    "test_loss": ("test_loss", "test loss"),
    "test_accuracy": ("test_accuracy", "test accuracy"),
}
CAPTION = (
    "MNIST, 784–1024–1024–10, SGD at η = 10⁻³. Above: the test split, a line for each seed. "
    "Middle: epoch 30, ours less the published run, where neither diverged; points are seeds, bars "
    "95 % intervals of their mean, and grey is where one run more of ours would lie 95 % of the "
    "time. Training losses are means over the last epoch's batches. "
    "Below: seed 0 on the test split; counts above 99 are shaded alone."
)


def figure(data: Path) -> Figure:
    """Curves, differences, and confusion matrices, the latter a row for each pixel scale."""
    folder = data / "three_cases"
    curves, runs, difference, confusion = (
        read_table(folder / f"{name}.csv") for name in ("curves", "runs", "difference", "confusion")
    )
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 8.9), layout="constrained")
        parts: Any = drawn.subfigures(3, 1, height_ratios=(3.2, 1.25, 4.2))
        above, middle, below = parts
        _draw_curves(above, curves, runs)
        panels = middle.subplots(1, 3)
        panels[0].set_title("Ours − published, raw pixels", loc="left", fontweight="bold")
        for axes, (column, (quantity, words)) in zip(panels, QUANTITIES.items(), strict=True):
            _draw_difference(axes, runs, difference, column=column, quantity=quantity)
            axes.set_xlabel(words)
        for row, scale in zip(below.subplots(2, 3), SCALES, strict=True):
            for axes, batch_size in zip(row, BATCH_COLOURS, strict=True):
                _draw_confusion(axes, confusion, scale=scale, batch_size=batch_size)
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _draw_curves(part: Any, curves: pd.DataFrame, runs: pd.DataFrame) -> None:
    """The test split's loss and accuracy against the epoch, a row for each pixel scale."""
    for (left, right), (scale, title) in zip(part.subplots(2, 2), SCALES.items(), strict=True):
        for batch_size, colour in BATCH_COLOURS.items():
            ends = _case(runs, scale, batch_size)
            label = f"B = {batch_size}"
            for _, run in _case(curves, scale, batch_size).groupby("seed"):
                left.plot(run["epoch"], run["loss"], color=colour, linewidth=0.7)
                right.plot(run["epoch"], run["accuracy"], color=colour, linewidth=0.7)
            if ends["diverged_at_step"].notna().all():
                steps = ends["diverged_at_step"].astype(int)
                label += f": NaN at steps {steps.min()}–{steps.max()}"
            right.plot([], [], color=colour, label=f"{label}, {len(ends)} seeds")
        left.set_yscale("log")
        left.set_ylabel("test loss (nats)")
        right.set_ylabel("test accuracy")
        right.set_ylim(0.25, 1.0)  # below the curves there is room for the legend
        right.legend(loc="lower right")
        left.set_title(f"At {title}", loc="left", fontweight="bold")
        for axes in (left, right):
            axes.set_xlabel("epoch")


def _draw_difference(
    axes: Axes, runs: pd.DataFrame, difference: pd.DataFrame, *, column: str, quantity: str
) -> None:
    """Seeds, the interval of their mean, and that of a run more, a row for each batch size."""
    of_quantity = difference[difference["quantity"] == quantity]
    for place, (_, row) in enumerate(of_quantity.iterrows()):
        batch_size = row["batch_size"]
        colour = BATCH_COLOURS[batch_size]
        ours = _case(runs, "raw", batch_size)[column]
        axes.barh(
            place, row["run_high"] - row["run_low"], left=row["run_low"], color=GREY, alpha=0.25
        )
        axes.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2, alpha=0.6)
        points: Any = {"color": colour, "markersize": 3, "linewidth": 0}
        axes.plot(ours - row["published"], np.full(len(ours), place), "o", **points)
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.set_yticks(range(len(of_quantity)), [f"B = {size}" for size in of_quantity["batch_size"]])
    axes.set_ylim(len(of_quantity) - 0.4, -0.6)
    axes.locator_params(axis="x", nbins=4)
    axes.grid(visible=False, axis="y")


def _draw_confusion(axes: Axes, confusion: pd.DataFrame, *, scale: str, batch_size: str) -> None:
    cells = _case(confusion, scale, batch_size)
    counts = cells.pivot_table(index="target", columns="predicted", values="count").to_numpy(
        dtype=np.int64
    )
    plot_confusion(axes, counts, largest=99)
    axes.grid(visible=False)
    axes.set_title(f"B = {batch_size}, {scale} pixels", color=BATCH_COLOURS[batch_size])


def _case(table: pd.DataFrame, scale: str, batch_size: str) -> pd.DataFrame:
    return table[(table["pixel_scale"] == scale) & (table["batch_size"] == batch_size)]
