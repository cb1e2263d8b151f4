"""Pictures of the gradient noise: along training, by parameter and class, and the batch it sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, LogLocator, NullLocator

from noisescale.plots.style import (
    BLACK,
    BLUE,
    TITLE_SIZE,
    VERMILION,
    by_run,
    checkpoint_positions,
    error_bars,
    finish,
    panels,
    plot_band,
)

Scale = Literal["simple", "full"]
SCALES: dict[Scale, tuple[str, str]] = {  # label and colour of each column
    "simple": (r"$B_{\mathrm{simple}}$", BLUE),
    "full": (r"$B_{\mathrm{noise}}$", VERMILION),
}
SMALL = 7  # points of names of parameters, classes and runs


def noise_growth_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """The noise scales along a run against step and loss, from the rows of noise.csv.

    Where the table has a column "run", each of its runs has lines of its own.
    """
    figure, (by_step, by_loss) = panels(2, width=4.5, height=3.6, title=title, sharey=True)
    _plot_scales(by_step, table, against="step")
    _plot_scales(by_loss, table, against="loss")
    by_step.set_ylabel("noise scale (examples)")
    if by_step.get_legend_handles_labels()[0]:
        by_step.legend(frameon=False)
    return figure


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

    Args:
        axes: drawn on.
        table: rows with step, `against`, `quantity`, and its _low and _high, as in noise.csv.
        quantity: "simple" for B_simple, "full" for B_noise.
        against: "step", or "loss", which falls to the right.
        label: in the legend; None: the quantity's name.
        **style: of the line, instead of the quantity's colour and a width of 1.2.
    """
    name, colour = SCALES[quantity]
    style = {"color": colour, "linewidth": 1.2, **style}
    rows = table.sort_values("step")
    x, values = rows[against], rows[quantity]
    axes.plot(x, values, marker=".", markersize=4, label=label or name, **style)
    low, high = (rows[f"{quantity}_{end}"].where(values.notna()) for end in ("low", "high"))
    plot_band(axes, x, low, high, color=style["color"])
    bounds = rows[_is_bound(rows, quantity)]
    if len(bounds):
        look: Any = {"color": style["color"], "fillstyle": "none"}
        axes.plot(bounds[against], bounds[f"{quantity}_low"], "^", **look)
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


def batch_size_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """An adaptive batch size beside the noise scale it follows, and the learning rate, by epoch.

    table: the rows of batch_size.csv.
    """
    figure, (sizes, rates) = panels(2, width=4.5, height=3.6, title=title)
    resolved = table[np.isfinite(table["simple"])]
    label, colour = SCALES["simple"]
    epochs = table["epoch"]
    sizes.step(epochs, table["batch_size"], where="post", color=BLACK, label="batch size")
    sizes.plot(resolved["epoch"], resolved["simple"], ".", color=colour, label=f"running {label}")
    low, high = resolved["simple_low"], resolved["simple_high"]
    plot_band(sizes, resolved["epoch"], low, high, color=colour)
    sizes.set_yscale("log")
    finish(sizes, "epoch", "examples")
    rates.step(epochs, table["learning_rate"], where="post", color=BLACK)
    rates.set_ylim(bottom=0)
    finish(rates, "epoch", "learning rate")
    return figure


def noise_figure(entries: list[dict[str, Any]]) -> Figure:
    """What `noisescale measure-noise --json` gave: scales along training, and the last one's parts.

    Of a single checkpoint without its parts, the shares of the noisiest examples.
    """
    last = next(entry for entry in reversed(entries) if not entry["reason"])
    drawn: list[Callable[[Axes], None]] = []
    if len(entries) > 1:
        drawn.append(lambda axes: _plot_along_training(axes, entries))
    if last["per_layer"]:
        drawn.append(lambda axes: _plot_parts(axes, last, key="parameter"))
    if last["per_class"]:
        drawn.append(lambda axes: _plot_parts(axes, last, key="class"))
    if not drawn:
        drawn.append(lambda axes: _plot_shares(axes, last))
    figure, panel_axes = panels(len(drawn), width=5, height=3.8)
    for plot, axes in zip(drawn, panel_axes, strict=True):
        plot(axes)
    return figure


def _plot_along_training(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """Both noise scales of several checkpoints against the step."""
    positions, counted = checkpoint_positions(entries)
    columns = {
        f"{quantity}{suffix}": [(entry[quantity] or {}).get(part) for entry in entries]
        for quantity in SCALES
        for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
    }
    _plot_scales(axes, positions.join(pd.DataFrame(columns).astype(float)), against="step")
    axes.set_xscale(
        "linear"
    )  # few checkpoints, often within a decade, which has no tick on a log axis
    population = next(entry["population"] for entry in entries if not entry["reason"])
    finish(axes, counted, f"noise scale (examples, {population} population)", legend_size=SMALL)


def _plot_scales(axes: Axes, table: pd.DataFrame, *, against: Literal["step", "loss"]) -> None:
    """Every noise scale that the table has a value or a bound of, run by run."""
    bounded = False
    for quantity, (label, _) in SCALES.items():
        there = table[table[[quantity, f"{quantity}_low"]].notna().any(axis=1)]
        bounded = bounded or bool(_is_bound(there, quantity).any())
        for rows, style, run in by_run(there):
            if len(rows):
                look: Any = {"label": f"{label}{run}", "linestyle": style}
                plot_noise(axes, rows, quantity=quantity, against=against, **look)
    if bounded:
        axes.plot([], [], "^", color="grey", fillstyle="none", label="not resolved: a lower bound")


def _is_bound(table: pd.DataFrame, quantity: Scale) -> pd.Series[bool]:
    """Where the scale is not resolved and has a lower bound."""
    bounded: pd.Series[bool] = np.isfinite(table[f"{quantity}_low"])
    return table[quantity].isna() & bounded


def _plot_parts(axes: Axes, entry: dict[str, Any], *, key: Literal["parameter", "class"]) -> None:
    """B_simple of each parameter tensor or class, 95 % intervals; lower bounds as arrows."""
    rows = entry["per_layer" if key == "parameter" else "per_class"]
    if entry["step"] is not None:
        axes.set_title(f"step {entry['step']:,}", fontsize=TITLE_SIZE)
    table = pd.DataFrame(rows, columns=[key, "simple", "simple_low", "simple_high"])
    values, low, high = (
        table[name].astype(float) for name in ("simple", "simple_low", "simple_high")
    )
    heights = np.arange(len(table))
    look: Any = {"fmt": "o", "color": BLUE, "markersize": 4}
    axes.errorbar(values, heights, xerr=error_bars(values, low, high), **look)
    bounds = _is_bound(table.assign(simple=values, simple_low=low), "simple")
    axes.plot(low[bounds], heights[bounds], ">", color=BLUE, fillstyle="none")
    axes.set_yticks(heights, [str(name) for name in table[key]], fontsize=SMALL)
    axes.invert_yaxis()
    axes.margins(y=0.1)
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    label = "class" if key == "class" else ""  # the parameters' names need none
    finish(axes, r"$B_{\mathrm{simple}}$ (examples); open: lower bound", label)


def _plot_shares(axes: Axes, entry: dict[str, Any]) -> None:
    """The shares of the noisiest examples in tr Σ."""
    rows = entry["top_examples"]
    heights = range(len(rows))
    axes.barh(heights, [100 * row["share"] for row in rows], color=BLUE)
    axes.set_yticks(heights, [str(row["index"]) for row in rows], fontsize=SMALL)
    axes.invert_yaxis()
    finish(axes, r"share of $\mathrm{tr}\,\Sigma$ (%)", "example")
