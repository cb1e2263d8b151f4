"""Pictures of a training run: its scores along the epochs, and its confusion matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import (
    BLUE,
    GREEN,
    ORANGE,
    TITLE_SIZE,
    VERMILION,
    finish,
    panels,
)

SPLIT_COLOURS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
LABELS = {"loss": "mean loss", "accuracy": "accuracy", "f1": "macro F1"}


def curves_figure(metrics: pd.DataFrame, *, title: str, remark: str | None = None) -> Figure:
    """Loss and, of classes, accuracy of each split against the epoch, from rows of metrics.csv.

    remark: written into the picture, such as where the run diverged.
    """
    # a model that gives no classes has no accuracy
    shown = [name for name in ("loss", "accuracy") if metrics[name].notna().any()] or ["loss"]
    figure, axes = panels(len(shown), width=4.5, height=3.6, title=title)
    for each, name in zip(axes, shown, strict=True):
        plot_metric(each, metrics, metric=name)
    loss = axes[0]
    if remark:
        centre: Any = {"transform": loss.transAxes, "ha": "center", "va": "center"}
        loss.text(0.5, 0.5, remark, color=VERMILION, **centre)
    return figure


def plot_metric(axes: Axes, metrics: pd.DataFrame, *, metric: str) -> None:
    """A column of `metrics` against the epoch, a line per split; nothing where it is not finite.

    metrics: rows with epoch, split and `metric`, as in metrics.csv. The loss has a logarithmic
    axis.
    """
    for split, rows in metrics.groupby("split", sort=False):
        finite = rows[np.isfinite(rows[metric])]
        colour = SPLIT_COLOURS.get(str(split))
        axes.plot(finite["epoch"], finite[metric], ".-", color=colour, label=str(split))
    if metric == "loss":
        axes.set_yscale("log")
    finish(axes, "epoch", LABELS.get(metric, metric))


def confusion_figure(table: pd.DataFrame, *, split: str, title: str) -> Figure:
    """The confusion matrix of one split, from the rows of confusion.csv."""
    cells = table[table["split"] == split]
    counts = cells.pivot_table(index="target", columns="predicted", values="count", aggfunc="sum")
    figure, (axes,) = panels(1, width=5, height=4.6)
    plot_confusion(axes, counts.to_numpy(dtype=np.int64))  # (C, C)
    axes.set_title(title, fontsize=TITLE_SIZE)
    return figure


def plot_confusion(axes: Axes, confusion: np.ndarray, *, fontsize: float = 7) -> None:
    """Counts (C, C) as a heat map, shaded by the share of the row, with the number in each cell.

    Rows are the true class, columns the predicted one.
    """
    totals = confusion.sum(axis=1, keepdims=True)  # (C, 1)
    shares = confusion / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    centre: Any = {"ha": "center", "va": "center", "fontsize": fontsize}
    for row, column in np.argwhere(confusion):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(confusion[row, column]), color=shade, **centre)
    axes.set_xticks(range(len(confusion)))
    axes.set_yticks(range(len(confusion)))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
