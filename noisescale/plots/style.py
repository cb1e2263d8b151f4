"""What all pictures share: colours, error bars, labels and legends, and a figure as a file."""

from __future__ import annotations

import io
import itertools
import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, Locator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

# Okabe and Ito's palette (2008): told apart with any kind of colour vision
BLUE, VERMILION, GREEN, ORANGE = "#0072B2", "#D55E00", "#009E73", "#E69F00"
PURPLE, YELLOW, BLACK, SKY = "#CC79A7", "#F0E442", "#000000", "#56B4E9"
GREY = "#7F7F7F"  # of what stands behind: single runs, batches, the tolerance
SERIES = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)  # yellow is too pale for a line

LINE_STYLES = ("-", "--", ":", "-.")  # one a run
TITLE_SIZE = 10  # points
LEGEND_SIZE = 8  # points
SMALL = 7  # points of names within a panel, and of long legends: the least that is read in print
DOTS_PER_INCH = 150  # sharp on a screen at 700 to 1,400 pixels a figure, and some 100 kB
CHARACTER = 0.55  # of a font's size, about the mean width of a letter
FEWEST_TICKS, MOST_TICKS = 3, 6  # on an axis
MOST_BESIDE = 3  # panels in a row: more would be wider than a page
MOST_SIZES = 8  # batch sizes whose numbers fit side by side below a panel
LEFT_OF_ZERO = -0.15  # of an axis of steps that is linear below 1: room for a marker at 0
SHARE_OF_PANEL = 0.9  # that its axes take, about, beside the labels on the left
HANDLE = 4.5  # font sizes that a legend's line and the gaps beside it take
LABELS_BELOW = 36  # points that an axis's tick labels and its name take below it


def panels(
    count: int, *, width: float, height: float, title: str | None = None, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure and its `count` Axes, each `width` by `height` inches; from four on, in pairs."""
    columns = count if count <= MOST_BESIDE else 2
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    grid = list(np.ravel(figure.subplots(rows, columns, sharey=sharey)))
    axes = grid[:count]
    for unused in grid[count:]:
        unused.remove()
    if title is not None:
        name_figure(figure, title)
    return figure, axes


def name_figure(figure: Figure, title: str) -> None:
    """The title above all panels, broken into as many lines as its width takes."""
    letters = int(72 * figure.get_figwidth() / (CHARACTER * TITLE_SIZE))
    lines = [line for given in title.split("\n") for line in textwrap.wrap(given, letters)]
    figure.suptitle("\n".join(lines), fontsize=TITLE_SIZE)


def axes_or_new(axes: Axes | None, *, width: float = 5, height: float = 3.8) -> Axes:
    """The Axes given or, None, those of a new figure of pyplot's, which a notebook shows."""
    if axes is not None:
        return axes
    from matplotlib import pyplot  # chooses a backend, which no file needs

    return pyplot.subplots(figsize=(width, height), layout="constrained")[1]


def series_colours(count: int) -> list[Any]:
    """A colour for each of `count` lines: the palette's or, of more than it has, of viridis."""
    if count <= len(SERIES):
        return list(SERIES[:count])
    return list(colormaps["viridis"](np.linspace(0, 0.9, count)))


def plot_band(
    axes: Axes, x: pd.Series[Any], low: pd.Series[float], high: pd.Series[float], *, color: str
) -> None:
    """The intervals from `low` to `high` as a band, interrupted where they are nan.

    A point without a neighbour, whose band would have no width, gets an error bar.
    """
    axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
    known = (low.notna() & high.notna()).to_numpy()
    before, after = np.append(False, known[:-1]), np.append(known[1:], False)
    lone = known & ~before & ~after
    axes.vlines(x[lone], low[lone], high[lone], color=color, alpha=0.5, linewidth=1)


def error_bars(values: Any, low: Any, high: Any) -> np.ndarray:
    """Distances (2, n) down and up to the ends of n intervals, as `Axes.errorbar` takes them.

    0 where an end is unknown or open, so that the other one is still drawn.
    """
    distances = np.abs(np.array([values - low, high - values], dtype=float))
    return np.where(np.isfinite(distances), distances, 0.0)


def finish(axes: Axes, x: str, y: str, *, legend_size: float = LEGEND_SIZE) -> None:
    """Labels, grid, readable ticks and, where something has a name, the legend below the panel.

    legend_size: in points.
    """
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() == "log" and not isinstance(axis.get_major_locator(), FixedLocator):
            axis.set_major_locator(PlainLogLocator())
            axis.set_major_formatter(FuncFormatter(number_text))
            axis.set_minor_locator(NullLocator())
    legend_below(axes, size=legend_size)


def legend_below(
    axes: Axes, *, size: float = LEGEND_SIZE, handles: list[Any] | None = None
) -> None:
    """The legend below the panel and its labels, off the data, in as many columns as fit.

    Args:
        axes: the panel.
        size: of the letters, in points.
        handles: what it explains; None: whatever has a name. Without any there is no legend.
    """
    handles = axes.get_legend_handles_labels()[0] if handles is None else handles
    if not handles:
        return
    figure: Any = axes.get_figure(root=True)
    spec = axes.get_subplotspec()
    # the panel's share of its figure, before the panels are laid out
    share = SHARE_OF_PANEL / (1 if spec is None else spec.get_gridspec().ncols)
    labels_below = ScaledTranslation(0, -LABELS_BELOW / 72, figure.dpi_scale_trans)
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=axes.transAxes + labels_below,
        ncols=_columns(handles, share * 72 * axes.figure.bbox.width / figure.dpi, size=size),
        borderaxespad=0,
        frameon=False,
        fontsize=size,
    )


def one_legend(figure: Figure) -> None:
    """A legend below all panels for everything that has a name in one of them."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
        if (drawn := axes.get_legend()) is not None:
            drawn.remove()
    if named:
        columns = _columns(list(named.values()), 72 * figure.get_figwidth(), size=LEGEND_SIZE)
        below: Any = {"loc": "outside lower center", "ncols": columns, "fontsize": LEGEND_SIZE}
        figure.legend(handles=list(named.values()), labels=list(named), frameon=False, **below)


def _columns(handles: list[Any], available: float, *, size: float) -> int:
    """How many columns of a legend fit into so many points."""
    longest = max(len(_drawn(str(handle.get_label()))) for handle in handles)
    return min(len(handles), max(1, int(available / (size * (CHARACTER * longest + HANDLE)))))


def _drawn(label: str) -> str:
    """A label about as long as it is drawn: without the commands of its formulas."""
    return re.sub(r"\\(mathrm|mathcal|,)|[${}^_]", "", label)


def number_text(value: float, position: int | None = None) -> str:
    """A number at a tick: 0.03, 60 or 20,000 or, beyond five digits, as a power of ten."""
    if value == 0 or 1e-4 <= abs(value) < 1e6:
        return f"{value:,.6g}"
    exponent = math.floor(math.log10(abs(value)) + 1e-9)
    mantissa = value / 10.0**exponent
    if math.isclose(mantissa, 1):
        return f"$10^{{{exponent}}}$"
    return rf"${mantissa:.3g}\times 10^{{{exponent}}}$"


class PlainLogLocator(Locator):
    """Ticks of a logarithmic axis, none too many and three at least: whole decades, or 1, 2, 5.

    Within half a decade, where the axis is all but a linear one, round numbers at equal distances.
    """

    def __call__(self) -> Any:
        assert self.axis is not None
        return self.tick_values(*self.axis.get_view_interval())

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """The ticks of an axis from `vmin` to `vmax`."""
        low, high = sorted((vmin, vmax))
        zero = [0.0] if low <= 0 else []  # of an axis that is linear below 1
        low = 1.0 if zero else low
        if not 0 < low < high:
            return np.array(zero)
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        stride = max(1, math.ceil((last - first) / MOST_TICKS))
        decades = 10.0 ** np.arange(first, last + 1, stride)
        for steps in ((1,), (1, 3), (1, 2, 5)):
            ticks = np.outer(decades, steps).ravel() if stride == 1 else decades
            ticks = ticks[(ticks >= low) & (ticks <= high)]
            if len(ticks) >= FEWEST_TICKS:
                return np.append(zero, ticks)
        return np.append(zero, whole_steps(4).tick_values(low, high))


def count_axis(axes: Axes) -> None:
    """A logarithmic axis of steps that has room for step 0, and for nothing below it."""
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=LEFT_OF_ZERO)
    # of matplotlib's own, minor ones at 2 to 9 of each decade would be in the way
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(PlainLogLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(number_text))


def power_axis(axes: Axes, sizes: Iterable[float], names: Iterable[str] | None = None) -> None:
    """A logarithmic axis of batch sizes whose ticks are those that were run.

    Args:
        axes: whose x axis it is.
        sizes: the batch sizes.
        names: of the ticks, in the order of the sizes; None: the sizes.
    """
    named = {float(size): f"{size:g}" for size in sizes}
    if names is not None:
        named = dict(zip(named, names, strict=True))
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(named), list(named.values()))
    axes.minorticks_off()
    if len(named) > MOST_SIZES:  # the numbers do not fit side by side
        axes.tick_params(axis="x", labelrotation=60)


def whole_steps(most: int = 6, *, integer: bool = False) -> MaxNLocator:
    """Ticks of a linear axis at multiples of 1, 2 or 5; at whole numbers alone, as of counts."""
    return MaxNLocator(nbins=most, steps=[1, 2, 5, 10], integer=integer)


def measured_title(entries: list[dict[str, Any]]) -> str:
    """What the entries of a measurement's JSON are of: problem, training, step and examples."""
    measured = [entry for entry in entries if not entry["reason"]] or entries
    last = measured[-1]
    parts = []
    # in the entries of sharpness, batch_size is that of the batch sharpness
    size = "trained_batch_size" if "eigenvalues" in last else "batch_size"
    for key, text in (
        ("problem", "{}"),
        (size, "B = {}"),
        ("learning_rate", "learning rate {:g}"),
    ):
        values = {entry[key] for entry in measured if entry.get(key) is not None}
        if len(values) == 1:
            parts.append(text.format(*values))
    if len(entries) > 1:
        parts.append(f"{len(entries)} checkpoints")
    elif last["step"] is not None:
        parts.append(f"step {last['step']:,}")
    elif last.get("checkpoint"):
        parts.append(str(last["checkpoint"]))
    else:
        parts.append("the model as it is made")
    count, of = last.get("num_examples"), last.get("population_size")
    if count is not None and of is not None:
        share = f"all {of:,}" if count == of else f"{count:,} of {of:,}"
        parts.append(f"{share} {last['split']} examples")
    return ", ".join(parts)


def checkpoint_positions(entries: list[dict[str, Any]]) -> tuple[pd.DataFrame, str]:
    """Columns run and step for the entries that a measurement prints with --json; what step counts.

    Where the step of one is not known, the checkpoints themselves, in their order, as if of one
    run.
    """
    steps = [entry["step"] for entry in entries]
    if None in steps:
        return pd.DataFrame({"run": "", "step": range(len(entries))}), "checkpoint"
    return pd.DataFrame({"run": [entry["run"] for entry in entries], "step": steps}), "step"


def by_run(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, str, str]]:
    """Each run's rows, line style and addition to labels; all rows without a column "run"."""
    if "run" not in table:
        yield table, LINE_STYLES[0], ""
        return
    runs = table["run"].unique()
    for run, style in zip(runs, itertools.cycle(LINE_STYLES), strict=False):
        yield table[table["run"] == run], style, f", {run}" if len(runs) > 1 else ""


def image(figure: Figure, format: str = "png") -> bytes:
    """The figure as the content of a png, pdf or svg file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=DOTS_PER_INCH)
    return buffer.getvalue()
