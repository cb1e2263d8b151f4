"""Pictures of training runs: losses and scores along them, and the confusion matrix."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    finish,
    name_figure,
    one_legend,
    panels,
    series_colours,
)

Against = Literal["step", "epoch"]

SPLIT_COLOURS = {"train": BLUE, "validation": ORANGE, "test": GREEN}
LABELS = {"loss": "mean loss", "accuracy": "accuracy", "f1": "macro F1"}
AXES: dict[Against, str] = {"step": "step", "epoch": "epoch"}
# quantiles of the batches' losses that the axis reaches: single examples' are now and then tiny
LOWEST_SHOWN, HIGHEST_SHOWN = 0.05, 0.995
FAR = 10.0  # times the first loss, up to which the loss of a run that diverges is followed
LEAST_SPAN = 0.2  # of an axis of accuracies: what is nearly constant shall look so
POINTS = 60  # of a curve in a comparison, whose single batches would hide one another


class RunCurves(NamedTuple):
    """A run as a comparison draws it.

    Attributes:
        label: what tells it from the others, such as its batch size.
        metrics: the rows of its metrics.csv.
        losses: those of its losses.csv; without rows where they were not kept.
        diverged_at_step: None where it did not.
    """

    label: str
    metrics: pd.DataFrame
    losses: pd.DataFrame
    diverged_at_step: int | None


def curves_figure(
    metrics: pd.DataFrame,
    *,
    title: str,
    losses: pd.DataFrame | None = None,
    diverged_at_step: int | None = None,
) -> Figure:
    """Loss, and accuracy of classes, along a run against the epoch or, within the first, the step.

    Args:
        metrics: the rows of metrics.csv.
        title: above the panels.
        losses: the rows of losses.csv; None: they were not kept.
        diverged_at_step: where the loss was not finite any more; None: nowhere.
    """
    # a model that gives no classes has no accuracy
    classifies = bool(metrics["accuracy"].notna().any())
    figure, (loss, *others) = panels(1 + classifies, width=4.5, height=3.9, title=title)
    against: Against = "epoch" if metrics["epoch"].max() >= 1 else "step"
    if losses is not None and len(losses):
        plot_losses(loss, losses, against=against)
    plot_metric(loss, metrics, metric="loss", against=against)
    for accuracy in others:
        plot_metric(accuracy, metrics, metric="accuracy", against=against)
    if diverged_at_step is not None:
        place = _position(metrics, losses, step=diverged_at_step, against=against)
        for axes in (loss, *others):
            label = f"diverged at step {diverged_at_step:,}"
            axes.axvline(place, color=VERMILION, linestyle="--", linewidth=1.2, label=label)
    _limit_losses(loss, metrics, losses, diverged=diverged_at_step is not None)
    for accuracy in others:
        low, high = accuracy.get_ylim()
        spread = max(0.0, LEAST_SPAN - (high - low)) / 2
        accuracy.set_ylim(max(-0.02, low - spread), min(1.02, high + spread))
        accuracy.set_xlim(loss.get_xlim())
    one_legend(figure)
    return figure


def losses_figure(losses: pd.DataFrame, *, title: str) -> Figure:
    """The loss of the batches alone, from the rows of losses.csv."""
    figure, (axes,) = panels(1, width=5.5, height=3.8, title=title)
    plot_losses(axes, losses, against="step")
    axes.set_yscale("log")
    _limit_losses(axes, losses.iloc[:0], losses, diverged=not np.isfinite(losses["loss"]).all())
    finish(axes, "step", "loss of the batch")
    return figure


def plot_losses(axes: Axes, losses: pd.DataFrame, *, against: Against = "step") -> None:
    """The loss of the batches; where a row has several, their mean and their range as a band.

    losses: the rows of losses.csv.
    """
    finite = losses[np.isfinite(losses["loss"]) & (losses["loss"] > 0)]
    look: Any = {"color": GREY, "linewidth": 0}
    axes.fill_between(finite[against], finite["smallest"], finite["largest"], alpha=0.2, **look)
    label = "batches"
    axes.plot(finite[against], finite["loss"], color=GREY, linewidth=0.6, label=label, zorder=1)


def plot_metric(
    axes: Axes, metrics: pd.DataFrame, *, metric: str, against: Against = "epoch"
) -> None:
    """A column of `metrics` along the run, a line per split; nothing where it is not finite.

    metrics: rows with epoch, step, split and `metric`, as in metrics.csv. The loss has a
    logarithmic axis.
    """
    for split, rows in metrics.groupby("split", sort=False):
        finite = rows[np.isfinite(rows[metric])]
        colour = SPLIT_COLOURS.get(str(split))
        axes.plot(finite[against], finite[metric], ".-", color=colour, label=str(split))
    if metric == "loss":
        axes.set_yscale("log")
    finish(axes, AXES[against], LABELS.get(metric, metric))


def _position(
    metrics: pd.DataFrame, losses: pd.DataFrame | None, *, step: int, against: Against
) -> float:
    """Where a step lies on the axis, from the row that is nearest to it."""
    if against == "step":
        return step
    rows = metrics if losses is None or losses.empty else losses
    return float(rows["epoch"].iloc[(rows["step"] - step).abs().argmin()])


def _limit_losses(
    axes: Axes, metrics: pd.DataFrame, losses: pd.DataFrame | None, *, diverged: bool
) -> None:
    """An axis that shows the mean losses, nearly all batches', and a divergence's beginning.

    The last losses of a run that diverges are larger than all others by any factor.
    """
    means = metrics["loss"] if "loss" in metrics else pd.Series(dtype=float)
    means = means[np.isfinite(means) & (means > 0)]
    shown = [float(end) for end in (means.min(), means.max()) if len(means)]
    if losses is not None and len(losses):
        batches = losses["loss"]
        batches = batches[np.isfinite(batches) & (batches > 0)]
        if len(batches):
            shown += [float(batches.quantile(q)) for q in (LOWEST_SHOWN, HIGHEST_SHOWN)]
            if diverged:  # up to its last finite loss, not to wherever that has got
                shown.append(min(float(batches.max()), FAR * float(batches.iloc[0])))
    if shown and min(shown) < max(shown):
        margin = (max(shown) / min(shown)) ** 0.05
        axes.set_ylim(min(shown) / margin, max(shown) * margin)


def comparison_figure(runs: list[RunCurves], *, title: str) -> Figure:
    """The losses of several runs against the steps and against the examples that they take."""
    figure, (by_step, by_epoch) = panels(2, width=4.5, height=4.2, title=title, sharey=True)
    plot_comparison(by_step, runs, against="step")
    plot_comparison(by_epoch, runs, against="epoch")
    by_epoch.set_ylabel("")
    one_legend(figure)
    return figure


def plot_comparison(axes: Axes, runs: list[RunCurves], *, against: Against) -> None:
    """Each run's loss over its batches as a line, over the validation examples as dashes.

    A cross is where a run diverged.

    Args:
        axes: drawn on.
        runs: a colour each.
        against: "step", on a logarithmic axis, or "epoch".
    """
    shown: list[float] = []
    for run, colour in zip(runs, series_colours(len(runs)), strict=True):
        curve = _averaged(run.losses)
        axes.plot(curve[against], curve["loss"], color=colour, linewidth=1.2, label=run.label)
        held_out = run.metrics[run.metrics["split"] == _held_out(run.metrics)]
        held_out = held_out[np.isfinite(held_out["loss"]) & (held_out["step"] > 0)]
        look: Any = {"color": colour, "linestyle": "--", "marker": ".", "linewidth": 0.8}
        axes.plot(held_out[against], held_out["loss"], **look)
        values = [*curve["loss"], *held_out["loss"]]
        if run.diverged_at_step is not None and len(curve):
            last = curve.iloc[-1]
            axes.plot(last[against], last["loss"], "x", color=colour, markersize=9, clip_on=False)
            values = values[:-1]
        shown += values
    neutral: Any = {"color": GREY, "linewidth": 1}
    axes.plot([], [], "-", label="batches", **neutral)
    if held := {_held_out(run.metrics) for run in runs if len(run.metrics)}:
        axes.plot([], [], "--", marker=".", label=" or ".join(sorted(held)), **neutral)
    if any(run.diverged_at_step is not None for run in runs):
        axes.plot([], [], "x", color=GREY, label="diverged")
    axes.set_yscale("log")
    if shown and min(shown) < max(shown):
        margin = (max(shown) / min(shown)) ** 0.05
        axes.set_ylim(min(shown) / margin, max(shown) * margin)
    if against == "step":
        axes.set_xscale("log")
    words = {"step": "steps", "epoch": "examples (passes over the training set)"}
    finish(axes, words[against], "loss")


def _held_out(metrics: pd.DataFrame) -> str:
    """The split that a comparison shows beside the batches: validation where there is one."""
    splits = list(metrics["split"])
    return next(split for split in ("validation", "test", "train") if split in splits)


def _averaged(losses: pd.DataFrame) -> pd.DataFrame:
    """The finite losses as `POINTS` means over windows of equal length in log steps."""
    if losses.empty:
        return pd.DataFrame(columns=["step", "epoch", "loss"], dtype=float)
    finite = losses[np.isfinite(losses["loss"])]
    edges = np.geomspace(1, max(2, finite["step"].max() + 1), POINTS + 1)
    window = np.digitize(finite["step"], edges)
    weighted = finite.assign(loss=finite["loss"] * finite["num_steps"]).groupby(window)
    sums = weighted.agg({"step": "max", "epoch": "max", "loss": "sum", "num_steps": "sum"})
    means: pd.DataFrame = sums.assign(loss=sums["loss"] / sums["num_steps"])
    return means


def confusion_figure(table: pd.DataFrame, *, split: str, title: str) -> Figure:
    """The confusion matrix of one split, from the rows of confusion.csv."""
    cells = table[table["split"] == split]
    counts = cells.pivot_table(index="target", columns="predicted", values="count", aggfunc="sum")
    figure, (axes,) = panels(1, width=5, height=4.8)
    plot_confusion(axes, counts.to_numpy(dtype=np.int64))  # (C, C)
    name_figure(figure, title)
    return figure


def plot_confusion(
    axes: Axes, confusion: np.ndarray, *, fontsize: float = 7, largest: int | None = None
) -> None:
    """Counts (C, C) as a heat map, shaded by the share of the row, with the number in each cell.

    Rows are the true class, columns the predicted one. largest: number that cells have room for.
    """
    totals = confusion.sum(axis=1, keepdims=True)  # (C, 1)
    shares = confusion / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    centre: Any = {"ha": "center", "va": "center", "fontsize": fontsize}
    shown = confusion if largest is None else np.where(confusion <= largest, confusion, 0)
    for row, column in np.argwhere(shown):
        shade = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(confusion[row, column]), color=shade, **centre)
    axes.set_xticks(range(len(confusion)))
    axes.set_yticks(range(len(confusion)))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
