"""Pictures of a sweep: the map with the predicted curves, the usable rates, accuracy along its cuts."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, colors
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

# colour (Okabe and Ito's palette) and line of each prediction, and what it is a prediction of
CURVES: dict[str, tuple[str, str, str]] = {
    "upper": ("#0072B2", "-", "upper, mean square"),
    "gaussian": ("#0072B2", "--", "Gaussian, mean square"),
    "lower": ("#0072B2", "-.", "lower, mean square"),
    "lyapunov": ("#D55E00", "-", "linearised SGD, almost surely"),
    "descent": ("#009E73", "--", "descent in one step"),
    "wu": ("#000000", ":", "Wu's rectangle"),
}
HATCHES = ((1.0, "xxxx", "all"), (0.5, "///", "half or more"), (0.0, "/", "some"))
NO_NUMBER = (0.85, 0.85, 0.85, 1.0)
LARGEST_LOSS = 1e3  # of the colours
USABLE = ("converged", "catapult")
QUANTITIES = {"test_accuracy": "test accuracy", "final_loss": "final training loss"}
THREE_CASES = ((1024, 1e-3), (32, 1e-3), (1, 1e-3))  # batch size and rate of the study
MATCH = 1.15  # rates this close count as one where a cut takes what was tried


def map_figure(
    cells: pd.DataFrame,
    boundary: pd.DataFrame,
    *,
    title: str,
    minimum: bool = False,
    cases: bool = False,
) -> Figure:
    """The map, the usable rates, and the accuracy at fixed rates and at fixed rate over batch size.

    minimum: the runs start from one, so that the map shows their loss, and who left. cases: see `plot_map`.
    """
    if (cells["error"] != "").all():
        figure = Figure(figsize=(5, 2))
        figure.text(0.5, 0.5, f"{title}\nno cell has finished", ha="center", va="center")
        return figure
    figure = Figure(figsize=(11, 7.4), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.55, 1))
    left, right = parts
    quantity, unstable = ("final_loss", "left") if minimum else ("test_accuracy", "diverged")
    plot_map(left.subplots(), cells, boundary, quantity=quantity, unstable=unstable, cases=cases)
    above, middle, below = right.subplots(3, 1)
    plot_usable(above, cells, boundary)
    plot_cut(middle, cells, along="learning_rate")
    plot_cut(below, cells, along="rate_over_batch")
    figure.suptitle(title, fontsize=10)
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
    """The mean of `quantity` over seeds at every rate tried, P(unstable) as hatching, and the edges.

    cells, boundary: rows of cells.csv and boundary.csv. A rate's patch reaches half-way to the next tried.
    unstable: what the hatching says the runs did. cases: mark the three-case study.
    """
    table = _cells_by_place(cells)
    sizes = _numeric_sizes(cells)
    columns = _edges(np.log2(list(sizes.values())))
    shades = ScalarMappable(_norm(table, quantity), colormaps["viridis"])
    for place, name in enumerate(sizes):
        rows = table[table["batch_size"] == name].sort_values("learning_rate")
        _draw_column(axes, rows, quantity, shades, 2.0 ** columns[place : place + 2])
    _draw_edges(axes, boundary, sizes)
    rates = np.sort(table["learning_rate"].unique())
    if cases and rates[0] <= THREE_CASES[0][1] <= rates[-1]:
        sizes_of_cases, rates_of_cases = zip(*THREE_CASES, strict=True)
        style: Any = {"markersize": 12, "color": "#F0E442", "markeredgecolor": "black", "zorder": 6}
        label = "the study's three cases"
        axes.plot(sizes_of_cases, rates_of_cases, "*", label=label, linestyle="none", **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlim(2.0 ** columns[0], 2.0 ** columns[-1])
    bottom, *_, top = 10.0 ** _edges(np.log10(rates))
    axes.set_ylim(bottom, top)
    axes.set_xticks(list(sizes.values()), [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch size B (examples)")
    axes.set_ylabel(r"learning rate $\eta$")
    axes.figure.colorbar(shades, ax=axes, label=QUANTITIES[quantity], pad=0.01)
    if legend:
        below: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.09), "ncols": 3}
        axes.legend(
            handles=map_handles(axes, unstable=unstable), fontsize=6.5, frameon=False, **below
        )


def map_handles(axes: Axes, *, unstable: str) -> list[Any]:
    """What a legend of `plot_map` has to explain: its lines and points, and the hatching."""
    handles, _ = axes.get_legend_handles_labels()
    grey: Any = {"facecolor": "#D9D9D9", "edgecolor": "white"}
    return [
        *handles,
        *(Patch(hatch=mark, label=f"{words} {unstable}", **grey) for _, mark, words in HATCHES),
    ]


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
        shade: Any = shades.to_rgba(row[quantity]) if math.isfinite(row[quantity]) else NO_NUMBER
        share = row["unstable"]
        hatch = next((mark for least, mark, _ in HATCHES if share and share >= least), None)
        look: Any = {"facecolor": shade, "edgecolor": "white", "linewidth": 0.3, "hatch": hatch}
        axes.add_patch(Rectangle((sides[0], low), sides[1] - sides[0], high - low, **look))


def _draw_edges(axes: Axes, boundary: pd.DataFrame, sizes: dict[Any, float]) -> None:
    """The predicted curves, and the measured edges with their intervals."""
    outline = [withStroke(linewidth=3, foreground="white")]
    boundary = boundary[boundary["batch_size"].isin(list(sizes))]
    at = boundary["batch_size"].map(sizes).to_numpy(dtype=float)
    for name, (colour, style, label) in CURVES.items():
        if name in boundary and np.isfinite(boundary[name]).any():
            look: Any = {"color": colour, "linewidth": 1.4, "path_effects": outline}
            axes.plot(at, boundary[name], style, label=label, **look)
    found = boundary[np.isfinite(boundary["lr_max"])]
    spread = np.abs(found[["lr_max_low", "lr_max_high"]].sub(found["lr_max"], axis=0)).to_numpy().T
    points: Any = {"color": "#CC79A7", "markeredgecolor": "white", "capsize": 3, "zorder": 5}
    axes.errorbar(
        found["batch_size"].map(sizes).to_numpy(dtype=float),
        found["lr_max"],
        yerr=np.where(np.isfinite(spread), spread, 0),
        fmt="o",
        label=r"measured $\eta_{\max}$, 95 %",
        **points,
    )


def plot_usable(axes: Axes, cells: pd.DataFrame, boundary: pd.DataFrame) -> None:
    """The rates at which half of the seeds or more train, against B; beside it where they diverge."""
    table = _cells_by_place(cells)
    sizes = _numeric_sizes(cells)
    for name, size in sizes.items():
        rows = table[(table["batch_size"] == name)]
        usable = rows[rows["usable"] >= 0.5]["learning_rate"]
        if len(usable):
            axes.plot(
                [size, size],
                [usable.min(), usable.max()],
                "-",
                color="#009E73",
                linewidth=5,
                solid_capstyle="butt",
            )
        axes.plot(
            [size] * len(rows), rows["learning_rate"], ".", color="black", markersize=2, zorder=3
        )
    axes.plot([], [], "-", color="#009E73", linewidth=5, label="trains")
    axes.plot([], [], ".", color="black", markersize=2, label="tried")
    at = boundary["batch_size"].map(sizes).to_numpy(dtype=float)
    axes.plot(at, boundary["lr_max"], "o-", color="#CC79A7", markersize=4, label=r"$\eta_{\max}$")
    axes.set_yscale("log")
    if np.isfinite(
        boundary["lr_max"]
    ).any():  # beyond it there is little to see, and room for the legend
        axes.set_ylim(top=100 * boundary["lr_max"].max())
    _finish(axes, sizes, r"learning rate $\eta$")


def plot_cut(axes: Axes, cells: pd.DataFrame, *, along: str, most: int = 5) -> None:
    """Test accuracy against B at the `most` best values of η or η/B; seeds as points, means as lines."""
    sizes = _numeric_sizes(cells)
    table = cells[cells["error"] == ""].assign(
        size=lambda rows: rows["batch_size"].map(sizes).astype(float)
    )
    table = table.assign(
        value=table["learning_rate"] / (table["size"] if along == "rate_over_batch" else 1.0)
    )
    if not (groups := _matching(table)):
        place: Any = {"transform": axes.transAxes, "ha": "center", "va": "center", "fontsize": 7}
        axes.text(0.5, 0.5, "no value was tried at three batch sizes", **place)
    best = sorted(groups, key=lambda group: group[1]["test_accuracy"].max())[-most:]
    shades = colormaps["viridis"](np.linspace(0, 0.9, most))
    name = r"$\eta/B$" if along == "rate_over_batch" else r"$\eta$"
    for shade, (value, rows), marker in zip(
        shades, sorted(best, key=itemgetter(0)), "osv^D", strict=False
    ):
        means = rows.groupby("size")["test_accuracy"].mean()
        label = f"{name} = {value:.2g}"
        axes.plot(
            means.index, means, f"{marker}-", color=shade, markersize=4, linewidth=1, label=label
        )
        axes.plot(rows["size"], rows["test_accuracy"], ".", color=shade, markersize=2)
    _finish(axes, sizes, "test accuracy")


def _matching(table: pd.DataFrame) -> list[tuple[float, pd.DataFrame]]:
    """Cells whose `value` is the same within a few per cent, where three batch sizes or more have it."""
    found = []
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
            found.append((math.exp(middle), rows))
            taken = middle
    return found


def _cells_by_place(cells: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of each batch size and rate; a quantity is finite where any seed's is."""
    known = cells[cells["error"] == ""]
    known = known.assign(
        usable=known["label"].isin(USABLE).astype(float),
        unstable=known["unstable"].astype(float),
        final_loss=known["final_loss"].where(np.isfinite(known["final_loss"])),
    )
    columns = ["test_accuracy", "final_loss", "usable", "unstable"]
    return known.groupby(["batch_size", "learning_rate"], sort=False)[columns].mean().reset_index()


def _numeric_sizes(cells: pd.DataFrame) -> dict[Any, float]:
    """Each batch size with a finished cell as a number, ascending; "full" stands right of the largest."""
    names = list(dict.fromkeys(cells[cells["error"] == ""]["batch_size"]))
    numbers = [float(name) for name in names if str(name) != "full"]
    known = {
        name: float(name) if str(name) != "full" else 4 * max(numbers, default=1.0)
        for name in names
    }
    return dict(sorted(known.items(), key=lambda item: item[1]))


def _edges(centres: np.ndarray) -> np.ndarray:
    """Half-way points between ascending centres (n,), and as far beyond the ends: (n + 1,)."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - between[0]], between, [2 * centres[-1] - between[-1]]])


def _finish(axes: Axes, sizes: dict[Any, float], label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes.values()), [str(size) for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("batch size B (examples)")
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6.5, frameon=False)
