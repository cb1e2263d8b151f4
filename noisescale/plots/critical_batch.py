"""Pictures of the critical batch size: fronts, B_crit beside noise scales, best rates, branches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.noise import SCALES
from noisescale.plots.style import BLACK, PURPLE, VERMILION, error_bars, finish, panels
from noisescale.statistics.critical_batch.branches import branch_means
from noisescale.statistics.critical_batch.curves.rate_laws import POWERS

CRITICAL, OVERHEAD, RATES = BLACK, PURPLE, SCALES["simple"][1]
LAWS = {  # line and label of each law
    "noise": ("-", r"$\varepsilon_{\max}/(1+B_c/B)$"),
    "capped": ("-.", r"$\min(\varepsilon_{\max}B/B_c, \varepsilon_{\max})$"),
    "power": ((0, (4, 1, 1, 1, 1, 1)), r"$\propto B^a$"),
    "sqrt": ("--", r"$\propto\sqrt{B}$"),
    "linear": (":", r"$\propto B$"),
}
MARKERS = "osv^DPXd"  # one a goal
SMALL = 6.5  # points of a legend with a line for each goal


def critical_figure(
    fastest: pd.DataFrame,
    fits: pd.DataFrame,
    rates: pd.DataFrame,
    laws: pd.DataFrame,
    predicted: pd.DataFrame,
    *,
    title: str,
) -> Figure:
    """Pareto fronts, B_crit against the goal, and best learning rates, as far as there are any.

    Args:
        fastest: the runs at each batch size's fastest rate, rows of steps_to_goal.csv.
        fits: a row for each goal, see `fits_table`.
        rates: rows of learning_rates.csv.
        laws: what is fitted to them, see `laws_table`.
        predicted: rows of predicted.csv; may be empty.
        title: above all panels.
    """
    plots: list[Callable[[Axes], None]] = [lambda axes: plot_fronts(axes, fastest, fits)]
    if fits["critical_batch_size_low"].notna().any() and fits["goal"].notna().all():
        plots.append(lambda axes: plot_critical_sizes(axes, fits, predicted))
    if rates["learning_rate"].notna().any():
        plots.append(lambda axes: plot_best_rates(axes, rates, laws))
    figure, panel_axes = panels(len(plots), width=4.6, height=4.2, title=title)
    for plot, axes in zip(plots, panel_axes, strict=True):
        plot(axes)
    return figure


def plot_fronts(axes: Axes, fastest: pd.DataFrame, fits: pd.DataFrame) -> None:
    """Examples against steps to each goal: a point per batch size and seed, and the fitted curve.

    Runs that did not reach the goal are open, at the bound.

    Args:
        axes: drawn on.
        fastest: rows of steps_to_goal.csv, all seeds at each batch size's fastest rate.
        fits: a row for each goal, see `fits_table`.
    """
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(fits)))
    markers = itertools.cycle(MARKERS)
    for shade, marker, fit in zip(shades, markers, fits.to_dict("records"), strict=False):
        goal = fit["goal"]
        rows = _of_goal(fastest, goal)
        for censored, filled in ((0, "full"), (1, "none")):
            part = rows[rows["censored"] == censored]
            label = _goal_label(goal) if filled == "full" else None
            style: Any = {"color": shade, "markersize": 4, "fillstyle": filled, "label": label}
            axes.plot(part["steps"], part["steps"] * part["batch_size"], marker, **style)
        if not (fit["min_steps"] > 0 and fit["min_examples"] > 0):
            continue
        sizes = np.geomspace(rows["batch_size"].min() / 2, 2 * rows["batch_size"].max(), 100)
        steps = fit["min_steps"] + fit["min_examples"] / sizes
        axes.plot(steps, sizes * steps, "-", color=shade, linewidth=1)
        if fit["resolved"]:
            star: Any = {"color": shade, "markeredgecolor": "black", "markersize": 11, "zorder": 4}
            axes.plot(2 * fit["min_steps"], 2 * fit["min_examples"], "*", **star)
    axes.plot([], [], "*", color="grey", markersize=9, label=r"$B_{\mathrm{crit}}$")
    if (fastest["censored"] == 1).any():
        style = {"color": "grey", "fillstyle": "none", "markersize": 4}
        axes.plot([], [], "o", label="not reached: a bound", **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _finish(axes, "steps S (updates)", "examples E = B·S")


def plot_critical_sizes(axes: Axes, fits: pd.DataFrame, predicted: pd.DataFrame) -> None:
    """B_crit with its interval against the goal, and the noise scale averaged up to it, as bands.

    A triangle is a lower bound.

    Args:
        axes: drawn on.
        fits: a row for each goal, see `fits_table`.
        predicted: rows of predicted.csv; may be empty.
    """
    for quantity, (label, colour) in SCALES.items():
        rows = predicted[predicted["quantity"] == quantity] if len(predicted) else predicted
        if rows.empty:
            continue
        for name, style, words in (
            ("average", "-", "mean over steps"),
            ("by_progress", "--", "by progress"),
        ):
            positive = rows[rows[name] > 0]
            goals, low, high = (positive[key] for key in ("goal", f"{name}_low", f"{name}_high"))
            axes.plot(goals, positive[name], style, color=colour, label=f"{label}, {words}")
            # a logarithmic axis has no place for an end at or below zero
            axes.fill_between(
                goals, low.clip(lower=1e-3), high, color=colour, alpha=0.15, linewidth=0
            )
    label = "20 % overhead, measured curve"
    _draw_sizes(axes, fits, "overhead_batch_size", colour=OVERHEAD, marker="s", label=label)
    label = r"$B_{\mathrm{crit}} = E_{\min}/S_{\min}$"
    _draw_sizes(axes, fits, "critical_batch_size", colour=CRITICAL, marker="o", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xticks(fits["goal"].tolist(), [f"{goal:g}" for goal in fits["goal"]])
    axes.minorticks_off()
    _finish(axes, "goal (loss)", "batch size (examples)")


def plot_best_rates(
    axes: Axes, rates: pd.DataFrame, laws: pd.DataFrame, *, goal: float | None = None
) -> None:
    """The best learning rate against B with its interval, and the laws fitted to it.

    Args:
        axes: drawn on.
        rates: rows of learning_rates.csv.
        laws: a row for each goal and law, see `laws_table`.
        goal: whose rates; None: those of the lowest goal with fitted laws.
    """
    if goal is None:
        goal = float(laws["goal"].min() if len(laws) else rates["goal"].min())
    points = _of_goal(rates, goal)
    points = points[points["learning_rate"].notna()]
    sizes, values = points["batch_size"], points["learning_rate"]
    bars = error_bars(values, points["learning_rate_low"], points["learning_rate_high"])
    look: Any = {"fmt": "o", "color": CRITICAL, "markersize": 4, "capsize": 2}
    axes.errorbar(sizes, values, yerr=bars, label=f"best rate, {_goal_label(goal)}", **look)
    grid = np.geomspace(sizes.min(), sizes.max(), 100)
    for law in _of_goal(laws, goal).to_dict("records"):
        style, label = LAWS[law["law"]]
        if law["law"] == "noise":
            curve = law["scale"] / (1 + law["bend"] / grid)
        elif law["law"] == "capped":
            curve = law["scale"] * np.minimum(1, grid / law["bend"])
        else:
            curve = law["scale"] * grid ** POWERS.get(law["law"], law.get("power"))
        label += f", held out ±{100 * math.expm1(law['held_out_error']):.0f} %"
        axes.plot(grid, curve, linestyle=style, color=RATES, linewidth=1.2, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if len(points):
        axes.set_ylim(values.min() / 3, 4 * values.max())
    _finish(axes, "batch size B (examples)", r"learning rate $\varepsilon$")


def branch_figure(table: pd.DataFrame, summary: dict[str, Any], *, title: str) -> Figure:
    """The branches' losses against the batch size, from branches.csv and branch.json."""
    figure, (axes,) = panels(1, width=5, height=3.8, title=title)
    plot_branches(axes, table, summary)
    return figure


def plot_branches(axes: Axes, table: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Each branch's loss, their means ± 2 standard errors, the tolerance and the critical size."""
    means = branch_means(table)
    means = means[means["loss"].notna()]
    sizes, losses = means["batch_size"], means["loss"]
    finite = table[table["diverged"] == 0]
    axes.plot(finite["batch_size"], finite["loss"], ".", color="grey", markersize=3, label="seeds")
    look: Any = {"fmt": "o-", "color": RATES, "markersize": 4, "capsize": 2}
    errors = 2 * means["loss_stderr"].fillna(0.0)
    axes.errorbar(sizes, losses, yerr=errors, label="mean, ± 2 stderr", **look)
    ceiling = losses.cummin() + summary["tolerance"]
    label = "least so far + tolerance"
    axes.plot(sizes, ceiling, "--", color=CRITICAL, linewidth=1, label=label)
    diverged = sorted(set(table["batch_size"]) - set(sizes))
    if diverged:
        top = float(losses.max()) if len(means) else 1.0
        axes.plot(diverged, [top] * len(diverged), "x", color=VERMILION, label="diverged")
    critical = summary["critical_batch_size"]
    if critical["value"] is not None:
        axes.axvline(critical["value"], color=OVERHEAD, label=f"critical: {critical['value']:.3g}")
        if critical["low"] is not None and critical["high"] is not None:
            axes.axvspan(critical["low"], critical["high"], color=OVERHEAD, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _finish(axes, "batch size (examples)", "loss after equal examples")


def _draw_sizes(
    axes: Axes, fits: pd.DataFrame, name: str, *, colour: str, marker: str, label: str
) -> None:
    """A batch size of every goal with its interval; a triangle where it is only bounded.

    A bare bar: an interval that is too wide for a value.
    """
    resolved = fits[fits[name] > 0]
    bars = error_bars(resolved[name], resolved[f"{name}_low"], resolved[f"{name}_high"])
    look: Any = {"color": colour, "markersize": 5, "capsize": 3, "zorder": 4}
    axes.errorbar(resolved["goal"], resolved[name], yerr=bars, fmt=marker, label=label, **look)
    others = fits[~(fits[name] > 0) & (fits[f"{name}_low"] > 0)]
    columns = ["goal", f"{name}_low", f"{name}_high"]
    goals, low, high = others[columns].to_numpy(dtype=float).T
    bounded = ~np.isfinite(high)
    axes.plot(goals[bounded], low[bounded], "^", color=colour, fillstyle="none")
    axes.vlines(goals[~bounded], low[~bounded], high[~bounded], color=colour, alpha=0.5)


def _of_goal(table: pd.DataFrame, goal: float) -> pd.DataFrame:
    """The rows of this goal; of the one without a name where it is nan."""
    return table[table["goal"].isna() if math.isnan(goal) else table["goal"] == goal]


def _goal_label(goal: float) -> str:
    return "the goal" if math.isnan(goal) else f"loss {goal:g}"


def _finish(axes: Axes, x: str, y: str) -> None:
    finish(axes, x, y, legend_size=SMALL)
