"""Pictures of the critical batch size: Pareto fronts, B_crit beside the noise scale, best learning rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.statistics.critical_batch.branches import branch_means
from noisescale.statistics.critical_batch.learning_rate_law import POWERS

CRITICAL, OVERHEAD = "#000000", "#CC79A7"
NOISE_SCALES = {  # colour and label of each quantity
    "simple": ("#0072B2", r"$B_{\mathrm{simple}}$"),
    "full": ("#D55E00", r"$B_{\mathrm{noise}}$"),
}
LAWS = {  # line and label of each law
    "noise": ("-", r"$\varepsilon_{\max}/(1+B_c/B)$"),
    "sqrt": ("--", r"$\propto\sqrt{B}$"),
    "linear": (":", r"$\propto B$"),
}
MARKERS = "osv^DPXd"


def critical_figure(
    fastest: pd.DataFrame,
    fits: pd.DataFrame,
    rates: pd.DataFrame,
    laws: pd.DataFrame,
    predicted: pd.DataFrame,
    *,
    title: str,
) -> Figure:
    """The Pareto fronts, B_crit against the goal, and the best learning rates, as far as there are any."""
    panels: list[Any] = [lambda axes: plot_fronts(axes, fastest, fits)]
    if fits["critical_batch_size_low"].notna().any() and fits["goal"].notna().all():
        panels.append(lambda axes: plot_critical_sizes(axes, fits, predicted))
    if rates["learning_rate"].notna().any():
        panels.append(lambda axes: plot_best_rates(axes, rates, laws))
    figure = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
        panel(axes)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_fronts(axes: Axes, fastest: pd.DataFrame, fits: pd.DataFrame) -> None:
    """Examples against steps to each goal: a point for each batch size and seed, and the fitted curve.

    fastest: rows of steps_to_goal.csv, all seeds at each batch size's fastest rate. fits: `fits_table`. Runs
    that did not reach the goal are open, at the bound.
    """
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(fits)))
    for shade, marker, fit in zip(
        shades, _markers(len(fits)), fits.to_dict("records"), strict=True
    ):
        goal = fit["goal"]
        rows = fastest[fastest["goal"].isna() if math.isnan(goal) else fastest["goal"] == goal]
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
        axes.plot(
            [], [], "o", color="grey", fillstyle="none", markersize=4, label="not reached: a bound"
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _finish(axes, "steps S (updates)", "examples E = B·S")


def plot_critical_sizes(axes: Axes, fits: pd.DataFrame, predicted: pd.DataFrame) -> None:
    """B_crit with its interval against the goal, and the noise scale averaged up to it, as bands.

    fits: `fits_table`. predicted: rows of predicted.csv; may be empty. A triangle is a lower bound.
    """
    for quantity, (colour, label) in NOISE_SCALES.items():
        rows = predicted[predicted["quantity"] == quantity] if len(predicted) else predicted
        if rows.empty:
            continue
        for name, style, words in (
            ("average", "-", "mean over steps"),
            ("by_progress", "--", "by progress"),
        ):
            known = rows[rows[name] > 0]
            axes.plot(known["goal"], known[name], style, color=colour, label=f"{label}, {words}")
            low, high = known[f"{name}_low"].clip(lower=1e-3), known[f"{name}_high"]
            axes.fill_between(known["goal"], low, high, color=colour, alpha=0.15, linewidth=0)
    _draw_sizes(axes, fits, "overhead_batch_size", OVERHEAD, "s", "20 % overhead, measured curve")
    _draw_sizes(
        axes, fits, "critical_batch_size", CRITICAL, "o", r"$B_{\mathrm{crit}} = E_{\min}/S_{\min}$"
    )
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

    rates: rows of learning_rates.csv. laws: `laws_table`. goal: None: the lowest one with fitted laws.
    """
    if goal is None:
        goal = float(laws["goal"].min() if len(laws) else rates["goal"].min())
    here = rates if math.isnan(goal) else rates[rates["goal"] == goal]
    here = here[here["learning_rate"].notna()]
    ends = [
        here["learning_rate"] - here["learning_rate_low"],
        here["learning_rate_high"] - here["learning_rate"],
    ]
    axes.errorbar(
        here["batch_size"],
        here["learning_rate"],
        yerr=np.array(ends),
        fmt="o",
        color=CRITICAL,
        markersize=4,
        capsize=2,
        label=f"best rate, {_goal_label(goal)}",
    )
    sizes = np.geomspace(here["batch_size"].min(), here["batch_size"].max(), 100)
    for row in laws[laws["goal"].isna() if math.isnan(goal) else laws["goal"] == goal].to_dict(
        "records"
    ):
        style, label = LAWS[row["law"]]
        if row["law"] == "noise":
            values = row["scale"] / (1 + row["bend"] / sizes)
        else:
            values = row["scale"] * sizes ** POWERS[row["law"]]
        error = f", held out ±{100 * math.expm1(row['held_out_error']):.0f} %"
        axes.plot(
            sizes,
            values,
            style,
            color=NOISE_SCALES["simple"][0],
            linewidth=1.2,
            label=label + error,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    if len(here):
        axes.set_ylim(here["learning_rate"].min() / 3, 4 * here["learning_rate"].max())
    _finish(axes, "batch size B (examples)", r"learning rate $\varepsilon$")


def branch_figure(table: pd.DataFrame, summary: dict[str, Any], *, title: str) -> Figure:
    """The branches' losses against the batch size, from branches.csv and branch.json."""
    figure = Figure(figsize=(5, 3.8), layout="constrained")
    plot_branches(figure.subplots(), table, summary)
    figure.suptitle(title, fontsize=10)
    return figure


def plot_branches(axes: Axes, table: pd.DataFrame, summary: dict[str, Any]) -> None:
    """Each branch's loss, their means ± 2 standard errors, the tolerance and the critical batch size."""
    means = branch_means(table)
    kept = table[table["diverged"] == 0]
    axes.plot(kept["batch_size"], kept["loss"], ".", color="grey", markersize=3, label="seeds")
    known = means[means["loss"].notna()]
    style: Any = {"fmt": "o-", "color": NOISE_SCALES["simple"][0], "markersize": 4, "capsize": 2}
    errors = 2 * known["loss_stderr"].fillna(0.0)
    axes.errorbar(
        known["batch_size"], known["loss"], yerr=errors, label="mean, ± 2 stderr", **style
    )
    least = known["loss"].cummin()
    words = "least so far + tolerance"
    axes.plot(
        known["batch_size"],
        least + summary["tolerance"],
        "--",
        color=CRITICAL,
        linewidth=1,
        label=words,
    )
    diverged = sorted(set(table["batch_size"]) - set(known["batch_size"]))
    if diverged:
        top = float(known["loss"].max()) if len(known) else 1.0
        axes.plot(diverged, [top] * len(diverged), "x", color="#D55E00", label="diverged")
    found = summary["critical_batch_size"]
    if found["value"] is not None:
        axes.axvline(found["value"], color=OVERHEAD, label=f"critical: {found['value']:.3g}")
        if found["low"] is not None and found["high"] is not None:
            axes.axvspan(found["low"], found["high"], color=OVERHEAD, alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _finish(axes, "batch size (examples)", "loss after equal examples")


def _draw_sizes(
    axes: Axes, fits: pd.DataFrame, name: str, colour: str, marker: str, label: str
) -> None:
    known = fits[fits[name] > 0]
    ends = [known[name] - known[f"{name}_low"], known[f"{name}_high"] - known[name]]
    style: Any = {"color": colour, "markersize": 5, "capsize": 3, "zorder": 4}
    axes.errorbar(known["goal"], known[name], yerr=np.array(ends), fmt=marker, label=label, **style)
    bounded = fits[~(fits[name] > 0) & (fits[f"{name}_low"] > 0)]
    axes.plot(bounded["goal"], bounded[f"{name}_low"], "^", color=colour, fillstyle="none")


def _markers(count: int) -> list[str]:
    return [MARKERS[index % len(MARKERS)] for index in range(count)]


def _goal_label(goal: float) -> str:
    return "the goal" if math.isnan(goal) else f"loss {goal:g}"


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6.5, frameon=False)
