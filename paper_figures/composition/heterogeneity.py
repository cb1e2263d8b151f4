"""B_simple under wrong labels and fewer classes: at initialisation beside its law, and later."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, SERIES, VERMILION, plain_log_axis
from paper_figures.composition.equal_loss import draw_estimates
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

CLASSES = {10: BLUE, 5: VERMILION, 2: GREEN}
CAPTION = (
    "MNIST, 784–256–256–10, SGD, B = 64, ε = .1, five seeds, 95 % intervals. Left: at "
    "initialisation; crosses: predicted by the gradients under right and under evenly drawn "
    "labels; lines: $(B_{\\mathrm{simple}}(0) + 1)/(1 - q)^2 - 1$ with q = p·C/(C − 1) for C "
    "classes, which has equal outputs. Middle: ten classes, over the same seed's "
    "$B_{\\mathrm{simple}}$ with right labels, later in training and at an equal validation loss "
    "of 1.2; line: the law of the left panel. Right: the critical batch size for test losses, "
    "over that of the same seed with right labels, three seeds."
)


def figure(data: Path) -> Figure:
    """Initialisation, what becomes of it, and the critical batch size."""
    law, ratios, fronts = (
        read_table(data / "heterogeneity" / f"{name}.csv") for name in ("law", "ratios", "fronts")
    )
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.4), layout="constrained")
        left, middle, right = drawn.subplots(1, 3)
        _draw_law(left, law)
        chosen = (ratios["over"] == "right labels") & (ratios["quantity"] == "simple")
        _draw_ratios(middle, ratios[chosen & (ratios["classes"] == 10)])
        _draw_fronts(right, fronts)
        for axes in (left, middle, right):
            axes.set_yscale("log")
            plain_log_axis(axes.yaxis)
            axes.set_xlabel("share p of wrong labels")
            axes.legend(loc="lower left", bbox_to_anchor=(-0.25, 1.0), handlelength=1.2)
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _draw_law(axes: Axes, law: pd.DataFrame) -> None:
    for classes, colour in CLASSES.items():
        rows = law[law["classes"] == classes].sort_values("label_noise")
        if rows.empty:
            continue
        draw_estimates(
            axes,
            rows,
            rows["label_noise"],
            "measured",
            color=colour,
            fmt="o",
            label=f"{classes} classes",
        )
        axes.plot(rows["label_noise"], rows["predicted"], "x", color="black", markersize=4)
        clean = rows.loc[rows["label_noise"] == 0, "measured"].iloc[0]
        shares = np.linspace(0, max(rows["label_noise"].max(), 0.01), 100)
        axes.plot(shares, (clean + 1) * _growth(shares, classes) - 1, color=colour, linewidth=1)
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ (examples)")


def _growth(share: np.ndarray, classes: int) -> np.ndarray:
    """What the law multiplies B_simple + 1 by."""
    return np.asarray((1 - share * classes / (classes - 1)) ** -2.0)


def _draw_ratios(axes: Axes, ratios: pd.DataFrame) -> None:
    order = ratios.groupby("point")["step"].mean().sort_values().index
    points = [*(point for point in order if point != "equal loss"), "equal loss"]
    for place, (point, colour) in enumerate(zip(points, SERIES, strict=False)):
        rows = ratios[ratios["point"] == point].sort_values("label_noise")
        shifted = rows["label_noise"] + 0.006 * (place - len(points) / 2)
        draw_estimates(axes, rows, shifted, "ratio", color=colour, fmt="o", label=point)
    shares = np.linspace(0, max(ratios["label_noise"].max(), 0.01), 100)
    axes.plot(shares, _growth(shares, 10), color="black", linewidth=0.8)
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ over that of right labels")


def _draw_fronts(axes: Axes, fronts: pd.DataFrame) -> None:
    goals = sorted(fronts["goal"].unique(), reverse=True)
    for place, (goal, colour) in enumerate(zip(goals, SERIES, strict=False)):
        rows = fronts[fronts["goal"] == goal].sort_values("label_noise").copy()
        for name in ("log_ratio", "log_ratio_low", "log_ratio_high"):
            rows[name] = np.exp(rows[name])
        shifted = rows["label_noise"] + 0.012 * (place - (len(goals) - 1) / 2)
        draw_estimates(
            axes, rows, shifted, "log_ratio", color=colour, fmt="o", label=f"test loss {goal:g}"
        )
    shares = np.linspace(0, max(fronts["label_noise"].max(), 0.01), 100)
    axes.plot(shares, _growth(shares, 10), color="black", linewidth=0.8)
    axes.set_ylabel(r"$B_{\mathrm{crit}}$ over that of right labels")
