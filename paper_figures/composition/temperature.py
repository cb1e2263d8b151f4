"""B_simple against B/ε at equal loss, and its exponents."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, SERIES, VERMILION, plain_log_axis
from paper_figures.composition.equal_loss import draw_estimates, draw_geometric, loss_axis
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

GOAL = 0.25  # the loss drawn, or the nearest
EXPONENTS = {"B/ε": (BLUE, "o"), "B": (VERMILION, "s"), "1/ε": (GREEN, "^")}
CAPTION = (
    "MNIST, 784–256–256–10, SGD at 16 pairs of B and ε. Left: $B_{{\\mathrm{{simple}}}}$ at a "
    "training loss of {goal:g}, geometric means over five seeds, bars ± a standard error; dotted: "
    "∝ B/ε. Right: exponents, of B/ε alone and of B and 1/ε fitted together, means over seeds with "
    "95 % intervals; dotted: the law of McCandlish et al. 2018, appendix C."
)


def figure(data: Path) -> Figure:
    """The noise scales of all pairs, and the exponents."""
    pairs, exponents = (
        read_table(data / "temperature" / f"{name}.csv") for name in ("pairs", "exponents")
    )
    goal = min(pairs["goal"].unique(), key=lambda each: abs(each - GOAL))
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.3), layout="constrained")
        left, right = drawn.subplots(1, 2)
        _draw_pairs(left, pairs[pairs["goal"] == goal].astype({"batch_size": int}))
        _draw_exponents(right, exponents)
        drawn.supxlabel(fill(CAPTION.format(goal=goal), 104), fontsize=7)
    return drawn


def _draw_pairs(axes: Axes, pairs: pd.DataFrame) -> None:
    for size, colour in zip(sorted(pairs["batch_size"].unique()), SERIES, strict=False):
        draw_geometric(
            axes,
            pairs[pairs["batch_size"] == size],
            "size_over_rate",
            "simple",
            color=colour,
            fmt="o-",
            linewidth=1,
            label=f"B = {size}",
        )
    middle = pairs.dropna(subset="simple")
    ends = middle["size_over_rate"].agg(["min", "max"]).to_numpy()
    level = (middle["simple"] / middle["size_over_rate"]).median()
    axes.plot(ends, level * ends, ":", color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    plain_log_axis(axes.xaxis)
    plain_log_axis(axes.yaxis)
    axes.set_xlabel("B/ε (examples)")
    axes.set_ylabel(r"$B_{\mathrm{simple}}$ (examples)")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=2)


def _draw_exponents(axes: Axes, exponents: pd.DataFrame) -> None:
    for place, (name, (colour, marker)) in enumerate(EXPONENTS.items()):
        rows = exponents[exponents["exponent"] == name].sort_values("goal")
        shifted = rows["goal"] * 1.05 ** (place - 1)
        draw_estimates(axes, rows, shifted, "value", color=colour, fmt=marker, label=f"of {name}")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(1, color="black", linewidth=0.8, linestyle=":")
    loss_axis(axes, exponents["goal"])
    axes.set_ylabel(r"exponent of $B_{\mathrm{simple}}$")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.1, 1.0), ncols=3, columnspacing=0.8)
