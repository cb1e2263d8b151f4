"""Large batch over small: curvature and test error at three stops, and the line between minima."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from noisescale.plots.style import BLUE, GREEN, ORANGE, error_bars
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

STOPS = {
    "epochs": (BLUE, "equal epochs"),
    "updates": (ORANGE, "equal updates"),
    "loss": (GREEN, "equal loss"),
}
CASES = {
    "sgd": "SGD, one rate",
    "sgd-tuned": "SGD, tuned",
    "adam": "Adam",
    "mse-sgd": "sq. error, SGD",
    "mse-sgd-tuned": "sq. error, tuned",
    "mse-adam": "sq. error, Adam",
}
QUANTITIES = {
    "sharpness": "$\\lambda_{\\max}$, large/small",
    "phi_0.001_50": "φ(1e-3), large/small",
    "test_accuracy": "accuracy, large − small",
}
ON_LINE = ("sgd", "adam")
CAPTION = (
    "MNIST, a random 8,000 images, 784–256–256–10; B = 1,000 against 64, after 20 epochs, after "
    "2,500 updates, at a training loss of .01 ± 10 %. Above: geometric means of ratios and means "
    "of differences over {seeds} seeds, 95 % intervals of Student's t; accuracy at equal epochs, "
    "far to the left, is in numbers. Below: loss on the line from the small batch's model (α = "
    "0) to the large one's (1) at equal updates, means over seeds; solid: training, dashed: "
    "test."
)
ACCURACY = 0.012  # drawn, either side of none


def figure(data: Path) -> Figure:
    """Three quantities by case and stop, and losses on the line."""
    comparisons = read_table(data / "sharp_minima" / "comparisons.csv")
    lines = read_table(data / "sharp_minima" / "lines.csv")
    there = set(comparisons["case"])
    cases = {case: label for case, label in CASES.items() if case in there}
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 5.2), layout="constrained")
        grid = drawn.add_gridspec(2, 6, height_ratios=(1.5, 1))
        above = [drawn.add_subplot(grid[0, 2 * place : 2 * place + 2]) for place in range(3)]
        for axes, (name, label) in zip(above, QUANTITIES.items(), strict=True):
            _draw_cases(axes, comparisons[comparisons["quantity"] == name], list(cases))
            axes.set_xlabel(label)
            is_ratio = name != "test_accuracy"
            axes.axvline(1 if is_ratio else 0, color="black", linewidth=0.8)
            if not is_ratio:
                _name_what_is_left_of(axes, comparisons[comparisons["quantity"] == name], cases)
            else:
                axes.set_xscale("log")
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_yticks(range(len(cases)), list(cases.values()) if axes is above[0] else [])
            axes.set_ylim(len(cases) - 0.5, -0.5)
        for place, case in enumerate(ON_LINE):
            axes = drawn.add_subplot(grid[1, 3 * place : 3 * place + 3])
            own = lines[(lines["case"] == case) & (lines["stop"] == "updates")]
            axes.plot(own["alpha"], own["train_loss"], color=ORANGE)
            axes.plot(own["alpha"], own["test_loss"], "--", color=ORANGE)
            axes.set_yscale("log")
            axes.set_title(CASES[case], loc="left", fontweight="bold")
            axes.set_xlabel("α")
            axes.set_ylabel("loss")
        drawn.legend(*above[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        seeds = " to ".join(map(str, sorted(set(comparisons["num_seeds"]))))
        drawn.supxlabel(fill(CAPTION.format(seeds=seeds), 104), fontsize=7)
    return drawn


def _name_what_is_left_of(axes: Axes, rows: pd.DataFrame, cases: dict[str, str]) -> None:
    """Limits the axis to small differences, and writes those beyond it at its left."""
    axes.set_xlim(-ACCURACY, ACCURACY)
    for shift, (stop, (colour, _)) in enumerate(STOPS.items()):
        for place, case in enumerate(cases):
            own = rows[(rows["stop"] == stop) & (rows["case"] == case)]
            if len(own) and own["value"].iloc[0] < -ACCURACY:
                text = f"← {own['value'].iloc[0]:.3f}".replace("-0.", "−.")
                where = (-0.97 * ACCURACY, place + 0.2 * (shift - 1))
                own_box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
                axes.annotate(text, where, color=colour, fontsize=7, va="center", bbox=own_box)


def _draw_cases(axes: Axes, rows: pd.DataFrame, cases: list[str]) -> None:
    places = {case: place for place, case in enumerate(cases)}
    for shift, (stop, (colour, label)) in enumerate(STOPS.items()):
        own = rows[(rows["stop"] == stop) & rows["case"].isin(cases)]
        value = own["value"]
        axes.errorbar(
            value,
            own["case"].map(places) + 0.2 * (shift - 1),
            xerr=error_bars(value, own["value_low"], own["value_high"]),
            color=colour,
            marker="o",
            markersize=3,
            linestyle="none",
            label=label,
        )
