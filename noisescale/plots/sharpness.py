"""Pictures of the sharpness: along training, and densities and Keskar's φ of checkpoints."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    LEGEND_SIZE,
    SMALL,
    VERMILION,
    axes_or_new,
    by_run,
    checkpoint_positions,
    error_bars,
    finish,
    measured_title,
    name_figure,
    panels,
    plot_band,
    series_colours,
    whole_steps,
)

QUANTITIES = {  # label and colour of each column, and the column that says whether it has converged
    "largest_eigenvalue": (r"$\lambda_{\max}$", BLUE, "converged"),
    "smallest_eigenvalue": (r"$\lambda_{\min}$", GREEN, "smallest_converged"),
    "batch_sharpness": ("batch sharpness", VERMILION, None),
}
LEAST_DENSITY = 1e-8  # of the axis: below it are the tails of the smoothing kernel
ENDS = {"largest": (BLUE, "largest eigenvalues"), "smallest": (GREEN, "smallest eigenvalues")}
UNDER_P = r"$\lambda_{\max}(P^{1/2}HP^{1/2})$"
CURVATURE = "curvature (loss/parameter²)"
FAR = 4.0  # times the largest curvature: a limit of stability beyond it is named, but not drawn


def sharpness_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """Sharpness along training, from the rows of sharpness.csv; under an adaptive optimizer too."""
    drawn = [plot_sharpness, *([plot_preconditioned] if has_preconditioned(table) else [])]
    width = 6.0 if len(drawn) == 1 else 4.8
    figure, panel_axes = panels(len(drawn), width=width, height=3.8, title=title)
    for plot, axes in zip(drawn, panel_axes, strict=True):
        plot(axes, table)
    return figure


def measurements_figure(entries: list[dict[str, Any]]) -> Figure:
    """What `noisescale sharpness --json` gave.

    Of several checkpoints the sharpness along training, of a single one its eigenvalues; then the
    densities and φ by iteration, as far as there are any.

    Args:
        entries: such that `has_picture`.
    """
    drawn = []
    if len(entries) > 1:
        drawn.append(_plot_along_training)
        if has_preconditioned(_table_of(entries)):
            drawn.append(_plot_preconditioned_along)
    elif _has_spectrum(entries[0]):
        drawn.append(lambda axes, entries: plot_eigenvalues(axes, entries[0]))
    if any(entry["density"] for entry in entries):
        drawn.append(_plot_densities)
    if any(entry["phi"] for entry in entries):
        drawn.append(_plot_phi)
    figure, panel_axes = panels(len(drawn), width=4.8, height=4.2)
    name_figure(figure, measured_title(entries))
    for plot, axes in zip(drawn, panel_axes, strict=True):
        plot(axes, entries)
    return figure


def has_picture(entries: list[dict[str, Any]]) -> bool:
    """Whether there is anything to draw: a trace alone, one number, makes no picture."""
    return len(entries) > 1 or any(
        _has_spectrum(entry) or entry["density"] or entry["phi"] for entry in entries
    )


def _has_spectrum(entry: dict[str, Any]) -> bool:
    return bool(entry["eigenvalues"] or entry["batch_sharpness"])


def draw_sharpness(sharpness: dict[str, Any], axes: Axes | None = None) -> Axes:
    """The Axes, new ones for None, with the eigenvalues or, without any, density or φ.

    sharpness: what `Sharpness.to_dict` gives.
    """
    axes = axes_or_new(axes)
    entry = {"checkpoint": None, "step": None, "run": "", **sharpness}
    if _has_spectrum(entry):
        plot_eigenvalues(axes, entry)
    elif entry["density"]:
        _plot_densities(axes, [entry])
    elif entry["phi"]:
        _plot_phi(axes, [entry])
    of = f"{entry['num_examples']:,} of {entry['population_size']:,} {entry['split']} examples"
    axes.set_title(of, fontsize=10)
    return axes


def plot_eigenvalues(axes: Axes, entry: dict[str, Any]) -> None:
    """The eigenvalues by rank with 95 % intervals, beside batch sharpness and 2/η.

    Open markers have not converged.

    Args:
        axes: drawn on.
        entry: of `noisescale sharpness --json`.
    """
    place = 0
    names = []
    for end, (colour, label) in ENDS.items():
        rows = [row for row in entry["eigenvalues"] if row["which"] == end]
        for rank, row in enumerate(rows, start=1):
            look: Any = {"color": colour, "markersize": 5, "capsize": 3}
            if not row["converged"]:
                look["fillstyle"] = "none"
            name = label if rank == 1 else None
            if len(rows) == 1:
                name = label.removesuffix("s")
            axes.errorbar(place, row["value"], yerr=_bars(row), fmt="o", label=name, **look)
            names.append(rf"$\lambda_{{{rank}}}$" if end == "largest" else _from_below(rank))
            place += 1
    if batch := entry["batch_sharpness"]:
        look = {"color": VERMILION, "markersize": 6, "capsize": 3}
        label = "batch sharpness"
        if entry.get("batch_size") is not None:
            label += f" at B = {entry['batch_size']}"
        axes.errorbar(place, batch["value"], yerr=_bars(batch), fmt="D", label=label, **look)
        names.append("batch")
    if any(not row["converged"] for row in entry["eigenvalues"]):
        look = {"color": BLACK, "fillstyle": "none"}
        axes.plot([], [], "o", label="open: not converged", **look)
    _mark_limit(axes, entry.get("stable_sharpness"), along="y")
    axes.set_xticks(range(len(names)), names)
    axes.margins(x=0.5 / max(len(names), 1))
    low, high = axes.get_ylim()
    if low > 0:  # a curvature is read from zero, as its bar would be
        axes.set_ylim(0, high)
    axes.axhline(0, color=BLACK, linewidth=0.6)
    finish(axes, "", CURVATURE)


def _from_below(rank: int) -> str:
    """The name of an eigenvalue counted from the smallest one."""
    return r"$\lambda_{\min}$" if rank == 1 else rf"$\lambda_{{\min,{rank}}}$"


def _bars(row: dict[str, Any]) -> np.ndarray | None:
    """Down and up to the ends of an interval (2, 1); None where there is none."""
    if row.get("low") is None and row.get("high") is None:
        return None
    low, high = (np.nan if row[end] is None else row[end] for end in ("low", "high"))
    return error_bars(np.array([row["value"]]), np.array([low]), np.array([high]))


def _mark_limit(axes: Axes, limit: float | None, *, along: Literal["x", "y"]) -> None:
    """The limit of stability where it is known; far beyond what is drawn, its name alone.

    Else it would press all that was measured into a corner.
    """
    if limit is None or not np.isfinite(limit):
        return
    axis, line = (axes.yaxis, axes.axhline) if along == "y" else (axes.xaxis, axes.axvline)
    look: Any = {"color": BLACK, "linestyle": "--", "linewidth": 1}
    label = f"limit of stability, {limit:.4g}"
    largest = float(max(axis.get_data_interval()))
    if np.isfinite(largest) and limit > FAR * largest > 0:
        axes.plot([], [], label=f"{label}: beyond the panel", **look)
    else:
        line(limit, label=label, **look)


def plot_sharpness(axes: Axes, table: pd.DataFrame, *, legend_size: float = LEGEND_SIZE) -> None:
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
    if any(len(_limits(rows).dropna().unique()) > 1 for rows, _, _ in by_run(table)):
        _plot_limits(axes, table)
    else:
        for limit in table["stable_sharpness"].dropna().unique():
            _mark_limit(axes, limit, along="y")
    axes.xaxis.set_major_locator(whole_steps(integer=True))
    finish(axes, "step", CURVATURE, legend_size=legend_size)


def _limits(rows: pd.DataFrame) -> pd.Series[float]:
    """The limit of stability at each row, nan where there is none."""
    return rows["stable_sharpness"].astype(float)


def _plot_limits(axes: Axes, table: pd.DataFrame) -> None:
    """The limit of stability of runs whose rate changes, where it is not far beyond what is drawn.

    table: as for `plot_sharpness`.
    """
    highest = FAR * float(max(axes.yaxis.get_data_interval()))
    for rows, style, run in by_run(table):
        limits = _limits(rows)
        shown = limits.where(limits <= highest) if highest > 0 else limits
        look: Any = {"color": BLACK, "linestyle": "--" if style == "-" else style, "linewidth": 1}
        axes.plot(rows["step"], shown, label=f"limit of stability{run}", **look)


def has_preconditioned(table: pd.DataFrame) -> bool:
    """Whether rows of sharpness.csv have λ_max(P^½HP^½)."""
    name = "preconditioned_eigenvalue"
    return name in table and bool(np.isfinite(table[name].astype(float)).any())


def plot_preconditioned(
    axes: Axes, table: pd.DataFrame, *, legend_size: float = LEGEND_SIZE
) -> None:
    """λ_max(P^½HP^½) ± 2 standard errors by step, and the optimizer's limit of stability.

    Args:
        axes: drawn on.
        table: rows of sharpness.csv, some with λ_max(P^½HP^½); in a line style for each of its
            column "run" where it has one. What has not converged is an open marker.
        legend_size: of the type.
    """
    name = "preconditioned_eigenvalue"
    measured = table[np.isfinite(table[name].astype(float))]
    for rows, style, run in by_run(measured):
        if rows.empty:
            continue
        look: Any = {"color": BLUE, "linestyle": style, "markersize": 3}
        axes.plot(rows["step"], rows[name], marker=".", label=f"{UNDER_P}{run}", **look)
        error = 2 * rows[f"{name}_stderr"].fillna(0.0)
        plot_band(axes, rows["step"], rows[name] - error, rows[name] + error, color=BLUE)
        loose = rows[rows["preconditioned_converged"] != 1]
        axes.plot(loose["step"], loose[name], "o", color=BLUE, fillstyle="none")
        limits = rows[rows["preconditioned_stable"].notna()]
        look = {"color": BLACK, "linestyle": "--" if style == "-" else style, "linewidth": 1}
        if len(limits):
            label = f"limit of stability{run}"
            axes.plot(limits["step"], limits["preconditioned_stable"], label=label, **look)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(whole_steps(integer=True))
    finish(axes, "step", "curvature under the optimizer's P", legend_size=legend_size)


def _plot_preconditioned_along(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """The same of several checkpoints."""
    plot_preconditioned(axes, _table_of(entries), legend_size=SMALL)
    axes.set_xlabel(checkpoint_positions(entries)[1])


def _table_of(entries: list[dict[str, Any]]) -> pd.DataFrame:
    """Entries of `noisescale sharpness --json` as rows like those of sharpness.csv."""
    positions, _ = checkpoint_positions(entries)
    return pd.concat([positions, pd.DataFrame([_measurement(entry) for entry in entries])], axis=1)


def _plot_along_training(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """λ_max, λ_min and batch sharpness of several checkpoints against the step."""
    plot_sharpness(axes, _table_of(entries), legend_size=SMALL)
    axes.set_xlabel(checkpoint_positions(entries)[1])


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
    under = entry.get("preconditioned") or {"largest": missing, "stable_sharpness": None}
    values |= {
        "preconditioned_eigenvalue": under["largest"]["value"],
        "preconditioned_eigenvalue_stderr": under["largest"]["stderr"],
        "preconditioned_converged": under["largest"]["converged"],
        "preconditioned_stable": under["stable_sharpness"],
    }
    return {name: np.nan if value is None else float(value) for name, value in values.items()}


def _plot_densities(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Spectral densities on a logarithmic axis."""
    with_density = [entry for entry in entries if entry["density"]]
    for entry, colour in zip(with_density, series_colours(len(with_density)), strict=True):
        density = entry["density"]
        look: Any = {"color": colour, "linewidth": 1, "label": _name(entry)}
        axes.plot(density["grid"], density["density"], **look)
    limits = {entry.get("stable_sharpness") for entry in entries}
    if len(limits) == 1:
        _mark_limit(axes, limits.pop(), along="x")
    axes.set_yscale("log")
    axes.set_ylim(bottom=LEAST_DENSITY)
    finish(axes, "eigenvalue", "spectral density (share per unit)", legend_size=SMALL)


def _plot_phi(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Keskar's φ after each iteration of its search."""
    searches = [(entry, phi) for entry in entries for phi in entry["phi"]]
    for (entry, phi), colour in zip(searches, series_colours(len(searches)), strict=True):
        label = f"{_name(entry)}, {phi['space']}, ε = {phi['epsilon']:g}"
        after_start = phi["history"][1:]
        look: Any = {"color": colour, "label": label, "marker": "."}
        style = {"full": "-", "random": ":"}.get(phi["space"], "--")
        axes.plot(range(1, len(after_start) + 1), after_start, linestyle=style, **look)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(whole_steps(integer=True))
    finish(axes, "iteration of L-BFGS-B", "Keskar's φ (%)", legend_size=SMALL)


def _name(entry: dict[str, Any]) -> str:
    """The checkpoint by its step or, where that is not known, by its file."""
    if entry["step"] is not None:
        return f"step {entry['step']:,}"
    return str(entry["checkpoint"] or entry["run"] or "as it is")
