"""Who carries the gradient noise along training: parts, examples, seeds, components, deletion."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, plain_log_axis
from paper_figures.composition.equal_loss import draw_estimates, draw_geometric, loss_axis
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

PARTS = {
    "simple": (BLUE, r"$B_{\mathrm{simple}}$ (examples)"),
    "gradient_variance": (VERMILION, r"tr $\Sigma$"),
    "squared_gradient_norm": (GREEN, r"$|G|^2$"),
}
SHARES = {
    "top_share": (BLUE, "noisiest 1 %"),
    "wrong_variance": (VERMILION, "misclassified"),
    "between_classes": (GREEN, "between classes"),
    "importance": (PURPLE, "left by importance\nsampling (forecast)"),
}
OVERLAPS = {"seeds": (BLUE, "two seeds"), "losses": (ORANGE, "with the last, one seed")}
DELETED = {"without_noisiest": (VERMILION, "noisiest 1 %"), "without_random": (BLUE, "random 1 %")}
CHANCE = 0.01  # of the noisiest 1 % in common
CAPTION = (
    "MNIST, 784–256–256–10, SGD, B = 64, ε = .1; all of 20,032 images, five seeds (four at .02), "
    "95 % intervals over them (b, e, f: geometric means ± a standard error; a: means). Dotted: "
    "equal shares (a), chance (d). e: each line a group of principal components of the pixels, "
    "over its value at initialisation. f: at the same parameters, over $B_{\\mathrm{simple}}$ of "
    "all images."
)


def figure(data: Path) -> Figure:
    """Six panels."""
    points, means, curves, components, overlaps = (
        read_table(data / "anatomy" / f"{name}.csv")
        for name in ("points", "means", "curves", "components", "overlaps")
    )
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 7.6), layout="constrained")
        grid = drawn.subplots(3, 2)
        _draw_curves(grid[0, 0], curves)
        _draw_parts(grid[0, 1], points[np.isfinite(points["goal"])])
        _draw_shares(grid[1, 0], means[np.isfinite(means["goal"])])
        _draw_overlaps(grid[1, 1], overlaps[np.isfinite(overlaps["goal"])])
        _draw_components(grid[2, 0], components)
        _draw_deletion(grid[2, 1], points[np.isfinite(points["goal"])])
        goals = [goal for goal in points["goal"].unique() if np.isfinite(goal)]
        for axes in grid.flat[1:]:
            loss_axis(axes, goals)
            plain_log_axis(axes.yaxis)
            axes.tick_params(axis="x", labelrotation=45)
        for axes, letter in zip(grid.flat, "abcdef", strict=True):
            axes.text(-0.24, 1.05, letter, transform=axes.transAxes, fontweight="bold", fontsize=9)
            columns = 2 if len(axes.get_legend_handles_labels()[1]) > 2 else 1
            axes.legend(
                loc="lower left",
                bbox_to_anchor=(-0.12, 1.0),
                ncols=columns,
                columnspacing=0.8,
                handlelength=1.2,
            )
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _draw_curves(axes: Axes, curves: pd.DataFrame) -> None:
    """Lorenz curves, of every other loss."""
    goals = sorted(curves["goal"].unique(), reverse=True)[::-2][::-1]
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(goals)))
    for goal, colour in zip(goals, colours, strict=True):
        rows = curves[curves["goal"] == goal].sort_values("examples")
        label = f"loss {goal:g}" if np.isfinite(goal) else "start"
        axes.plot(rows["examples"], rows["variance"], color=colour, linewidth=1, label=label)
    ends = np.array([curves["examples"].min(), 1.0])
    axes.plot(ends, ends, ":", color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_log_axis(axes.xaxis)
    plain_log_axis(axes.yaxis)
    axes.set_xlabel("share of the examples, noisiest first")
    axes.set_ylabel(r"share of tr $\Sigma$")


def _draw_parts(axes: Axes, points: pd.DataFrame) -> None:
    for name, (colour, label) in PARTS.items():
        draw_geometric(axes, points, "goal", name, color=colour, fmt="o-", linewidth=1, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("value")


def _draw_shares(axes: Axes, means: pd.DataFrame) -> None:
    for name, (colour, label) in SHARES.items():
        rows = means[means["quantity"] == name].sort_values("goal")
        draw_estimates(
            axes, rows, rows["goal"], "value", color=colour, fmt="o-", linewidth=1, label=label
        )
    axes.set_ylim(0, 1.02)
    axes.set_ylabel(r"share of tr $\Sigma$")


def _draw_overlaps(axes: Axes, overlaps: pd.DataFrame) -> None:
    for kind, (colour, label) in OVERLAPS.items():
        rows = overlaps[overlaps["between"] == kind].sort_values("goal")
        draw_estimates(
            axes, rows, rows["goal"], "overlap", color=colour, fmt="o-", linewidth=1, label=label
        )
    axes.axhline(CHANCE, color="black", linestyle=":", linewidth=0.8)
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("noisiest 1 % in common")


def _draw_components(axes: Axes, components: pd.DataFrame) -> None:
    """Every other group's B_simple over that at initialisation."""
    start = components[~np.isfinite(components["goal"])].set_index(["seed", "first"])["simple"]
    index = pd.MultiIndex.from_frame(components[["seed", "first"]])
    relative = components.assign(growth=components["simple"] / start.reindex(index).to_numpy())
    relative = relative[np.isfinite(relative["goal"])]
    firsts = sorted(relative["first"].unique())[::2]
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(firsts)))
    for first, colour in zip(firsts, colours, strict=True):
        rows = relative[relative["first"] == first]
        last = rows["last"].iloc[0]
        label = str(first) if first == last else f"{first}–{last}"
        draw_geometric(
            axes, rows, "goal", "growth", color=colour, fmt="o-", linewidth=1, label=label
        )
    axes.set_yscale("log")
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ over the start's")


def _draw_deletion(axes: Axes, points: pd.DataFrame) -> None:
    for name, (colour, label) in DELETED.items():
        relative = points.assign(left=points[name] / points["simple"])
        draw_geometric(
            axes,
            relative,
            "goal",
            "left",
            color=colour,
            fmt="o-",
            linewidth=1,
            label=f"without the {label}" if name == "without_noisiest" else f"without a {label}",
        )
    axes.set_yscale("log")
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ of the rest")
