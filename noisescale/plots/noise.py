"""Pictures of the gradient noise: a table or measurements in, matplotlib Axes drawn on."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, NullLocator

Scale = Literal["simple", "full"]
SCALES: dict[Scale, tuple[str, str]] = {
    "simple": (r"$B_{\mathrm{simple}}$", "#0072B2"),
    "full": (r"$B_{\mathrm{noise}}$", "#D55E00"),
}  # column, label and colour


def plot_noise(
    axes: Axes,
    table: pd.DataFrame,
    *,
    quantity: Scale = "simple",
    against: Literal["step", "loss"] = "step",
    label: str | None = None,
    **style: Any,
) -> None:
    """A noise scale along training with its 95 % band, interrupted where it is not resolved.

    Open triangles are the lower bounds there.

    table: rows with `against`, `quantity`, and its _low and _high, as in noise.csv. The loss falls to the
        right.
    """
    name, colour = SCALES[quantity]
    style = {"color": colour, "linewidth": 1.2, **style}
    rows = table.sort_values("step")
    axes.plot(rows[against], rows[quantity], ".-", markersize=4, label=label or name, **style)
    low, high = (rows[f"{quantity}_{end}"].where(rows[quantity].notna()) for end in ("low", "high"))
    axes.fill_between(rows[against], low, high, color=style["color"], alpha=0.2, linewidth=0)
    bounds = rows[rows[quantity].isna() & np.isfinite(rows[f"{quantity}_low"])]
    if len(bounds):
        axes.plot(
            bounds[against], bounds[f"{quantity}_low"], "^", color=style["color"], fillstyle="none"
        )
    axes.set_yscale("log")
    if against == "step":
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xlabel("step")
    else:
        axes.set_xscale("log")
        if not axes.xaxis_inverted():
            axes.invert_xaxis()
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("mean training loss")
    axes.grid(alpha=0.3)


def noise_growth_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """The noise scales along a run against step and loss, from the rows of noise.csv."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_step, by_loss = figure.subplots(1, 2, sharey=True)
    for quantity in SCALES:
        bounds = table[[quantity, f"{quantity}_low"]].notna().any(axis=1)
        if bounds.any():
            plot_noise(by_step, table[bounds], quantity=quantity, against="step")
            plot_noise(by_loss, table[bounds], quantity=quantity, against="loss")
    by_step.set_ylabel("noise scale (examples)")
    if by_step.lines:
        by_step.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    return figure


def batch_size_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """An adaptive batch size against the epoch beside the noise scale it follows, and the learning rate."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    sizes, rates = figure.subplots(1, 2)
    known = table[np.isfinite(table["simple"])]
    label, colour = SCALES["simple"]
    sizes.step(table["epoch"], table["batch_size"], where="post", color="black", label="batch size")
    sizes.plot(known["epoch"], known["simple"], ".", color=colour, label=f"running {label}")
    sizes.fill_between(
        known["epoch"],
        known["simple_low"],
        known["simple_high"],
        color=colour,
        alpha=0.2,
        linewidth=0,
    )
    sizes.set_yscale("log")
    sizes.set_ylabel("examples")
    sizes.legend(frameon=False)
    rates.step(table["epoch"], table["learning_rate"], where="post", color="black")
    rates.set_ylim(bottom=0)
    rates.set_ylabel("learning rate")
    for axes in (sizes, rates):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    return figure


def noise_figure(entries: list[dict[str, Any]]) -> Figure:
    """What `noisescale measure-noise --json` gave: scales along training, and the last one's parts."""
    last = next(entry for entry in reversed(entries) if not entry["reason"])
    panels: list[tuple[Any, Any]] = [(_plot_scales, entries)] if len(entries) > 1 else []
    for key, rows in (("parameter", last["per_layer"]), ("class", last["per_class"])):
        if rows:
            panels.append((_plot_parts, (key, rows, last["step"])))
    if not panels:
        panels = [(_plot_shares, last)]
    figure = Figure(figsize=(5 * len(panels), 3.8), layout="constrained")
    for axes, (panel, content) in zip(
        np.ravel(figure.subplots(1, len(panels))), panels, strict=True
    ):
        panel(axes, content)
        axes.grid(alpha=0.3)
    return figure


def _plot_scales(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """B_simple and B_noise against the step with 95 % intervals; what is unresolved as a lower bound."""
    runs = list(dict.fromkeys(entry["run"] for entry in entries))
    steps = [entry["step"] for entry in entries]
    numbered = None in steps  # weights of unknown step: in their order
    for name, (label, colour) in SCALES.items():
        for run, style in zip(runs, itertools.cycle(["-", "--", ":", "-."]), strict=False):
            found = [
                (index if numbered else entry["step"], entry[name])
                for index, entry in enumerate(entries)
                if entry["run"] == run or numbered
                if entry[name] is not None
            ]
            points = [(at, one) for at, one in found if one["value"] is not None]
            loose = [(at, one["low"]) for at, one in found if one["value"] is None]
            bounds = [(at, low) for at, low in loose if low is not None]
            if points:
                values = np.array([one["value"] for _, one in points])
                low = np.array(
                    [one["value"] if one["low"] is None else one["low"] for _, one in points]
                )
                high = np.array(
                    [one["value"] if one["high"] is None else one["high"] for _, one in points]
                )
                axes.errorbar(
                    [at for at, _ in points],
                    values,
                    yerr=[values - low, high - values],
                    fmt=".",
                    linestyle=style,
                    color=colour,
                    label=label if len(runs) == 1 or numbered else f"{label}, {run}",
                )
            if bounds:
                x, y = zip(*bounds, strict=True)
                axes.plot(x, y, "^", color=colour, fillstyle="none", label=f"{label}, lower bound")
            if numbered:
                break
    axes.set_yscale("log")
    axes.set_xlabel("checkpoint" if numbered else "step")
    (population, *_) = [entry["population"] for entry in entries if not entry["reason"]]
    axes.set_ylabel(f"noise scale (examples, {population} population)")
    axes.legend(frameon=False, fontsize=7)


def _plot_parts(axes: Axes, content: tuple[str, list[dict[str, Any]], int | None]) -> None:
    """B_simple of each parameter tensor or class, 95 % intervals; lower bounds as arrows."""
    key, rows, step = content
    if step is not None:
        axes.set_title(f"step {step:,}", fontsize=10)
    for at, row in enumerate(rows):
        value, low, high = (row[name] for name in ("simple", "simple_low", "simple_high"))
        if value is not None:
            errors = None if low is None else [[value - low], [high - value]]
            axes.errorbar(value, at, xerr=errors, fmt="o", color="#0072B2", markersize=4)
        elif low is not None:
            axes.plot(low, at, ">", color="#0072B2", fillstyle="none")
    axes.set_yticks(range(len(rows)), [str(row[key]) for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.1)
    axes.set_xscale("log")
    for kind in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        kind(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axes.set_xlabel(r"$B_{\mathrm{simple}}$ (examples); open: lower bound")
    if key == "class":
        axes.set_ylabel("class")


def _plot_shares(axes: Axes, entry: dict[str, Any]) -> None:
    """The shares of the noisiest examples in tr Σ."""
    rows = entry["top_examples"]
    axes.barh(range(len(rows)), [100 * row["share"] for row in rows], color="#0072B2")
    axes.set_yticks(range(len(rows)), [str(row["index"]) for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_ylabel("example")
    axes.set_xlabel(r"share of $\mathrm{tr}\,\Sigma$ (%)")
