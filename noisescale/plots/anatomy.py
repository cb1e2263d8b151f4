"""Pictures of who carries the gradient noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from noisescale.plots.style import (
    BLACK,
    BLUE,
    GREY,
    SMALL,
    VERMILION,
    axes_or_new,
    error_bars,
    finish,
)

ACROSS = 5  # images in a row


def draw_anatomy(anatomy: dict[str, Any], axes: Axes | None = None) -> Axes:
    """The Axes, new ones for None, with the Lorenz curve.

    anatomy: what `NoiseAnatomy.to_dict` gives.
    """
    axes = axes_or_new(axes, height=4.2)
    plot_lorenz(axes, anatomy)
    return axes


def plot_lorenz(axes: Axes, anatomy: dict[str, Any]) -> None:
    """Which share of tr Σ which share of the examples hold, from the noisiest on.

    Args:
        axes: drawn on, logarithmic in the share of the examples.
        anatomy: the entry of `noisescale measure-noise --anatomy --json`.
    """
    curve = pd.DataFrame(anatomy["lorenz"])
    examples = 100 * curve["examples"]
    label = f"noisiest first, $n_{{\\mathrm{{eff}}}}$ = {anatomy['effective_examples']:,.3g}"
    axes.plot(examples, 100 * curve["variance"], color=VERMILION, label=label)
    axes.plot(examples, examples, color=GREY, linestyle=":", label="if all were alike")
    if (wrong := anatomy["misclassified"]) is not None and wrong["examples"] > 0:
        place = (100 * wrong["examples"], 100 * wrong["variance"])
        axes.plot(*place, "o", color=BLUE, markersize=5, label="the misclassified")
    axes.set_xscale("log")
    axes.set_ylim(0, 102)
    finish(axes, "share of the examples (%)", r"share of $\mathrm{tr}\,\Sigma$ (%)")


def plot_components(axes: Axes, anatomy: dict[str, Any]) -> None:
    """B_simple of the first layer along the principal components of its inputs.

    Args:
        axes: drawn on, logarithmic.
        anatomy: the entry of `noisescale measure-noise --anatomy --json`, with components.
    """
    table = pd.DataFrame(anatomy["components"]).astype(float)
    middle = np.sqrt(table["first"] * table["last"])
    known = table["simple"].notna()
    bars = error_bars(*(table.loc[known, name] for name in ("simple", "simple_low", "simple_high")))
    axes.errorbar(
        middle[known], table.loc[known, "simple"], bars, fmt="o-", color=BLUE, markersize=4
    )
    bounds = table[~known & table["simple_low"].notna()]
    if len(bounds):
        axes.plot(
            middle[bounds.index],
            bounds["simple_low"],
            "^",
            color=BLUE,
            fillstyle="none",
            label="lower bound",
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if len(bounds) or known.any():
        axes.set_yscale("log")
    finish(axes, "principal component of the inputs", r"$B_{\mathrm{simple}}$ along it (examples)")


def plot_images(axes: Axes, images: Sequence[tuple[np.ndarray, str]]) -> None:
    """The noisiest examples, side by side, each with its caption.

    Args:
        axes: drawn on; it keeps no frame.
        images: each (H, W) or (H, W, 3), from 0 to 1, and a caption.
    """
    axes.axis("off")
    axes.set_xticks([])
    axes.set_yticks([])
    rows = math.ceil(len(images) / ACROSS)
    width, height = 1 / ACROSS, 1 / rows
    for number, (image, caption) in enumerate(images):
        row, column = divmod(number, ACROSS)
        bounds = (column * width, 1 - (row + 1) * height, 0.94 * width, 0.8 * height)
        inset = axes.inset_axes(bounds)
        inset.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        inset.set_title(caption, fontsize=SMALL, color=BLACK, pad=2)
        inset.set_xticks([])
        inset.set_yticks([])
    axes.set_title(r"largest shares of $\mathrm{tr}\,\Sigma$", fontsize=9, pad=14)
