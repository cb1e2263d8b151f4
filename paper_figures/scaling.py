"""How the cost of a measurement grows with examples, parameters, places and the batch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from noisescale.plots.style import BLUE, GREEN, ORANGE
from paper_figures.style import STYLE

FILE = "scaling-cpu.json"
LOOKS = {
    "noise": (BLUE, "o", "noise"),
    "hessian": (ORANGE, "s", "Hessian product"),
    "monitor": (GREEN, "^", "monitor"),
}
AXES = {
    "N": "examples N",
    "P": "parameters P",
    "T": "places T of a sequence",
    "B": "examples B of a micro-batch",
}
LEGEND = 0.13  # of a panel's height, for each line of its legend
CAPTION = (
    "Measured at a small scale: an MLP on random numbers, and a character GPT (panel of T) on a "
    "Markov chain. Noise: measure_noise; monitor: what it adds to an update. Points: medians over "
    "{rounds} rounds of the process's seconds on one thread ({device}); no bars, since the spread "
    "of rounds is that of the machine. Lines: cost ∝ size to the power named, by least squares of "
    "the logarithms, ± a standard error."
)


def figure(results: Path) -> Figure:
    """A panel for each size, the fitted exponents in its legend.

    Args:
        results: the folder of the benchmarks' JSON.
    """
    record: dict[str, Any] = json.loads((results / FILE).read_text())
    with plt.rc_context(STYLE):
        drawn = Figure(figsize=(5.5, 5.2), layout="constrained")
        for axes, (against, label) in zip(drawn.subplots(2, 2).flat, AXES.items(), strict=True):
            curves = [curve for curve in record["curves"] if curve["against"] == against]
            for curve in curves:
                _draw(axes, curve)
            axes.set_xlabel(label)
            axes.set_ylabel("seconds")
            _scale(axes, curves)
            axes.legend(loc="upper left", fontsize=7, handletextpad=0.3, borderaxespad=0.1)
        rounds, device = record["curves"][0]["rounds"], record["environment"]["device"]
        drawn.supxlabel(fill(CAPTION.format(rounds=rounds, device=device), 96), fontsize=7)
    return drawn


def _scale(axes: Axes, curves: list[dict[str, Any]]) -> None:
    """Logarithmic axes: the sizes that were measured, and whole decades with room for a legend."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = curves[0]["values"]
    labels = [f"{size / 1000:.0f}k" if size >= 1000 else str(size) for size in sizes]
    axes.set_xticks(sizes, labels)
    axes.xaxis.set_minor_locator(NullLocator())
    costs = [cost for curve in curves for cost in curve["seconds"]]
    low, high = math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs)))
    bottom = min(10.0**low, min(costs) / 1.5)  # a marker on the edge would be cut
    axes.set_ylim(bottom, 10.0 ** (high + LEGEND * len(curves) * (high - low)))
    axes.set_yticks([10.0**power for power in range(low, high + 1)])
    axes.yaxis.set_minor_locator(NullLocator())


def _draw(axes: Axes, curve: dict[str, Any]) -> None:
    colour, marker, label = LOOKS[curve["what"]]
    sizes, costs = np.array(curve["values"], dtype=float), np.array(curve["seconds"])
    slope = curve["exponent"]["value"]
    exponent = f"{slope:.2f} ± {curve['exponent']['stderr']:.2f}"
    line = np.exp(np.log(costs).mean()) * (sizes / np.exp(np.log(sizes).mean())) ** slope
    axes.plot(sizes, line, color=colour, linewidth=1)
    axes.plot(sizes, costs, marker, color=colour, markersize=4, label=f"{label}, {exponent}")
