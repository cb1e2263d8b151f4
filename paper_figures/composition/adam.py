"""The critical batch size of Adam beside plain and preconditioned noise scales."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, PURPLE, VERMILION, plain_log_axis
from paper_figures.composition.equal_loss import draw_estimates, draw_geometric, loss_axis
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

NOISE = {  # colour, marker, name
    "simple": (BLUE, "o", r"$B_{\mathrm{simple}}$"),
    "full": (GREEN, "^", r"$B_{\mathrm{noise}}$"),
    "preconditioned_simple": (VERMILION, "s", r"$B^P_{\mathrm{simple}}$"),
    "preconditioned_full": (PURPLE, "D", r"$B^P_{\mathrm{noise}}$"),
}
CAPTION = (
    "MNIST, 784–64–64–10, Adam. Left and middle: B_crit of each seed's runs at tuned rates, and "
    "the noise scales along a run near it, averaged by progress up to the loss; geometric means "
    "over three seeds, bars ± a standard error. Right: standard deviation over the losses of the "
    "log of B_crit over each noise scale, geometric means with 95 % intervals; filled, ε = 1e-8; "
    "open, the larger one."
)


def figure(data: Path) -> Figure:
    """B_crit and the noise scales for each ε, and how far their ratios spread."""
    ratios, results = (read_table(data / "adam" / f"{name}.csv") for name in ("ratios", "results"))
    fronts = sorted(ratios["front"].unique(), key=lambda name: float(name.removeprefix("epsilon")))
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.4), layout="constrained")
        panels = drawn.subplots(1, len(fronts) + 1)
        for axes, front in zip(panels, fronts, strict=False):
            _draw_scales(axes, ratios[ratios["front"] == front])
            axes.set_title(f"ε = {front.removeprefix('epsilon')}", fontsize=7)
        panels[0].set_ylabel("examples")
        _draw_spreads(panels[-1], results, fronts)
        handles, labels = panels[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper center", ncols=5, columnspacing=0.8)
        drawn.supxlabel(fill(CAPTION, 104), fontsize=7)
    return drawn


def _draw_scales(axes: Axes, ratios: pd.DataFrame) -> None:
    one = ratios[ratios["scale"] == "simple"].dropna(subset=["critical_batch_size"])
    style = {"fmt": "k*-", "linewidth": 1, "label": r"$B_{\mathrm{crit}}$"}
    draw_geometric(axes, one, "goal", "critical_batch_size", **style)
    for name, (colour, marker, label) in NOISE.items():
        rows = ratios[(ratios["scale"] == name) & (ratios["noise"] > 0)]
        style = {"color": colour, "fmt": f"{marker}-", "linewidth": 1, "label": label}
        draw_geometric(axes, rows, "goal", "noise", **style)
    axes.set_yscale("log")
    plain_log_axis(axes.yaxis)
    loss_axis(axes, ratios["goal"])


def _draw_spreads(axes: Axes, results: pd.DataFrame, fronts: list[str]) -> None:
    for shift, front in enumerate(fronts):
        for place, (name, (colour, marker, _)) in enumerate(NOISE.items()):
            chosen = (results["front"] == front) & (results["scale"] == name)
            rows = results[chosen & (results["quantity"] == "log_spread")].copy()
            for column in ("value", "value_low", "value_high"):
                rows[column] = np.exp(rows[column])
            filled = colour if shift == 0 else "white"
            where = [place + 0.25 * shift] * len(rows)
            draw_estimates(
                axes, rows, where, "value", color=colour, fmt=marker, markerfacecolor=filled
            )
    axes.set_xticks(range(len(NOISE)), [label for _, _, label in NOISE.values()], rotation=45)
    axes.set_yscale("log")
    plain_log_axis(axes.yaxis)
    axes.set_ylabel(r"spread of log $B_{\mathrm{crit}}$/$\mathcal{B}$")
