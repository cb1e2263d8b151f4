"""Pictures of the critical batch size: fronts, B_crit beside noise scales, best rates, branches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.noise import SCALES
from noisescale.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SMALL,
    VERMILION,
    axes_or_new,
    error_bars,
    finish,
    number_text,
    panels,
    power_axis,
    series_colours,
)

CRITICAL, OVERHEAD, RATES = BLACK, PURPLE, SCALES["simple"][1]
LAWS = {  # line and label of each law
    "noise": ("-", r"$\varepsilon_{\max}/(1+B_c/B)$"),
    "capped": ("-.", r"$\min(\varepsilon_{\max}B/B_c, \varepsilon_{\max})$"),
    "power": ((0, (4, 1, 1, 1, 1, 1)), r"$\propto B^a$"),
    "sqrt": ("--", r"$\propto\sqrt{B}$"),
    "linear": (":", r"$\propto B$"),
}
POWERS = {"sqrt": 0.5, "linear": 1.0}  # of the laws that have a fixed one
MARKERS = "osv^DPXd"  # one a goal
MARGIN = 2.0  # beyond the least and the largest batch size of a logarithmic axis
NAMED = 9  # batch sizes whose names have room along a front


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
    """Examples against steps to each goal: means of the batch sizes, their seeds, and the fit.

    A batch size's mean over the seeds, in logarithms, is a full marker where all of them reached
    the goal, and an open one at the bound where one did not; single seeds are small dots. Sizes
    are named along the front of the last goal.

    Args:
        axes: drawn on.
        fastest: rows of steps_to_goal.csv, all seeds at each batch size's fastest rate.
        fits: a row for each goal, see `fits_table`.
    """
    shades, markers = series_colours(len(fits)), itertools.cycle(MARKERS)
    means = pd.DataFrame()
    for shade, marker, fit in zip(shades, markers, fits.to_dict("records"), strict=False):
        goal = fit["goal"]
        rows = _of_goal(fastest, goal)
        means = _over_seeds(rows)
        if len(means) < len(rows):
            seeds: Any = {"color": shade, "markersize": 3, "alpha": 0.5}
            axes.plot(rows["steps"], rows["steps"] * rows["batch_size"], ".", **seeds)
        for censored, filled in ((0, "full"), (1, "none")):
            part = means[means["censored"] == censored]
            label = _goal_label(goal) if filled == "full" else None
            style: Any = {"color": shade, "markersize": 5, "fillstyle": filled, "label": label}
            axes.plot(part["steps"], part["steps"] * part["batch_size"], marker, **style)
        if not (fit["min_steps"] > 0 and fit["min_examples"] > 0):
            continue
        sizes = np.geomspace(rows["batch_size"].min() / 2, 2 * rows["batch_size"].max(), 100)
        steps = fit["min_steps"] + fit["min_examples"] / sizes
        axes.plot(steps, sizes * steps, "-", color=shade, linewidth=1.2)
        if fit["resolved"]:
            star: Any = {"color": shade, "markeredgecolor": "black", "markersize": 11, "zorder": 4}
            axes.plot(2 * fit["min_steps"], 2 * fit["min_examples"], "*", **star)
    _name_sizes(axes, means)
    if (fits["resolved"] == 1).any():
        axes.plot([], [], "*", color="grey", markersize=9, label=r"$B_{\mathrm{crit}}$")
    if fastest.duplicated(["goal", "batch_size"] if "goal" in fastest else ["batch_size"]).any():
        axes.plot([], [], ".", color="grey", markersize=3, label="single seeds")
    if (fastest["censored"] == 1).any():
        style = {"color": "grey", "fillstyle": "none", "markersize": 5}
        axes.plot([], [], "o", label="not reached: a bound", **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(0.08)
    _finish(axes, "steps S (updates)", "examples E = B·S")


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    """Steps of each batch size, a mean over its seeds in logarithms; censored where one is."""
    logs = rows.assign(steps=np.log(rows["steps"].astype(float))).groupby("batch_size")
    means = logs.agg({"steps": "mean", "censored": "max"}).reset_index()
    return means.assign(steps=np.exp(means["steps"]))


def _name_sizes(axes: Axes, means: pd.DataFrame) -> None:
    """The batch sizes beside their markers, every other one where there are many."""
    every = max(1, math.ceil(len(means) / NAMED))
    for row in means.iloc[::every].to_dict("records"):
        text = f"{row['batch_size']:g}"
        place: Any = {"xytext": (4, 5), "textcoords": "offset points", "fontsize": SMALL}
        axes.annotate(text, (row["steps"], row["steps"] * row["batch_size"]), **place)


def draw_fit(fit: dict[str, Any], axes: Axes | None = None) -> Axes:
    """The Axes, new ones for None, with the fitted trade-off of steps and examples.

    fit: what `CriticalBatchFit.to_dict` gives, with the batch_sizes and steps that were fitted.
    """
    axes = axes_or_new(axes)
    points = pd.DataFrame({name: fit[name] for name in ("batch_sizes", "steps", "censored")})
    points = points.rename(columns={"batch_sizes": "batch_size"}).assign(goal=math.nan)
    row: dict[str, Any] = {"goal": math.nan, "resolved": int(fit["resolved"])}
    for name in ("min_steps", "min_examples"):
        value = fit[name]["value"]
        row[name] = math.nan if value is None else value
    plot_fronts(axes, points, pd.DataFrame([row]))
    axes.set_title(_critical_text(fit["critical_batch_size"]), fontsize=10)
    return axes


def _critical_text(critical: dict[str, Any]) -> str:
    """B_crit with its interval, for a title; a bound without a value is open."""
    name = r"$B_{\mathrm{crit}}$"
    if critical["value"] is None:
        return f"{name} is not resolved"
    value, low, high = (
        "∞" if critical[part] is None else number_text(float(f"{critical[part]:.3g}"))
        for part in ("value", "low", "high")
    )
    return f"{name} = {value} ({low}–{high})"


def draw_recommendation(
    sizes: list[dict[str, Any]], critical: dict[str, Any], axes: Axes | None = None
) -> Axes:
    """The Axes, new ones for None, with what a batch size costs in steps and in examples.

    Args:
        sizes: a batch size for each aim, with its aim.
        critical: B_crit, its value, low and high.
        axes: drawn on; None: new ones.
    """
    axes = axes_or_new(axes)
    centre, low, high = (
        critical[part] if critical[part] is not None else math.nan
        for part in ("value", "low", "high")
    )
    named = [row["batch_size"] for row in sizes]
    ends = [end for end in (*named, centre) if math.isfinite(end) and end > 0]
    grid = np.geomspace(max(1.0, min(ends) / 3), 3 * max(ends), 200)
    curves = (
        (BLUE, "examples, over the fewest", lambda ratio: 1 + ratio),
        (VERMILION, "steps, over the fewest", lambda ratio: 1 + 1 / ratio),
    )
    for colour, label, cost in curves:
        axes.plot(grid, cost(grid / centre), color=colour, label=label)
        if math.isfinite(low) and math.isfinite(high) and low > 0:
            bounds: Any = {"color": colour, "alpha": 0.15, "linewidth": 0}
            axes.fill_between(grid, cost(grid / high), cost(grid / low), **bounds)
    for (aim, size), colour in zip(
        [(row["aim"], row["batch_size"]) for row in sizes], (GREEN, BLACK, ORANGE), strict=False
    ):
        axes.axvline(size, color=colour, linestyle="--", linewidth=1, label=f"{aim}: B = {size:,}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(1, 30)
    axes.set_title(_critical_text(critical), fontsize=10)
    _finish(axes, "batch size B (examples)", "cost, in units of the least")
    return axes


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
    _limit_sizes(axes, fits, predicted)
    axes.invert_xaxis()
    axes.set_xticks(fits["goal"].tolist(), [f"{goal:g}" for goal in fits["goal"]])
    axes.minorticks_off()
    if len(fits) > NAMED - 3:  # goals whose names do not fit side by side
        axes.tick_params(axis="x", labelrotation=45)
    _finish(axes, "goal (loss)", "batch size (examples)")


def _limit_sizes(axes: Axes, fits: pd.DataFrame, predicted: pd.DataFrame) -> None:
    """An axis for all values and the intervals of B_crit; predicted intervals may go beyond it."""
    names = [f"critical_batch_size{end}" for end in ("", "_low", "_high")]
    shown = [fits[[*names, "overhead_batch_size"]].to_numpy(dtype=float).ravel()]
    if len(predicted):
        shown.append(predicted[["average", "by_progress"]].to_numpy(dtype=float).ravel())
    values = np.concatenate(shown)
    values = values[np.isfinite(values) & (values > 0)]
    if len(values):
        axes.set_ylim(values.min() / MARGIN, values.max() * MARGIN)


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
    power_axis(axes, sizes)
    axes.set_yscale("log")
    if len(points):
        axes.set_ylim(values.min() / 3, 4 * values.max())
    _finish(axes, "batch size B (examples)", r"learning rate $\varepsilon$")


def branch_figure(
    table: pd.DataFrame, means: pd.DataFrame, summary: dict[str, Any], *, title: str
) -> Figure:
    """The branches' losses against the batch size, from branches.csv and branch.json.

    means: over the seeds, see `branch_means`.
    """
    figure, (axes,) = panels(1, width=5.5, height=4.2, title=title)
    plot_branches(axes, table, means, summary)
    return figure


def plot_branches(
    axes: Axes, table: pd.DataFrame, means: pd.DataFrame, summary: dict[str, Any]
) -> None:
    """Each branch's loss, their means ± 2 standard errors, the tolerance and the critical size.

    Args:
        axes: drawn on.
        table: rows of branches.csv.
        means: over the seeds, see `branch_means`.
        summary: the content of branch.json.
    """
    means = means[means["loss"].notna()]
    sizes, losses = means["batch_size"], means["loss"]
    finite = table[table["diverged"] == 0]
    axes.plot(finite["batch_size"], finite["loss"], ".", color=GREY, markersize=3, label="seeds")
    look: Any = {"fmt": "o-", "color": RATES, "markersize": 4, "capsize": 2}
    errors = 2 * means["loss_stderr"].fillna(0.0)
    axes.errorbar(sizes, losses, yerr=errors, label="mean, ± 2 stderr", **look)
    ceiling = losses.cummin() + summary["tolerance"]
    label = "least so far + tolerance"
    axes.plot(sizes, ceiling, "--", color=CRITICAL, linewidth=1, label=label)
    diverged = sorted(set(table["batch_size"]) - set(sizes))
    if diverged:
        top = float(losses.max()) if len(means) else 1.0
        cross: Any = {"color": VERMILION, "label": "diverged", "linestyle": "none"}
        axes.plot(diverged, [top] * len(diverged), "x", **cross)
    critical = summary["critical_batch_size"]
    if critical["value"] is not None:
        axes.axvline(critical["value"], color=OVERHEAD, label=f"critical: {critical['value']:.3g}")
        if critical["low"] is not None and critical["high"] is not None:
            axes.axvspan(critical["low"], critical["high"], color=OVERHEAD, alpha=0.15, linewidth=0)
    power_axis(axes, table["batch_size"])
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
