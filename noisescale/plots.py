"""One function per kind of figure: a table in, matplotlib Axes drawn on."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any kind of colour vision
COLOURS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
LABELS = {"loss": "cross-entropy loss (nats)", "accuracy": "accuracy", "f1": "macro F1"}


def plot_metric(axes: Axes, metrics: pd.DataFrame, *, metric: str) -> None:
    """One of `metrics`' columns against the epoch, a line per split; nothing where it is not finite.

    metrics: rows with epoch, split and `metric`, as in metrics.csv. The loss has a logarithmic axis.
    """
    for split, rows in metrics.groupby("split", sort=False):
        finite = rows[np.isfinite(rows[metric])]
        axes.plot(finite["epoch"], finite[metric], ".-", color=COLOURS.get(str(split)), label=str(split))
    axes.set_xlabel("epoch")
    axes.set_ylabel(LABELS.get(metric, metric))
    if metric == "loss":
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def plot_confusion(axes: Axes, confusion: np.ndarray, *, fontsize: float = 7) -> None:
    """Counts (C, C) as a heat map, shaded by the share of the row, the count in every cell that has one."""
    totals = confusion.sum(axis=1, keepdims=True)
    shares = confusion / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.argwhere(confusion):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(
            column, row, str(confusion[row, column]), ha="center", va="center", fontsize=fontsize, color=shade
        )
    axes.set_xticks(range(len(confusion)))
    axes.set_yticks(range(len(confusion)))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def curves_figure(metrics: pd.DataFrame, *, title: str, remark: str | None = None) -> Figure:
    """Loss and accuracy of every split against the epoch; `remark` is written into the picture."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    plot_metric(loss, metrics, metric="loss")
    plot_metric(accuracy, metrics, metric="accuracy")
    if remark:
        place = {"transform": loss.transAxes, "ha": "center", "va": "center"}
        loss.text(0.5, 0.5, remark, color="#D55E00", **place)
    figure.suptitle(title, fontsize=10)
    return figure


def confusion_figure(confusion: np.ndarray, *, title: str) -> Figure:
    """The confusion matrix (C, C) of one split."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes: Any = figure.subplots()
    plot_confusion(axes, confusion)
    axes.set_title(title, fontsize=10)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
