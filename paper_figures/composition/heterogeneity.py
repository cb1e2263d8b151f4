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
    "initialisation; lines: $(B_{\\mathrm{simple}}(0) + 1)/(1 - q)^2 - 1$ with q = p·C/(C − 1) for "
    "C classes. Right: ten classes, over the same seed's $B_{\\mathrm{simple}}$ with right labels, "
    "later in training and at an equal validation loss of 1.2; line: the law of the left panel."
)


def figure(data: Path) -> Figure:
    """Initialisation, and what becomes of it."""
    law, ratios = (read_table(data / "heterogeneity" / f"{name}.csv") for name in ("law", "ratios"))
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.4), layout="constrained")
        left, right = drawn.subplots(1, 2)
        _draw_law(left, law)
        chosen = (ratios["over"] == "right labels") & (ratios["quantity"] == "simple")
        _draw_ratios(right, ratios[chosen & (ratios["classes"] == 10)])
        for axes in (left, right):
            axes.set_yscale("log")
            plain_log_axis(axes.yaxis)
            axes.set_xlabel("share p of wrong labels")
            axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2, columnspacing=0.8)
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
    axes.set_ylabel("over that of right labels")
