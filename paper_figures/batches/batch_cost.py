"""What a change of the batch size costs, by source of batches; a full batch's time and memory."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.style import BLUE, GREEN, ORANGE, PURPLE, error_bars
from paper_figures.stability.stability_map import COMPACT
from paper_figures.style import STYLE, read_table

SOURCES = {  # of the batches, and how their size is changed
    ("tensors", "slice"): ("tensors beside the model", BLUE, "o"),
    ("loader, 0 workers", "rebuild"): ("loader without workers, rebuilt", GREEN, "s"),
    ("loader, 2 workers", "rebuild"): ("loader with 2 workers, rebuilt", ORANGE, "^"),
    ("loader, 2 workers", "sampler"): ("the same, its sampler told", PURPLE, "D"),
}
WAYS = {"accumulated": (BLUE, "o", "in chunks of 4,096"), "one pass": (ORANGE, "s", "in one pass")}
CAPTION = (
    "MNIST, 784–256–256–10, one thread, {rounds} rounds that interleave all measurements, on a "
    "machine with a mean load of {load:.0f}, this work included: compare within a panel. "
    "Left: a step with B changed between 48 and 80 over a step at B = 64, of the same source and "
    "round. Middle and right: one step of B examples. Medians; bars: 95 % intervals of the median."
)


def figure(data: Path) -> Figure:
    """A panel for changes of the batch size, one for the time of a step and one for its memory."""
    changes = read_table(data / "batch_cost" / "changes.csv")
    full = read_table(data / "batch_cost" / "full_batch.csv").astype({"batch_size": int})
    with plt.rc_context({**STYLE, **COMPACT}):
        drawn = Figure(figsize=(5.5, 3.6), layout="constrained")
        slowdown, time, memory = drawn.subplots(1, 3, width_ratios=(1.3, 1, 1))
        _draw_changes(slowdown, changes)
        for axes, name, label in (
            (time, "seconds", "seconds a step"),
            (memory, "mebibytes", "peak MiB a step"),
        ):
            _draw_full(axes, full, name)
            axes.set_ylabel(label)
        lines, labels = slowdown.get_legend_handles_labels()
        more, names = time.get_legend_handles_labels()
        drawn.legend(
            lines + more,
            labels + names,
            loc="outside upper center",
            ncols=3,
        )
        caption = CAPTION.format(rounds=changes["rounds"].min(), load=changes["load"].median())
        drawn.supxlabel(fill(caption, 98), fontsize=7)
    return drawn


def _draw_changes(axes: Axes, changes: pd.DataFrame) -> None:
    """How much longer a step takes than at one batch size, against the steps between changes."""
    for place, ((source, way), (label, colour, marker)) in enumerate(SOURCES.items()):
        of_source = (changes["source"] == source) & (changes["way"] == way)
        own = changes[of_source & (changes["every"] > 0)].sort_values("every")
        shifted = own["every"] * 1.12 ** (place - 1.5)  # so that bars do not hide each other
        _draw_medians(axes, own, "slowdown", shifted, colour=colour, marker=marker, label=label)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([1, 10, 100], ["1", "10", "100"])
    axes.minorticks_off()
    axes.set_xlabel("steps between changes of B")
    axes.set_ylabel("time of a step, fixed B = 1")


def _draw_full(axes: Axes, full: pd.DataFrame, name: str) -> None:
    for way, (colour, marker, label) in WAYS.items():
        own = full[full["way"] == way].sort_values("batch_size")
        _draw_medians(axes, own, name, own["batch_size"], colour=colour, marker=marker, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks([2**6, 2**10, 2**14], ["64", "1,024", "16,384"])
    axes.minorticks_off()
    axes.set_xlabel("batch size B (examples)")


def _draw_medians(
    axes: Axes,
    rows: pd.DataFrame,
    name: str,
    places: pd.Series,
    *,
    colour: str,
    marker: str,
    label: str,
) -> None:
    axes.errorbar(
        places,
        rows[name],
        yerr=error_bars(rows[name], rows[f"{name}_low"], rows[f"{name}_high"]),
        color=colour,
        marker=marker,
        markersize=3,
        linewidth=1,
        label=label,
    )
