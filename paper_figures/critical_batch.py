"""The critical batch size: fronts, prediction, learning rates and branches; and a quadratic."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.critical_batch import (
    plot_best_rates,
    plot_critical_sizes,
    plot_fronts,
)
from noisescale.plots.noise import SCALES
from noisescale.plots.style import GREEN, error_bars
from paper_figures.style import STYLE

CAPTION = (
    "MNIST, 784–256–256–10, ReLU, SGD with a constant rate, training loss of 2,000 images. "
    "Fronts: {sizes} batch sizes from {smallest} to {largest:,}, {seeds} seeds, at the learning"
    " rate with the fewest steps; one point a seed. Bars and bands: 95 % intervals; bands over "
    "{noise_seeds} runs at B = {noise_size}. Dotted: the published MNIST row of McCandlish et "
    "al. (2018), of a network that is not known here. Branches: from runs at B = 16, 6 orders "
    "of the examples; triangles: not resolved, a bound. Quadratic: curvatures 1/k, k = 1 to "
    "100."
)


def figure(data: Path) -> Figure:
    """Fronts and B_crit above; best rates, branches and the quadratic below."""
    folder = data / "critical_batch"
    tables = (
        pd.read_csv(folder / f"{name}.csv", comment="#")
        for name in ("fastest", "fits", "learning_rates", "laws", "predicted")
    )
    fastest, fits, rates, laws, predicted = tables
    mnist = {"problem": "mnist"}
    with plt.rc_context(STYLE):
        drawn = Figure(figsize=(9, 7.6), layout="constrained")
        parts: Any = drawn.subfigures(2, 1, height_ratios=(1.1, 1))
        above, below = parts
        fronts, sizes = above.subplots(1, 2)
        rate_axes, branches, quadratic = below.subplots(1, 3)
        plot_fronts(fronts, _of(fastest, **mnist), _of(fits, **mnist))
        plot_critical_sizes(sizes, _of(fits, **mnist), _of(predicted, **mnist))
        _draw_published(sizes, data)
        plot_best_rates(rate_axes, _of(rates, **mnist), _of(laws, **mnist))
        plot_branch_sizes(
            branches, pd.read_csv(folder / "branches.csv", comment="#"), _of(fits, **mnist)
        )
        plot_critical_sizes(
            quadratic, _of(fits, problem="quadratic"), _of(predicted, problem="quadratic")
        )
        titles = {
            fronts: "Steps and examples to each training loss",
            sizes: "Measured and predicted",
            rate_axes: "Best learning rate",
            branches: "Branches from checkpoints",
            quadratic: "A noisy quadratic",
        }
        for axes, title in titles.items():
            axes.set_title(title, loc="left", fontweight="bold")
        front = _of(fastest, **mnist)
        caption = CAPTION.format(
            sizes=front["batch_size"].nunique(),
            smallest=front["batch_size"].min(),
            largest=front["batch_size"].max(),
            seeds=front["seed"].nunique(),
            noise_seeds=_of(predicted, **mnist)["num_seeds"].max(),
            noise_size=_of(predicted, **mnist)["batch_size"].iloc[0],
        )
        drawn.supxlabel(fill(caption, 150), fontsize=7)
    return drawn


def plot_branch_sizes(axes: Axes, branches: pd.DataFrame, fits: pd.DataFrame) -> None:
    """The branches' critical size and the noise scale at each checkpoint, and B_crit up to there.

    branches: a row for each checkpoint. fits: a row for each goal.
    """
    shift = 1 + 0.02 * (branches["seed"] - branches["seed"].mean())  # side by side
    losses = branches["start_loss"] * shift

    def draw(name: str, marker: str, colour: str, label: str) -> None:
        resolved = branches[name] > 0
        rows = branches[resolved]
        bars = error_bars(rows[name], rows[f"{name}_low"], rows[f"{name}_high"])
        style: Any = {"fmt": marker, "color": colour, "markersize": 4, "capsize": 2, "label": label}
        axes.errorbar(losses[resolved], rows[name], yerr=bars, **style)

    for quantity, (label, colour) in SCALES.items():
        draw(quantity, "s", colour, f"{label} there")
    draw("branch", "D", GREEN, "branches")
    bounded = ~(branches["branch"] > 0)
    bounds = branches["branch_low"][bounded]
    axes.plot(losses[bounded], bounds, "^", color=GREEN, fillstyle="none")
    axes.plot(
        fits["goal"], fits["critical_batch_size"], "k.-", label=r"$B_{\mathrm{crit}}$ up to there"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.invert_xaxis()
    axes.set_xticks(fits["goal"].tolist(), [f"{goal:g}" for goal in fits["goal"]])
    axes.minorticks_off()
    axes.set_xlabel("loss at the checkpoint")
    axes.set_ylabel("batch size (examples)")
    axes.legend(fontsize=6.5)


def _draw_published(axes: Axes, data: Path) -> None:
    """B_crit at the start and on average, as lines."""
    published = pd.read_csv(data / "published.csv", comment="#")
    rows = published[published["figure"] == "critical_batch"]
    for quantity in ("critical_start", "critical_average"):
        value = float(rows[rows["quantity"] == quantity]["value"].iloc[0])
        axes.axhline(value, color="black", linestyle=":", linewidth=1)
        place: Any = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 6}
        axes.annotate(f"published\n{quantity.removeprefix('critical_')}", (1.01, value), **place)


def _of(table: pd.DataFrame, *, problem: str) -> pd.DataFrame:
    return table[table["problem"] == problem]
