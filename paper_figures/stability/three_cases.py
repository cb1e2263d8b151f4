"""The three-case study: curves, the confusion matrices, and our table beside the published one."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.training import plot_confusion
from paper_figures.style import BATCH_COLOURS, STYLE, read_table

SCALES = {"raw": "raw pixels (0…255, as in the study)", "unit": "unit pixels (0…1)"}
COLUMNS = {
    "train_loss": "train loss",
    "train_accuracy": "train acc",
    "test_loss": "test loss",
    "test_accuracy": "test acc",
    "test_f1": "test F1",
    "seconds": "seconds",
}


def figure(data: Path) -> Figure:
    """Raw and unit scale in rows: test loss, accuracy, confusion matrices; below, the table."""
    curves, final, confusion = (
        read_table(data / "three_cases" / f"{name}.csv")
        for name in ("curves", "final", "confusion")
    )
    published = read_table(data / "published.csv").query("figure == 'three_cases'")
    with plt.rc_context(STYLE):
        drawn = Figure(figsize=(13, 8.6), layout="constrained")
        grid = drawn.add_gridspec(
            3, 5, height_ratios=[1, 1, 0.95], width_ratios=[1.25, 1.25, 1, 1, 1]
        )
        for row, (scale, title) in enumerate(SCALES.items()):
            _curves(drawn.add_subplot(grid[row, 0]), curves, final, scale=scale, metric="loss")
            _curves(drawn.add_subplot(grid[row, 1]), curves, final, scale=scale, metric="accuracy")
            drawn.axes[-2].set_title(title, loc="left", fontweight="bold")
            for column, batch_size in enumerate(BATCH_COLOURS, start=2):
                axes = drawn.add_subplot(grid[row, column])
                _confusion(axes, confusion, final, scale=scale, batch_size=batch_size)
        _table(drawn.add_subplot(grid[2, :]), final, published)
    return drawn


def _curves(
    axes: Axes, curves: pd.DataFrame, final: pd.DataFrame, *, scale: str, metric: str
) -> None:
    """The test split's metric against the epoch, mean ± one standard deviation over seeds."""
    for batch_size, colour in BATCH_COLOURS.items():
        case = curves.query(
            "pixel_scale == @scale and batch_size == @batch_size and split == 'test'"
        )
        case = case.sort_values("epoch")
        ended = final.query("pixel_scale == @scale and batch_size == @batch_size").iloc[0]
        if ended["num_diverged"]:
            first, last = int(ended["first_diverged_step"]), int(ended["last_diverged_step"])
            steps = f"step {first}" if first == last else f"steps {first}–{last}"
            axes.plot([], [], color=colour, label=f"B = {batch_size}: diverged at {steps}")
            continue
        label = f"B = {batch_size}" + (" (one seed)" if ended["num_seeds"] == 1 else "")
        axes.plot(case["epoch"], case[metric], color=colour, label=label)
        low, high = case[metric] - case[f"{metric}_std"], case[metric] + case[f"{metric}_std"]
        axes.fill_between(case["epoch"], low, high, color=colour, alpha=0.25, linewidth=0)
    axes.set_xlabel("epoch")
    if metric == "loss":
        axes.set_yscale("log")
        axes.set_ylabel("test loss (nats)")
    else:
        axes.set_ylabel("test accuracy")
        axes.set_ylim(0.5, 1.0)
        axes.legend(loc="lower right")


def _confusion(
    axes: Axes, confusion: pd.DataFrame, final: pd.DataFrame, *, scale: str, batch_size: str
) -> None:
    cells = confusion.query("pixel_scale == @scale and batch_size == @batch_size")
    counts = cells.pivot_table(index="target", columns="predicted", values="count").to_numpy(
        dtype=np.int64
    )
    plot_confusion(axes, counts, fontsize=4.5)
    axes.grid(visible=False)
    axes.set_title(f"B = {batch_size}, test, seed 0", color=BATCH_COLOURS[batch_size])


def _table(axes: Axes, final: pd.DataFrame, published: pd.DataFrame) -> None:
    """Each case's published row above ours at both scales."""
    axes.axis("off")
    rows, labels = [], []
    for batch_size in BATCH_COLOURS:
        values = published.query("batch_size == @batch_size").set_index("quantity")["value"]
        rows.append([_number(values[name], name) for name in COLUMNS])
        labels.append(f"B = {batch_size}   published (NVIDIA T4)")
        for scale in SCALES:
            case = final.query("pixel_scale == @scale and batch_size == @batch_size").iloc[0]
            rows.append([_number(case[name], name, case[f"{name}_std"]) for name in COLUMNS])
            seeds = (
                "1 seed" if case["num_seeds"] == 1 else f"mean ± sd of {case['num_seeds']} seeds"
            )
            labels.append(f"ours, {scale}, {seeds}")
    table = axes.table(
        cellText=rows,
        rowLabels=labels,
        colLabels=list(COLUMNS.values()),
        loc="center",
        cellLoc="center",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.scale(0.8, 1.25)
    for (row, column), cell in table.get_celld().items():
        cell.set_linewidth(0)
        if row and (row - 1) % 3 == 0:
            cell.set_facecolor("#f0f0f0")
        if row == 0 or column == -1:
            cell.set_text_props(fontweight="bold" if row == 0 else "normal")


def _number(value: float, name: str, spread: float = np.nan) -> str:
    if np.isnan(value):
        return "NaN"
    digits = 0 if name == "seconds" else 3
    text = f"{value:.{digits}f}"
    return text if np.isnan(spread) else f"{text} ± {spread:.{digits}f}"
