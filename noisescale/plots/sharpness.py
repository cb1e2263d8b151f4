"""Pictures of the sharpness: along training, and densities and Keskar's φ of checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    VERMILION,
    by_run,
    checkpoint_positions,
    finish,
    panels,
    plot_band,
)

QUANTITIES = {  # label and colour of each column, and the column that says whether it has converged
    "largest_eigenvalue": (r"$\lambda_{\max}$", BLUE, "converged"),
    "smallest_eigenvalue": (r"$\lambda_{\min}$", GREEN, "smallest_converged"),
    "batch_sharpness": ("batch sharpness", VERMILION, None),
}
LEAST_DENSITY = 1e-8  # of the axis: below it are the tails of the smoothing kernel
SMALL = 7  # points of a legend that names runs and steps


def sharpness_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """Sharpness along training, from the rows of sharpness.csv."""
    figure, (axes,) = panels(1, width=6, height=3.8, title=title)
    plot_sharpness(axes, table)
    return figure


def measurements_figure(entries: list[dict[str, Any]]) -> Figure:
    """What `noisescale sharpness --json` gave: along training, the densities, φ by iteration.

    entries: such that `has_picture`.
    """
    drawn = []
    if len(entries) > 1:
        drawn.append(_plot_along_training)
    if any(entry["density"] for entry in entries):
        drawn.append(_plot_densities)
    if any(entry["phi"] for entry in entries):
        drawn.append(_plot_phi)
    figure, panel_axes = panels(len(drawn), width=5, height=3.8)
    for plot, axes in zip(drawn, panel_axes, strict=True):
        plot(axes, entries)
    return figure


def has_picture(entries: list[dict[str, Any]]) -> bool:
    """Whether there are several checkpoints, a density or φ: one number makes no picture."""
    return len(entries) > 1 or any(entry["density"] or entry["phi"] for entry in entries)


def plot_sharpness(axes: Axes, table: pd.DataFrame, *, legend_size: float | None = None) -> None:
    """λ_max, λ_min and batch sharpness ± 2 standard errors, and the limit of stability, by step.

    table: rows of sharpness.csv; those of `QUANTITIES` that it has, in a line style for each of its
        column "run" where it has one. What has not converged is an open marker.
    """
    for name, (label, colour, converged) in QUANTITIES.items():
        if name not in table:
            continue
        measured = table[np.isfinite(table[name].astype(float))]
        for rows, style, run in by_run(measured):
            if rows.empty:
                continue
            look: Any = {"color": colour, "linestyle": style, "markersize": 3}
            axes.plot(rows["step"], rows[name], marker=".", label=f"{label}{run}", **look)
            error = 2 * rows[f"{name}_stderr"].fillna(0.0)
            plot_band(axes, rows["step"], rows[name] - error, rows[name] + error, color=colour)
            if converged is not None:
                loose = rows[rows[converged] != 1]
                axes.plot(loose["step"], loose[name], "o", color=colour, fillstyle="none")
    for limit in table["stable_sharpness"].dropna().unique():
        label = f"limit of stability, {limit:.4g}"
        axes.axhline(limit, color=BLACK, linestyle="--", linewidth=1, label=label)
    finish(axes, "step", "curvature (loss per squared unit of parameters)", legend_size=legend_size)


def _plot_along_training(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """λ_max, λ_min and batch sharpness of several checkpoints against the step."""
    positions, counted = checkpoint_positions(entries)
    measurements = [_measurement(entry) for entry in entries]
    table = pd.concat([positions, pd.DataFrame(measurements)], axis=1)
    plot_sharpness(axes, table, legend_size=SMALL)
    axes.set_xlabel(counted)


def _measurement(entry: dict[str, Any]) -> dict[str, float]:
    """An entry of `noisescale sharpness --json` as a row like those of sharpness.csv."""
    missing: dict[str, Any] = {"value": None, "stderr": None, "converged": True}
    values: dict[str, Any] = {"stable_sharpness": entry["stable_sharpness"]}
    for end, converged in (("largest", "converged"), ("smallest", "smallest_converged")):
        eigenvalue = next((e for e in entry["eigenvalues"] if e["which"] == end), missing)
        values[f"{end}_eigenvalue"] = eigenvalue["value"]
        values[f"{end}_eigenvalue_stderr"] = eigenvalue["stderr"]
        values[converged] = eigenvalue["converged"]
    batch = entry["batch_sharpness"] or missing
    values |= {"batch_sharpness": batch["value"], "batch_sharpness_stderr": batch["stderr"]}
    return {name: np.nan if value is None else float(value) for name, value in values.items()}


def _plot_densities(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Spectral densities on a logarithmic axis."""
    for entry in entries:
        if density := entry["density"]:
            axes.plot(density["grid"], density["density"], linewidth=1, label=_name(entry))
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST_DENSITY)
    finish(axes, "eigenvalue", "spectral density (share per unit)", legend_size=SMALL)


def _plot_phi(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Keskar's φ after each iteration of its search."""
    for entry in entries:
        for phi in entry["phi"]:
            label = f"{_name(entry)}, {phi['space']}, ε = {phi['epsilon']:g}"
            after_start = phi["history"][1:]
            style = ".-" if phi["space"] == "full" else ".:"
            axes.plot(range(1, len(after_start) + 1), after_start, style, label=label)
    axes.set_yscale("log")
    finish(axes, "iteration of L-BFGS-B", "Keskar's φ (%)", legend_size=SMALL)


def _name(entry: dict[str, Any]) -> str:
    """The checkpoint by its step or, where that is not known, by its file."""
    return (
        str(entry["checkpoint"] or entry["run"])
        if entry["step"] is None
        else f"step {entry['step']:,}"
    )
