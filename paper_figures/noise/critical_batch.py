"""The critical batch size: fronts, how well one curve fits them, what predicts it, branches."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.noise import SCALES, Scale
from noisescale.plots.style import BLACK, GREEN, error_bars
from paper_figures.style import STYLE

CAPTION = (
    "MNIST, 784–256–256–10, ReLU, SGD with a constant rate, training loss of 2,000 images: {sizes} "
    "batch sizes from {smallest} to {largest:,}, {seeds} seeds, each size at the learning rate "
    "with the fewest steps; points are means of log S over seeds. Bars: 95 % intervals. "
    "Predictions from {noise_seeds} runs at B = {noise_size}, averaged by progress, or "
    "over the steps (crosses). Quadratic: curvatures 1/k, k = 1 to 100. Branches: from runs at "
    "B = 16, sizes from {branch_size} on, within {tolerance:.0%} of the loss at the smallest; "
    "triangles: bounds."
)
MARKERS = "osv^DP"  # one a goal
CRITICAL = r"$B_{\mathrm{crit}}$"
TICKS = [digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5)]
TOLERANCE = 0.05  # of the branches, a share of the loss at the smallest batch size
QUANTITIES: tuple[Scale, ...] = ("simple", "full")
SIDE_BY_SIDE = 1.03  # factor in the loss between two series at one loss


def figure(data: Path) -> Figure:
    """Fronts, their collapse and residuals; B_crit and what predicts it; rates and branches."""
    folder = data / "critical_batch"
    names = ("fastest", "fits", "learning_rates", "laws", "predicted", "branches", "branch_losses")
    tables = {name: pd.read_csv(folder / f"{name}.csv", comment="#") for name in names}
    branches, losses = tables.pop("branches"), tables.pop("branch_losses")
    mnist = {name: _of(table, "mnist") for name, table in tables.items()}
    quadratic = {name: _of(table, "quadratic") for name, table in tables.items()}
    points = _means(mnist["fastest"], mnist["fits"])
    with plt.rc_context({**STYLE, "font.size": 7, "axes.titlesize": 7.5, "legend.fontsize": 7}):
        drawn = Figure(figsize=(5.5, 8), layout="constrained")
        axes = drawn.subplots(4, 2)
        panels = {
            "Steps and examples to each loss": lambda one: _fronts(one, points, mnist["fits"]),
            "One curve for all losses?": lambda one: _collapsed(one, points),
            "Steps over the curve": lambda one: _residuals(one, points),
            "Measured, beside the published row": lambda one: _measured(one, mnist["fits"], data),
            "Measured over predicted": lambda one: _ratios(one, mnist["predicted"]),
            "The same on a noisy quadratic": lambda one: _ratios(one, quadratic["predicted"]),
            "Best learning rate": lambda one: _rates(one, mnist["learning_rates"], mnist["laws"]),
            "Branches from checkpoints": lambda one: _branches(one, branches, mnist["fits"]),
        }
        for one, (title, draw) in zip(axes.flat, panels.items(), strict=True):
            draw(one)
            one.set_title(title, loc="left", fontweight="bold")
        front, predicted = mnist["fastest"], mnist["predicted"]
        caption = CAPTION.format(
            sizes=front["batch_size"].nunique(),
            smallest=front["batch_size"].min(),
            largest=front["batch_size"].max(),
            seeds=front["seed"].nunique(),
            noise_seeds=predicted["num_seeds"].max(),
            noise_size=predicted["batch_size"].iloc[0],
            branch_size=losses["batch_size"].min(),
            tolerance=TOLERANCE,
        )
        drawn.supxlabel(fill(caption, 98), fontsize=7)
    return drawn


def _means(fastest: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """A row per goal and batch size: the seeds' mean steps, in units of the fit, and its style."""
    rows = fastest[fastest["censored"] == 0].assign(log_steps=lambda table: np.log(table["steps"]))
    means = rows.groupby(["goal", "batch_size"])["log_steps"].mean().reset_index()
    means = means.merge(fits[["goal", "min_steps", "min_examples", "critical_batch_size"]])
    means["steps"] = np.exp(means["log_steps"])
    means["curve"] = means["min_steps"] + means["min_examples"] / means["batch_size"]
    return means.sort_values(["goal", "batch_size"], ascending=[False, True])


def _styles(goals: pd.Series[float]) -> dict[float, dict[str, Any]]:
    """Colour and marker of each goal, from the highest loss on."""
    ordered = sorted(set(goals), reverse=True)
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(ordered)))
    return {
        goal: {"color": shade, "marker": marker, "markersize": 3, "linestyle": "none"}
        for goal, shade, marker in zip(ordered, shades, MARKERS * 2, strict=False)
    }


def _fronts(axes: Axes, points: pd.DataFrame, fits: pd.DataFrame) -> None:
    for goal, style in _styles(points["goal"]).items():
        rows = points[points["goal"] == goal]
        axes.plot(rows["steps"], rows["batch_size"] * rows["steps"], **style)
        sizes = np.geomspace(rows["batch_size"].min() / 2, 2 * rows["batch_size"].max(), 100)
        fit = fits[fits["goal"] == goal].iloc[0]
        steps = fit["min_steps"] + fit["min_examples"] / sizes
        axes.plot(steps, sizes * steps, color=style["color"], linewidth=0.8)
    _log_axes(axes, "steps S (updates)", "examples E = B·S")


def _collapsed(axes: Axes, points: pd.DataFrame) -> None:
    """S/S_min against B/B_crit: one curve, if the hyperbola holds."""
    for goal, style in _styles(points["goal"]).items():
        rows = points[points["goal"] == goal]
        x, y = rows["batch_size"] / rows["critical_batch_size"], rows["steps"] / rows["min_steps"]
        axes.plot(x, y, label=f"{goal:g}", **style)
    ratios = points["batch_size"] / points["critical_batch_size"]
    grid = np.geomspace(ratios.min(), ratios.max(), 100)
    axes.plot(grid, 1 + 1 / grid, color=BLACK, linewidth=0.8, label=r"$1 + B_{\mathrm{crit}}/B$")
    _log_axes(axes, r"$B/B_{\mathrm{crit}}$", r"$S/S_{\min}$")
    axes.legend(title="loss", handletextpad=0.2, ncols=2, loc="upper right")


def _residuals(axes: Axes, points: pd.DataFrame) -> None:
    for goal, style in _styles(points["goal"]).items():
        rows = points[points["goal"] == goal]
        x = rows["batch_size"] / rows["critical_batch_size"]
        axes.plot(x, rows["steps"] / rows["curve"], **style | {"linestyle": "-", "linewidth": 0.5})
    axes.axhline(1, color=BLACK, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel(r"$B/B_{\mathrm{crit}}$")
    axes.set_ylabel("measured/fitted S")


def _measured(axes: Axes, fits: pd.DataFrame, data: Path) -> None:
    """B_crit, and the two numbers published for MNIST, of losses that are not known, as a band."""
    published = pd.read_csv(data / "published.csv", comment="#")
    rows = published[published["figure"] == "critical_batch"].set_index("quantity")["value"]
    ends = rows["critical_start"], rows["critical_average"]
    label = f"published: {ends[0]:g} at the\nstart, {ends[1]:g} on average"
    axes.axhspan(*ends, color="grey", alpha=0.2, linewidth=0, label=label)
    _bars(axes, fits, "critical_batch_size", marker="o", colour=BLACK, label=CRITICAL)
    _loss_axis(axes, fits["goal"], f"{CRITICAL} (examples)")
    axes.set_ylim(top=4 * axes.get_ylim()[1])  # room for the legend above band and points
    axes.legend(loc="upper left")


def _ratios(axes: Axes, predicted: pd.DataFrame) -> None:
    """B_crit over each noise scale, averaged in two ways; 1 where it predicts it."""
    shift = SIDE_BY_SIDE**-1.5
    for quantity in QUANTITIES:
        label, colour = SCALES[quantity]
        rows = predicted[predicted["quantity"] == quantity]
        for name, marker in (("ratio_by_progress", "o"), ("ratio", "x")):
            named = f"{CRITICAL}/{label}" if name == "ratio_by_progress" else "_"
            _bars(axes, rows, name, marker=marker, colour=colour, label=named, shift=shift)
            shift *= SIDE_BY_SIDE
    axes.axhline(1, color=BLACK, linewidth=0.8)
    _loss_axis(axes, predicted["goal"], "ratio")
    axes.plot([], [], "x", color=BLACK, markersize=3, label="over steps")
    axes.set_ylim(top=6 * axes.get_ylim()[1])  # room for the legend above the bars
    axes.legend(loc="upper left", ncols=2, columnspacing=0.8, handletextpad=0.2)


def _rates(axes: Axes, rates: pd.DataFrame, laws: pd.DataFrame) -> None:
    """Of the highest and the lowest loss, with ε_max/(1 + B_c/B)."""
    styles = _styles(rates["goal"])
    for goal in (rates["goal"].max(), rates["goal"].min()):
        points = rates[(rates["goal"] == goal) & rates["learning_rate"].notna()]
        sizes, colour = points["batch_size"], styles[goal]["color"]
        bars = error_bars(
            points["learning_rate"], points["learning_rate_low"], points["learning_rate_high"]
        )
        look: Any = {"fmt": styles[goal]["marker"], "markersize": 3, "linewidth": 0.7}
        axes.errorbar(
            sizes, points["learning_rate"], yerr=bars, color=colour, label=f"loss {goal:g}", **look
        )
        law = laws[(laws["goal"] == goal) & (laws["law"] == "noise")]
        if len(law):
            grid = np.geomspace(sizes.min(), sizes.max(), 100)
            curve = law["scale"].iloc[0] / (1 + law["bend"].iloc[0] / grid)
            axes.plot(grid, curve, color=colour, linewidth=0.8)
    axes.plot([], [], color="grey", linewidth=0.8, label=r"$\varepsilon_{\max}/(1+B_c/B)$")
    _log_axes(axes, "batch size B (examples)", r"learning rate $\varepsilon$")
    axes.legend(loc="lower right")


def _branches(axes: Axes, branches: pd.DataFrame, fits: pd.DataFrame) -> None:
    """The branches' critical size at each checkpoint, beside B_crit up to there."""
    drawn = branches[branches["tolerance"] == TOLERANCE]
    shift = 1 + 0.02 * (drawn["seed"] - drawn["seed"].mean())
    rows = drawn.assign(goal=drawn["start_loss"] * shift)
    _bars(axes, rows, "branch", marker="D", colour=GREEN, label="branches")
    axes.plot(fits["goal"], fits["critical_batch_size"], "k.-", label=f"{CRITICAL} up to there")
    _loss_axis(axes, fits["goal"], "batch size (examples)", x="loss at the checkpoint")
    axes.legend(loc="upper left")


def _bars(
    axes: Axes,
    table: pd.DataFrame,
    name: str,
    *,
    marker: str,
    colour: str,
    label: str,
    shift: float = 1.0,
) -> None:
    """A quantity of each loss with its interval; a triangle points where a bound alone is open."""
    rows = table[table[name] > 0]
    bars = error_bars(rows[name], rows[f"{name}_low"], rows[f"{name}_high"])
    look: Any = {"fmt": marker, "markersize": 3, "capsize": 2, "linewidth": 0.8}
    axes.errorbar(shift * rows["goal"], rows[name], yerr=bars, color=colour, label=label, **look)
    unknown = table[~(table[name] > 0)]
    below, above = unknown[f"{name}_low"], unknown[f"{name}_high"]
    mark: Any = {"color": colour, "fillstyle": "none", "linestyle": "none", "markersize": 4}
    axes.plot(shift * unknown["goal"], below.where(below > 0), marker="^", **mark)
    axes.plot(shift * unknown["goal"], above.where(~(below > 0)), marker="v", **mark)


def _loss_axis(axes: Axes, goals: pd.Series[float], y: str, *, x: str = "training loss") -> None:
    """Losses from the highest to the lowest, each named."""
    _log_axes(axes, x, y)
    axes.invert_xaxis()
    axes.set_xticks(sorted(set(goals)), [f"{goal:g}" for goal in sorted(set(goals))])
    low, high = axes.get_ylim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def _log_axes(axes: Axes, x: str, y: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _of(table: pd.DataFrame, problem: str) -> pd.DataFrame:
    return table[table["problem"] == problem]
