"""One function per kind of figure: a table in, matplotlib Axes drawn on."""

from __future__ import annotations

import io
import itertools
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with any kind of colour vision
COLOURS = {"train": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
SHARPNESS_COLOURS = ("#0072B2", "#D55E00")
LABELS = {"loss": "mean loss", "accuracy": "accuracy", "f1": "macro F1"}


def plot_metric(axes: Axes, metrics: pd.DataFrame, *, metric: str) -> None:
    """One of `metrics`' columns against the epoch, a line per split; nothing where it is not finite.

    metrics: rows with epoch, split and `metric`, as in metrics.csv. The loss has a logarithmic axis.
    """
    for split, rows in metrics.groupby("split", sort=False):
        finite = rows[np.isfinite(rows[metric])]
        axes.plot(
            finite["epoch"], finite[metric], ".-", color=COLOURS.get(str(split)), label=str(split)
        )
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
            column,
            row,
            str(confusion[row, column]),
            ha="center",
            va="center",
            fontsize=fontsize,
            color=shade,
        )
    axes.set_xticks(range(len(confusion)))
    axes.set_yticks(range(len(confusion)))
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def plot_sharpness(axes: Axes, table: pd.DataFrame) -> None:
    """λ_max and batch sharpness against the step, ± 2 standard errors, and the limit of stability.

    table: rows of sharpness.csv. What has not converged is an open marker.
    """
    quantities = {"largest_eigenvalue": r"$\lambda_{\max}$", "batch_sharpness": "batch sharpness"}
    for (name, label), colour in zip(quantities.items(), SHARPNESS_COLOURS, strict=True):
        rows = table[np.isfinite(table[name].astype(float))]
        if rows.empty:
            continue
        errors = 2 * rows[f"{name}_stderr"].fillna(0.0)
        axes.plot(rows["step"], rows[name], ".-", color=colour, label=label, markersize=3)
        axes.fill_between(
            rows["step"],
            rows[name] - errors,
            rows[name] + errors,
            color=colour,
            alpha=0.25,
            linewidth=0,
        )
        if name == "largest_eigenvalue":
            loose = rows[rows["converged"] != 1]
            axes.plot(loose["step"], loose[name], "o", color=colour, fillstyle="none")
    limits = table["stable_sharpness"].dropna().unique()
    for limit in limits:
        axes.axhline(
            limit,
            color="black",
            linestyle="--",
            linewidth=1,
            label=f"limit of stability, {limit:.4g}",
        )
    axes.set_xlabel("step")
    axes.set_ylabel("curvature (loss per squared unit of parameters)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def sharpness_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """Sharpness along training, from the rows of sharpness.csv."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    plot_sharpness(figure.subplots(), table)
    figure.suptitle(title, fontsize=10)
    return figure


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


def confusion_figure(table: pd.DataFrame, *, split: str, title: str) -> Figure:
    """The confusion matrix of one split, from the rows of confusion.csv."""
    cells = table[table["split"] == split]
    counts = cells.pivot_table(index="target", columns="predicted", values="count", aggfunc="sum")
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes: Any = figure.subplots()
    plot_confusion(axes, counts.to_numpy(dtype=np.int64))  # (C, C)
    axes.set_title(title, fontsize=10)
    return figure


def measurements_figure(entries: list[dict[str, Any]]) -> Figure:
    """What `noisescale sharpness --json` gave, as panels: along training, the densities, φ by iteration."""
    panels = [
        panel
        for panel, wanted in (
            (_plot_along_training, len(entries) > 1),
            (_plot_densities, any(entry["density"] for entry in entries)),
            (_plot_phi, any(entry["phi"] for entry in entries)),
        )
        if wanted
    ]
    figure = Figure(figsize=(5 * len(panels), 3.8), layout="constrained")
    for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        panel(axes, entries)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=7)
    return figure


def _plot_along_training(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """λ_max, λ_min, batch sharpness and their limit against the step, with 95 % intervals, a line per run."""
    runs = list(dict.fromkeys(entry["run"] for entry in entries))

    def draw(found: list[dict[str, Any] | None], label: str, colour: str) -> None:
        for run, style in zip(runs, itertools.cycle(["-", "--", ":", "-."]), strict=False):
            of_run = zip(entries, found, strict=True)
            points = [
                (entry["step"], one)
                for entry, one in of_run
                if one is not None and entry["run"] == run
            ]
            if points:
                line(points, label if len(runs) == 1 else f"{label}, {run}", colour, style)

    def line(points: list[tuple[int, dict[str, Any]]], label: str, colour: str, style: str) -> None:
        values = np.array([one["value"] for _, one in points])
        low = np.array([one["value"] if one["low"] is None else one["low"] for _, one in points])
        high = np.array([one["value"] if one["high"] is None else one["high"] for _, one in points])
        at = [step for step, _ in points]
        axes.errorbar(
            at,
            values,
            yerr=[values - low, high - values],
            fmt=".",
            linestyle=style,
            color=colour,
            label=label,
        )
        loose = [(step, one["value"]) for step, one in points if not one.get("converged", True)]
        axes.plot(
            [step for step, _ in loose],
            [value for _, value in loose],
            "o",
            color=colour,
            fillstyle="none",
        )

    for which, label, colour in (
        ("largest", r"$\lambda_{\max}$", SHARPNESS_COLOURS[0]),
        ("smallest", r"$\lambda_{\min}$", "#009E73"),
    ):
        draw(
            [
                next((one for one in entry["eigenvalues"] if one["which"] == which), None)
                for entry in entries
            ],
            label,
            colour,
        )
    draw([entry["batch_sharpness"] for entry in entries], "batch sharpness", SHARPNESS_COLOURS[1])
    for limit in dict.fromkeys(entry["stable_sharpness"] for entry in entries):
        if limit is not None:
            axes.axhline(
                limit,
                color="black",
                linestyle="--",
                linewidth=1,
                label=f"limit of stability, {limit:.4g}",
            )
    axes.set_xlabel("step")
    axes.set_ylabel("curvature")


def _plot_densities(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Spectral densities on a logarithmic axis."""
    for entry in entries:
        if density := entry["density"]:
            axes.plot(
                density["grid"], density["density"], linewidth=1, label=f"step {entry['step']:,}"
            )
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-8)
    axes.set_xlabel("eigenvalue")
    axes.set_ylabel("spectral density (share per unit)")


def _plot_phi(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Keskar's φ after each iteration of its search."""
    for entry in entries:
        for phi in entry["phi"]:
            label = f"step {entry['step']:,}, {phi['space']}, ε = {phi['epsilon']:g}"
            found = phi["history"][1:]
            style = ".-" if phi["space"] == "full" else ".:"
            axes.plot(range(1, len(found) + 1), found, style, label=label)
    axes.set_yscale("log")
    axes.set_xlabel("iteration of L-BFGS-B")
    axes.set_ylabel("Keskar's φ (%)")


def image(figure: Figure, format: str = "png") -> bytes:
    """The figure as the content of a png, pdf or svg file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=150)
    return buffer.getvalue()
