"""Steps and examples to a training loss, and what both cost: batch sizes fixed and adaptive."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from noisescale.plots.style import BLUE, VERMILION, error_bars
from paper_figures.style import STYLE, read_table

RULES = {
    "noise": ("rate follows the noise", BLUE, "s", 0.94),
    "none": ("constant rate", VERMILION, "^", 1.06),
}  # label, colour, marker, and the factor in r by which it stands beside the other
CAPTION = (
    "MNIST, unit pixels, 784–256–256–10, SGD, each point at the best of three learning rates; "
    "geometric means of {seeds} seeds, 95 % intervals. Above: numbers are fixed batch sizes, every "
    "other one; adaptive ones, B = √(r·B_simple), have r = {rates} from top to bottom; below and "
    "left is better. Below: what a run costs, E + r·S, r the examples that a step is worth, over "
    "the best fixed batch size for that r. All {count} comparisons together: {saved:.1f} % saved "
    "({low:.1f} to {high:.1f}), p = {p:.2g}; by itself, and corrected for their number (Holm), the "
    "clearest has p = {holm:.2g}."
)


def figure(data: Path) -> Figure:
    """For each goal the fronts and, beneath, the costs over those of the best fixed batch size."""
    front, comparison, pooled = (
        read_table(data / "adaptive_batch" / f"{name}.csv")
        for name in ("front", "comparison", "pooled")
    )
    goals = sorted(front["goal"].unique(), reverse=True)
    with plt.rc_context({**STYLE, "font.size": 7, "axes.titlesize": 7.5, "legend.fontsize": 7}):
        drawn = Figure(figsize=(5.5, 4.6), layout="constrained")
        panels = drawn.subplots(2, len(goals), squeeze=False)
        for (above, below), goal in zip(panels.T, goals, strict=True):
            _front(above, front[front["goal"] == goal])
            above.set_title(f"to training loss {goal:g}", loc="left", fontweight="bold")
            _costs(below, comparison[comparison["goal"] == goal])
        for lower in panels[1, 1:]:
            lower.sharey(panels[1, 0])
        panels[0, 0].set_ylabel("steps S")
        panels[1, 0].set_ylabel("E + r·S over the best fixed")
        drawn.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        drawn.supxlabel(fill(_caption(front, comparison, pooled), 100), fontsize=7)
    return drawn


def _caption(front: pd.DataFrame, comparison: pd.DataFrame, pooled: pd.DataFrame) -> str:
    adaptive = front[front["batch_size"] == "adaptive"]
    together = pooled.set_index("rule").loc["all"]
    percent = {
        name: 100 * together[column]
        for name, column in (
            ("saved", "cost_saved"),
            ("low", "cost_saved_low"),
            ("high", "cost_saved_high"),
        )
    }
    return CAPTION.format(
        seeds=front["num_seeds"].max(),
        rates=", ".join(f"{rate:,.0f}" for rate in sorted(adaptive["exchange_rate"].unique())),
        count=len(comparison),
        p=together["cost_p"],
        holm=comparison["cost_p_holm"].min(),
        **percent,
    ).replace("-", "−")


def _front(axes: Axes, rows: pd.DataFrame) -> None:
    """Steps against examples: the fixed batch sizes, joined and named, and each rule's points."""
    fixed = rows[rows["batch_size"] != "adaptive"]
    fixed = fixed.assign(size=fixed["batch_size"].astype(int)).sort_values("size")
    _points(axes, fixed, label="fixed", color="black", fmt="o-")
    for _, row in fixed.iloc[::2].iterrows():  # all would lie on each other
        axes.annotate(
            f"{row['size']:,}",
            (row["examples"], row["steps"]),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=7,
        )
    for rule, (label, colour, marker, _) in RULES.items():
        of_rule = rows[(rows["batch_size"] == "adaptive") & (rows["lr_scaling"] == rule)]
        if len(of_rule):
            of_rule = of_rule.sort_values("exchange_rate")
            _points(axes, of_rule, label=f"adaptive, {label}", color=colour, fmt=f"{marker}--")
    for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        scale("log")
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda examples, _: f"{examples / 1000:g}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.margins(x=0.15)
    axes.set_xlabel("examples E (thousands)")


def _points(axes: Axes, rows: pd.DataFrame, *, label: str, color: str, fmt: str) -> None:
    bars = {
        name: error_bars(rows[name], rows[f"{name}_low"], rows[f"{name}_high"])
        for name in ("examples", "steps")
    }
    axes.errorbar(
        rows["examples"],
        rows["steps"],
        xerr=bars["examples"],
        yerr=bars["steps"],
        fmt=fmt,
        color=color,
        label=label,
        markersize=3,
        linewidth=0.8,
        elinewidth=0.5,
    )


def _costs(axes: Axes, rows: pd.DataFrame) -> None:
    """The cost over the best fixed batch size's against r, 1 where nothing is gained."""
    axes.axhline(1, color="black", linewidth=0.8)
    for rule, (_, colour, marker, beside) in RULES.items():
        of_rule = rows[rows["lr_scaling"] == rule].sort_values("exchange_rate")
        ratio, low, high = (
            1 - of_rule[name] for name in ("cost_saved", "cost_saved_high", "cost_saved_low")
        )
        axes.errorbar(
            beside * of_rule["exchange_rate"],
            ratio,
            yerr=error_bars(ratio, low, high),
            fmt=marker,
            color=colour,
            markersize=3,
            elinewidth=0.7,
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted(rows["exchange_rate"].unique()))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("r (examples a step)")
