"""Pictures of a sweep: the map with predicted curves, the usable rates, accuracy along its cuts."""

from __future__ import annotations

import itertools
import math
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from noisescale.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    SMALL,
    TITLE_SIZE,
    VERMILION,
    YELLOW,
    axes_or_new,
    error_bars,
    finish,
    legend_below,
    power_axis,
    series_colours,
)

# colour and line of each prediction, and what it is a prediction of
CURVES: dict[str, tuple[str, str, str]] = {
    "upper": (BLUE, "-", "upper, mean square"),
    "gaussian": (SKY, "--", "Gaussian, mean square"),
    "lower": (ORANGE, "-.", "lower, mean square"),
    "lyapunov": (VERMILION, "-", "linearised SGD, almost surely"),
    "descent": (GREEN, "--", "descent in one step"),
    "wu": (PURPLE, ":", "Wu's rectangle"),
}
MEASURED = BLACK  # edges
# greys, so that the curves' colours are seen on it; from light to dark, and never black
SHADES = colors.LinearSegmentedColormap.from_list("shades", ["#FFFFFF", "#8C8C8C"])
UNSTABLE = "#F3C9B0"  # a light vermilion: no shade of grey
OF_A_SUBSET = "lower, β of a subset: no bound"  # its label where β is a lower estimate
HEADROOM = 8.0  # times the largest edge, up to which a map is shown: beyond it all runs diverge
LARGEST_LOSS = 1e3  # of the colours: losses beyond it would leave those that trained all one shade
USABLE = ("converged", "catapult")
QUANTITIES = {"test_accuracy": "test accuracy", "final_loss": "final training loss"}
THREE_CASES = ((1024, 1e-3), (32, 1e-3), (1, 1e-3))  # batch size and rate of the study
# Rates this close count as one in a cut: bisection tries rates anywhere, hardly ever the same one
# twice, and 15 % of a rate is little beside the factor of 2 between the batch sizes
MATCH = 1.15


def map_figure(
    cells: pd.DataFrame,
    boundary: pd.DataFrame,
    *,
    title: str,
    minimum: bool = False,
    cases: bool = False,
) -> Figure:
    """The map, the usable rates, and the accuracy at fixed rates and at fixed rate over batch size.

    A cut that has no value tried at three batch sizes is left out.

    Args:
        cells: rows of cells.csv.
        boundary: rows of boundary.csv.
        title: above all panels.
        minimum: whether the runs start from one: the map then shows their loss, and which left it.
        cases: whether to mark the three-case study.
    """
    if (cells["error"] != "").all():
        figure = Figure(figsize=(5, 2))
        figure.text(0.5, 0.5, f"{title}\nno cell has finished", ha="center", va="center")
        return figure
    figure = Figure(figsize=(12, 8), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.4, 1))
    left, right = parts
    quantity, unstable = ("final_loss", "left") if minimum else ("test_accuracy", "diverged")
    plot_map(left.subplots(), cells, boundary, quantity=quantity, unstable=unstable, cases=cases)
    cuts = [along for along in ("learning_rate", "rate_over_batch") if _cut(cells, along)]
    above, *others = np.ravel(right.subplots(1 + len(cuts), 1))
    plot_usable(above, cells, boundary)
    for axes, along in zip(others, cuts, strict=True):
        plot_cut(axes, cells, along=along)
    figure.suptitle(title, fontsize=TITLE_SIZE)
    return figure


def plot_map(
    axes: Axes,
    cells: pd.DataFrame,
    boundary: pd.DataFrame,
    *,
    quantity: str = "test_accuracy",
    unstable: str = "diverged",
    cases: bool = False,
    legend: bool = True,
) -> None:
    """The mean of `quantity` over seeds at every rate, the share that is unstable, and the edges.

    A rate's patch reaches half-way to the next one tried; a light red strip takes as much of its
    width as the share of its seeds that diverged, or left the minimum.

    Args:
        axes: drawn on.
        cells: rows of cells.csv.
        boundary: rows of boundary.csv.
        quantity: the column of `QUANTITIES` that the shade shows.
        unstable: what the red strip says the runs did.
        cases: whether to mark the three-case study.
        legend: whether to explain lines and strips below.
    """
    table = _seed_means(cells)
    sizes = _numeric_sizes(cells)
    columns = _edges(np.log2(list(sizes.values())))
    shades = ScalarMappable(_norm(table, quantity), SHADES)
    for column, name in enumerate(sizes):
        rows = table[table["batch_size"] == name].sort_values("learning_rate")
        _draw_column(axes, rows, quantity, shades, 2.0 ** columns[column : column + 2])
    _draw_edges(axes, boundary, sizes)
    rates = np.sort(table["learning_rate"].unique())
    if cases and rates[0] <= THREE_CASES[0][1] <= rates[-1]:
        sizes_of_cases, rates_of_cases = zip(*THREE_CASES, strict=True)
        style: Any = {"markersize": 12, "color": YELLOW, "markeredgecolor": "black", "zorder": 6}
        label = "the study's three cases"
        axes.plot(sizes_of_cases, rates_of_cases, "*", label=label, linestyle="none", **style)
    axes.set_yscale("log")
    power_axis(axes, sizes.values(), map(str, sizes))
    finish(axes, "batch size B (examples)", r"learning rate $\eta$")
    axes.grid(visible=False)
    axes.set_xlim(2.0 ** columns[0], 2.0 ** columns[-1])
    bottom, *_, top = 10.0 ** _edges(np.log10(rates))
    if np.isfinite(boundary["lr_max"]).any():
        top = min(top, HEADROOM * boundary["lr_max"].max())
    axes.set_ylim(bottom, top)
    axes.figure.colorbar(shades, ax=axes, label=QUANTITIES[quantity], pad=0.01)
    if (drawn := axes.get_legend()) is not None:
        drawn.remove()
    if legend:
        legend_below(axes, handles=map_handles(axes, unstable=unstable))


def draw_map(
    cells: pd.DataFrame, boundary: pd.DataFrame, *, minimum: bool = False, axes: Axes | None = None
) -> Axes:
    """The Axes, new ones for None, with the map alone, see `map_figure`."""
    axes = axes_or_new(axes, width=6.5, height=6)
    quantity, unstable = ("final_loss", "left") if minimum else ("test_accuracy", "diverged")
    plot_map(axes, cells, boundary, quantity=quantity, unstable=unstable)
    return axes


def map_handles(axes: Axes, *, unstable: str) -> list[Any]:
    """What a legend of `plot_map` has to explain: its lines and points, and the red strips."""
    handles, _ = axes.get_legend_handles_labels()
    words = "left the minimum" if unstable == "left" else unstable
    return [*handles, Patch(facecolor=UNSTABLE, edgecolor="white", label=f"share that {words}")]


def _norm(table: pd.DataFrame, quantity: str) -> Any:
    """Accuracy from 0 to 1; a loss on a logarithmic scale, as far as it is finite."""
    values = table[quantity].to_numpy()
    values = values[np.isfinite(values) & (values > 0)]
    if quantity == "test_accuracy" or not len(values):
        return colors.Normalize(0, 1)
    return colors.LogNorm(values.min(), min(values.max(), LARGEST_LOSS))


def _draw_column(
    axes: Axes, rows: pd.DataFrame, quantity: str, shades: ScalarMappable, sides: np.ndarray
) -> None:
    """The patches of one batch size's rates, between these sides."""
    bounds = 10.0 ** _edges(np.log10(rows["learning_rate"].to_numpy()))
    for row, low, high in zip(rows.to_dict("records"), bounds[:-1], bounds[1:], strict=True):
        shade: Any = shades.to_rgba(row[quantity]) if math.isfinite(row[quantity]) else UNSTABLE
        split = sides[0] + (sides[1] - sides[0]) * row["unstable"]
        look: Any = {"edgecolor": "white", "linewidth": 0.3}
        for left, right, colour in ((sides[0], split, UNSTABLE), (split, sides[1], shade)):
            if right > left:
                patch = Rectangle((left, low), right - left, high - low, facecolor=colour, **look)
                axes.add_patch(patch)


def _draw_edges(axes: Axes, boundary: pd.DataFrame, sizes: dict[Any, float]) -> None:
    """The predicted curves, and the measured edges with their intervals."""
    outline = [withStroke(linewidth=3, foreground="white")]
    boundary = boundary[boundary["batch_size"].isin(list(sizes))]
    numbers = boundary["batch_size"].map(sizes).to_numpy(dtype=float)
    for name, (colour, style, _) in CURVES.items():
        if name in boundary and np.isfinite(boundary[name]).any():
            look: Any = {"color": colour, "linewidth": 1.4, "path_effects": outline}
            axes.plot(numbers, boundary[name], style, label=curve_label(boundary, name), **look)
            if f"{name}_low" in boundary:
                low, high = boundary[f"{name}_low"], boundary[f"{name}_high"]
                # an interval that is open below would hide all of the map under it
                look = {"color": colour, "alpha": 0.3, "linewidth": 0}
                axes.fill_between(numbers, low.where(low > 0), high, **look)
    measured = np.isfinite(boundary["lr_max"])
    edges = boundary[measured]
    bars = error_bars(edges["lr_max"], edges["lr_max_low"], edges["lr_max_high"])
    points: Any = {"color": MEASURED, "markeredgecolor": "white", "capsize": 3, "zorder": 5}
    label = r"measured $\eta_{\max}$, 95 %"
    axes.errorbar(numbers[measured], edges["lr_max"], yerr=bars, fmt="o", label=label, **points)


def curve_label(boundary: pd.DataFrame, name: str) -> str:
    """What a predicted curve is called in a legend."""
    open_below = f"{name}_low" in boundary and (boundary[f"{name}_low"] == 0).any()
    return OF_A_SUBSET if name == "lower" and open_below else CURVES[name][2]


def plot_usable(
    axes: Axes, cells: pd.DataFrame, boundary: pd.DataFrame, *, legend: bool = True
) -> None:
    """The rates at which half of the seeds or more train, and where they diverge, against B.

    Paler: from the last rate that trains to the next one tried, somewhere between which it ends.

    Args:
        axes: drawn on.
        cells: rows of cells.csv.
        boundary: rows of boundary.csv.
        legend: whether to explain the marks, below the panel.
    """
    table = _seed_means(cells)
    sizes = _numeric_sizes(cells)
    for name, size in sizes.items():
        rows = table[table["batch_size"] == name]
        rates = np.sort(rows["learning_rate"])
        usable = rows[rows["usable"] >= 0.5]["learning_rate"]
        if len(usable):
            _draw_range(axes, size, usable.min(), usable.max(), rates)
        axes.plot([size] * len(rates), rates, ".", color="black", markersize=2, zorder=3)
    numbers = boundary["batch_size"].map(sizes).to_numpy(dtype=float)
    edges = boundary["lr_max"]
    label = r"measured $\eta_{\max}$"
    axes.plot(numbers, edges, "o", color=MEASURED, markersize=5, label=label)
    axes.plot([], [], ".", color="black", markersize=2, label="tried")
    axes.set_yscale("log")
    if np.isfinite(edges).any():  # beyond it there is little to see
        axes.set_ylim(top=HEADROOM * edges.max())
    _finish(axes, sizes, r"learning rate $\eta$", legend=legend)


def _draw_range(axes: Axes, size: float, low: float, high: float, rates: np.ndarray) -> None:
    """A bar over the rates that train, paler on to the next rates tried on either side."""
    left, right = size * 2**-0.4, size * 2**0.4
    ends = [*rates[rates < low][-1:], low, high, *rates[rates > high][:1]]
    for below, above in itertools.pairwise(ends):
        certain = (below, above) == (low, high)
        label = "trains" if certain else "between two rates tried"
        named = {patch.get_label() for patch in axes.patches}
        look: Any = {"color": GREEN, "alpha": 0.6 if certain else 0.25, "linewidth": 0}
        look["label"] = None if label in named else label
        axes.add_patch(Rectangle((left, below), right - left, above - below, **look))


def plot_cut(
    axes: Axes, cells: pd.DataFrame, *, along: str, most: int = 5, legend: bool = True
) -> None:
    """Test accuracy against B at the best values of η or η/B; seeds as points, means as lines.

    A line ends where the next batch size was not run at that value.

    Args:
        axes: drawn on.
        cells: rows of cells.csv.
        along: "learning_rate" for η, "rate_over_batch" for η/B.
        most: values drawn, at most.
        legend: whether to name the values, below the panel.
    """
    sizes = _numeric_sizes(cells)
    if not (groups := _cut(cells, along)):
        centre: Any = {"transform": axes.transAxes, "ha": "center", "va": "center", "fontsize": 7}
        axes.text(0.5, 0.5, "no value was tried at three batch sizes", **centre)
    best = sorted(groups, key=lambda group: group[1]["test_accuracy"].max())[-most:]
    shades = series_colours(most)
    name = r"$\eta/B$" if along == "rate_over_batch" else r"$\eta$"
    ascending = sorted(best, key=itemgetter(0))
    for shade, (value, rows), marker in zip(shades, ascending, "osv^D", strict=False):
        means = rows.groupby("size")["test_accuracy"].mean().reindex(list(sizes.values()))
        look: Any = {"color": shade, "markersize": 4, "linewidth": 1}
        axes.plot(means.index, means, f"{marker}-", label=f"{name} = {value:.2g}", **look)
        axes.plot(rows["size"], rows["test_accuracy"], ".", color=shade, markersize=2)
    _finish(axes, sizes, "test accuracy", legend=legend)


def _cut(cells: pd.DataFrame, along: str) -> list[tuple[float, pd.DataFrame]]:
    """The values of η or η/B tried at three batch sizes or more, each with its cells."""
    table = cells[cells["error"] == ""]
    table = table.assign(size=table["batch_size"].map(_numeric_sizes(cells)).astype(float))
    divisor = table["size"] if along == "rate_over_batch" else 1.0
    return _matching(table.assign(value=table["learning_rate"] / divisor))


def _matching(table: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """Values tried at three batch sizes or more, to within a few per cent, each with its cells."""
    matches = []
    logs = np.log(np.sort(table["value"].unique()))
    taken = -math.inf
    for middle in logs:
        if middle - taken < 2 * math.log(MATCH):
            continue
        rows = table[np.abs(np.log(table["value"]) - middle) <= math.log(MATCH)]
        # of each batch size the nearest rate alone
        distance = np.abs(np.log(rows["value"]) - middle)
        rows = rows[distance <= distance.groupby(rows["size"]).transform("min") + 1e-9]
        if rows["size"].nunique() >= 3:
            matches.append((math.exp(middle), rows))
            taken = middle
    return matches


def _seed_means(cells: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of each batch size and rate; finite where any seed's value is."""
    finished = cells[cells["error"] == ""]
    finished = finished.assign(
        usable=finished["label"].isin(USABLE).astype(float),
        unstable=finished["unstable"].astype(float),
        final_loss=finished["final_loss"].where(np.isfinite(finished["final_loss"])),
    )
    columns = ["test_accuracy", "final_loss", "usable", "unstable"]
    by_size_and_rate = finished.groupby(["batch_size", "learning_rate"], sort=False)
    return by_size_and_rate[columns].mean().reset_index()


def _numeric_sizes(cells: pd.DataFrame) -> dict[Any, float]:
    """Each batch size with a finished cell as a number, ascending; "full" beyond the largest."""
    names = list(dict.fromkeys(cells[cells["error"] == ""]["batch_size"]))
    numbers = [float(name) for name in names if str(name) != "full"]
    full = 4 * max(numbers, default=1.0)  # two columns away: no number, so not next to the last
    sizes = {name: full if str(name) == "full" else float(name) for name in names}
    return dict(sorted(sizes.items(), key=itemgetter(1)))


def _edges(centres: np.ndarray) -> np.ndarray:
    """Half-way points between ascending centres (n,), and as far beyond the ends: (n + 1,)."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def _finish(axes: Axes, sizes: dict[Any, float], label: str, *, legend: bool) -> None:
    power_axis(axes, sizes.values(), map(str, sizes))
    finish(axes, "batch size B (examples)", label, legend_size=SMALL)
    if not legend and (drawn := axes.get_legend()) is not None:
        drawn.remove()
