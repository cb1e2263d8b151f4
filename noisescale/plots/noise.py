"""Pictures of the gradient noise: along training, by parameter and class, and the batch it sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from noisescale.plots.anatomy import plot_components, plot_images, plot_lorenz
from noisescale.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    SMALL,
    VERMILION,
    axes_or_new,
    by_run,
    checkpoint_positions,
    count_axis,
    error_bars,
    finish,
    measured_title,
    name_figure,
    number_text,
    one_legend,
    panels,
    plot_band,
    whole_steps,
)

Scale = Literal["simple", "full", "preconditioned_simple", "preconditioned_full"]
SCALES: dict[Scale, tuple[str, str]] = {  # label and colour of each column
    "simple": (r"$B_{\mathrm{simple}}$", BLUE),
    "full": (r"$B_{\mathrm{noise}}$", VERMILION),
    "preconditioned_simple": (r"$B^P_{\mathrm{simple}}$, of the optimizer", GREEN),
    "preconditioned_full": (r"$B^P_{\mathrm{noise}}$, of the optimizer", ORANGE),
}
WIDE = 10.0  # times B_simple, so far the trade-off of signal and noise is shown to either side


def noise_growth_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """The noise scales along a run against step and loss, from the rows of noise.csv.

    Where the table has a column "run", each of its runs has lines of its own.
    """
    figure, (by_step, by_loss) = panels(2, width=4.5, height=3.6, title=title, sharey=True)
    _plot_scales(by_step, table, against="step")
    _plot_scales(by_loss, table, against="loss")
    by_step.set_ylabel("noise scale (examples)")
    by_loss.set_ylabel("")
    one_legend(figure)
    return figure


def plot_noise(
    axes: Axes,
    table: pd.DataFrame,
    *,
    quantity: Scale = "simple",
    against: Literal["step", "loss"] = "step",
    label: str | None = None,
    **style: Any,
) -> None:
    """A noise scale along training with its 95 % band, interrupted where it is not resolved.

    Open triangles are the lower bounds there.

    Args:
        axes: drawn on.
        table: rows with step, `against`, `quantity`, and its _low and _high, as in noise.csv.
        quantity: "simple" for B_simple, "full" for B_noise; "preconditioned_simple" and
            "preconditioned_full" for them under the optimizer's preconditioner.
        against: "step", or "loss", which falls to the right.
        label: in the legend; None: the quantity's name.
        **style: of the line, instead of the quantity's colour and a width of 1.2.
    """
    name, colour = SCALES[quantity]
    style = {"color": colour, "linewidth": 1.2, **style}
    rows = table.sort_values("step")
    x, values = rows[against], rows[quantity]
    axes.plot(x, values, marker=".", markersize=4, label=label or name, **style)
    low, high = (rows[f"{quantity}_{end}"].where(values.notna()) for end in ("low", "high"))
    plot_band(axes, x, low, high, color=style["color"])
    bounds = rows[_is_bound(rows, quantity)]
    if len(bounds):
        look: Any = {"color": style["color"], "fillstyle": "none"}
        axes.plot(bounds[against], bounds[f"{quantity}_low"], "^", **look)
    axes.set_yscale("log")
    if against == "step":
        count_axis(axes)
        finish(axes, "step", "noise scale (examples)")
    else:
        axes.set_xscale("log")
        if not axes.xaxis_inverted():
            axes.invert_xaxis()
        finish(axes, "mean training loss", "noise scale (examples)")


def batch_size_figure(table: pd.DataFrame, *, title: str) -> Figure:
    """An adaptive batch size beside the noise scale it follows, and the learning rate, by epoch.

    table: the rows of batch_size.csv.
    """
    figure, (sizes, rates) = panels(2, width=4.5, height=3.6, title=title)
    resolved = table[np.isfinite(table["simple"])]
    label, colour = SCALES["simple"]
    epochs = table["epoch"]
    sizes.step(epochs, table["batch_size"], where="post", color=BLACK, label="batch size")
    sizes.plot(resolved["epoch"], resolved["simple"], ".", color=colour, label=f"running {label}")
    low, high = resolved["simple_low"], resolved["simple_high"]
    plot_band(sizes, resolved["epoch"], low, high, color=colour)
    sizes.set_yscale("log")
    # intervals may reach down to nothing, where the batch size never is
    shown = [*table["batch_size"], *resolved["simple"]]
    sizes.set_ylim(min(shown) / 3, 3 * max(shown))
    finish(sizes, "epoch", "examples")
    rates.step(epochs, table["learning_rate"], where="post", color=BLACK)
    rates.set_ylim(bottom=0)
    finish(rates, "epoch", "learning rate")
    one_legend(figure)
    return figure


def noise_figure(
    entries: list[dict[str, Any]], images: Sequence[tuple[np.ndarray, str]] = ()
) -> Figure:
    """What `noisescale measure-noise --json` gave.

    Of several checkpoints the scales along training; of a single one how signal and noise depend
    on the batch size, and the examples' gradient norms. Then the last one's parts.

    entries: of each checkpoint. images: the noisiest examples, each (H, W) or (H, W, 3) from 0 to
    1 with its caption, where they are images.
    """
    last = next(entry for entry in reversed(entries) if not entry["reason"])
    drawn: list[Callable[[Axes], None]] = []
    if len(entries) > 1:
        drawn.append(lambda axes: _plot_along_training(axes, entries))
    else:
        drawn.append(lambda axes: plot_signal_and_noise(axes, last))
        if last.get("gradient_norms"):
            drawn.append(lambda axes: plot_gradient_norms(axes, last))
    if last["per_layer"]:
        drawn.append(lambda axes: _plot_parts(axes, last, key="parameter"))
    if last["per_class"]:
        drawn.append(lambda axes: _plot_parts(axes, last, key="class"))
    if (anatomy := last.get("anatomy")) is not None:
        drawn.append(lambda axes: plot_lorenz(axes, anatomy))
        if anatomy["components"]:
            drawn.append(lambda axes: plot_components(axes, anatomy))
    if images:
        drawn.append(lambda axes: plot_images(axes, images))
    figure, panel_axes = panels(len(drawn), width=4.8, height=4.2)
    name_figure(figure, measured_title(entries))
    for plot, axes in zip(drawn, panel_axes, strict=True):
        plot(axes)
    return figure


def draw_noise(noise: dict[str, Any], axes: Axes | None = None) -> Axes:
    """The Axes, new ones for None, with how signal and noise depend on the batch size.

    noise: what `NoiseScale.to_dict` gives.
    """
    axes = axes_or_new(axes, height=4.2)
    plot_signal_and_noise(axes, noise)
    axes.set_title(_scale_text(noise), fontsize=10)
    return axes


def plot_signal_and_noise(axes: Axes, noise: dict[str, Any]) -> None:
    """|G|² and tr Σ/B, what the noise adds to a batch's squared gradient, against B: B_simple.

    They meet at B_simple, whose interval is the shaded stretch. Below it noise rules a step, above
    it the batch could be smaller. Where |G|² is not resolved, a dotted line is the lower bound.

    Args:
        axes: drawn on, logarithmic.
        noise: an entry of `noisescale measure-noise --json`.
    """
    signal, trace, simple, full = (
        _numbers(noise.get(name))
        for name in ("squared_gradient_norm", "gradient_variance", "simple", "full")
    )
    used = noise.get("batch_size")
    sizes = _sizes_around([*simple.values(), used])
    label = r"noise, $\mathrm{tr}\,\Sigma/B$"
    axes.plot(sizes, trace["value"] / sizes, color=VERMILION, label=label)
    if math.isfinite(trace["low"]) and math.isfinite(trace["high"]):
        ends = (max(trace["low"], 0.0) / sizes, trace["high"] / sizes)
        axes.fill_between(sizes, *ends, color=VERMILION, alpha=0.2, linewidth=0)
    positive = [level for level in (trace["value"] / sizes[-1], signal["value"]) if level > 0]
    bottom = min(positive, default=1.0)
    if signal["value"] > 0:
        axes.axhline(signal["value"], color=BLUE, label=r"signal, $|G|^2$")
    if signal["high"] > 0:  # down to the frame where it may be zero
        low = max(signal["low"], bottom / WIDE)
        axes.axhspan(low, signal["high"], color=BLUE, alpha=0.2, linewidth=0)
    name = SCALES["simple"][0]
    if _is_size(simple["value"]):
        _mark_size(axes, simple, f"{name} = {_interval_text(simple)}")
    elif _is_size(simple["low"]):
        label = f"{name} > {_short(simple['low'])}: not resolved"
        axes.axvline(simple["low"], color=BLACK, linestyle=":", label=label)
    if sizes[0] < full["value"] < sizes[-1]:
        label = f"{SCALES['full'][0]} = {_interval_text(full)}"
        axes.axvline(full["value"], color=ORANGE, linestyle="-.", label=label)
    if isinstance(used, int):  # and not "full" or "adaptive"
        axes.axvline(used, color=GREEN, linestyle="--", label=f"trained at B = {used:,}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(sizes[0], sizes[-1])
    top = max(trace["value"] / sizes[0], *positive, signal["high"]) if positive else 1.0
    axes.set_ylim(bottom / 3, 2 * top)
    finish(axes, "batch size B (examples)", "squared gradient norm")


def _sizes_around(marks: list[Any]) -> np.ndarray:
    """Batch sizes (100,) from far below to far above all that are to be marked, of 1 at least."""
    known = [float(mark) for mark in marks if _is_size(mark)] or [1.0]
    least = min(max(1.0, min(known) / WIDE), min(known))
    return np.geomspace(least, WIDE * max(known), 100)


def _mark_size(axes: Axes, size: dict[str, float], label: str) -> None:
    """A batch size as a line across, with its interval as a shaded stretch."""
    axes.axvline(size["value"], color=BLACK, label=label)
    if _is_size(size["low"]) and _is_size(size["high"]):
        axes.axvspan(size["low"], size["high"], color=BLACK, alpha=0.1, linewidth=0)


def plot_gradient_norms(axes: Axes, noise: dict[str, Any]) -> None:
    """How the examples' gradient norms are distributed, and which of them the noise comes from.

    Bars are shares of the examples, the line is the share of tr Σ that they hold; the mean
    gradient's norm is marked. Named below: n_eff and the share of the noisiest hundredth.

    Args:
        axes: drawn on.
        noise: an entry of `noisescale measure-noise --json` with gradient_norms.
    """
    table = pd.DataFrame(noise["gradient_norms"])
    edges = np.append(table["low"], table["high"].iloc[-1])
    count = noise["num_examples"]
    axes.stairs(
        100 * table["examples"] / count, edges, fill=True, color=BLUE, alpha=0.4, label="examples"
    )
    if table["variance_share"].notna().all():
        label = r"$\mathrm{tr}\,\Sigma$ that they hold"
        axes.stairs(
            100 * table["variance_share"], edges, color=VERMILION, linewidth=1.4, label=label
        )
    mean = _numbers(noise["squared_gradient_norm"])["value"]
    if mean > 0:
        axes.axvline(math.sqrt(mean), color=BLACK, linestyle="--", label=r"mean gradient, $|G|$")
    remarks = []
    if (share := noise.get("noisiest_share")) is not None:
        remarks.append(rf"noisiest 1 %: {100 * share:.3g} % of $\mathrm{{tr}}\,\Sigma$")
    if (effective := noise.get("effective_examples")) is not None:
        remarks.append(rf"$n_{{\mathrm{{eff}}}}$ = {_short(effective)} of {count:,}")
    for remark in remarks:  # in the legend, off the data
        axes.plot([], [], " ", label=remark)
    if edges[-1] > edges[0]:
        axes.set_xscale("log")
        left = min(edges[0], math.sqrt(mean) if mean > 0 else edges[0])
        axes.set_xlim(left / 1.2, 1.2 * max(edges[-1], math.sqrt(max(mean, 0.0))))
    finish(axes, r"gradient norm of an example, $|g_i|$", "share (%)")


def _numbers(estimate: dict[str, Any] | None) -> dict[str, float]:
    """Value, low and high of an estimate as stored, nan for what it lacks."""
    stored = estimate or {}
    parts = {part: stored.get(part) for part in ("value", "low", "high")}
    return {part: math.nan if value is None else float(value) for part, value in parts.items()}


def _is_size(value: Any) -> bool:
    """Whether this is a batch size that a logarithmic axis can show."""
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _short(value: float) -> str:
    """A number with three digits."""
    return number_text(float(f"{value:.3g}"))


def _interval_text(estimate: dict[str, float]) -> str:
    """Such as "71.9 (66.4–78.5)"."""
    value, low, high = (
        _short(estimate[part]) if math.isfinite(estimate[part]) else "∞"
        for part in ("value", "low", "high")
    )
    if math.isnan(estimate["low"]) or estimate["low"] == estimate["high"]:  # unknown, or exact
        return value
    return f"{value} ({low}–{high})"


def _scale_text(noise: dict[str, Any]) -> str:
    """B_simple and on what it was measured, for a title."""
    simple = _numbers(noise["simple"])
    name = SCALES["simple"][0]
    of = f"{noise['num_examples']:,} of {noise['population_size']:,} examples"
    if math.isfinite(simple["value"]):
        return f"{name} = {_interval_text(simple)}, {of}"
    return f"{name} is not resolved on {of}"


def _plot_along_training(axes: Axes, entries: list[dict[str, Any]]) -> None:
    """The noise scales of several checkpoints against the step."""
    positions, counted = checkpoint_positions(entries)
    columns = {
        f"{quantity}{suffix}": [_stored(entry, quantity).get(part) for entry in entries]
        for quantity in SCALES
        for part, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
    }
    _plot_scales(axes, positions.join(pd.DataFrame(columns).astype(float)), against="step")
    # few checkpoints, often within a decade, which has no tick on a log axis
    axes.set_xscale("linear")
    axes.margins(x=0.05)
    axes.autoscale(axis="x")
    axes.xaxis.set_major_locator(whole_steps(integer=True))
    population = next(entry["population"] for entry in entries if not entry["reason"])
    finish(axes, counted, f"noise scale (examples, {population} population)", legend_size=SMALL)


def _stored(entry: dict[str, Any], quantity: Scale) -> dict[str, Any]:
    """An estimate of an entry, by its name in tables; empty where it was not measured."""
    name = quantity.removeprefix("preconditioned_")
    record = entry if name == quantity else entry.get("preconditioned")
    return (record or {}).get(name) or {}


def _plot_scales(axes: Axes, table: pd.DataFrame, *, against: Literal["step", "loss"]) -> None:
    """Every noise scale that the table has a value or a bound of, run by run."""
    bounded = False
    for quantity, (label, _) in SCALES.items():
        if quantity not in table:  # of SGD, or of before there was one
            continue
        there = table[table[[quantity, f"{quantity}_low"]].notna().any(axis=1)]
        bounded = bounded or bool(_is_bound(there, quantity).any())
        for rows, style, run in by_run(there):
            if len(rows):
                look: Any = {"label": f"{label}{run}", "linestyle": style}
                plot_noise(axes, rows, quantity=quantity, against=against, **look)
    if bounded:
        axes.plot([], [], "^", color="grey", fillstyle="none", label="not resolved: a lower bound")


def _is_bound(table: pd.DataFrame, quantity: Scale) -> pd.Series[bool]:
    """Where the scale is not resolved and has a lower bound."""
    bounded: pd.Series[bool] = np.isfinite(table[f"{quantity}_low"])
    return table[quantity].isna() & bounded


def _plot_parts(axes: Axes, entry: dict[str, Any], *, key: Literal["parameter", "class"]) -> None:
    """B_simple of each parameter tensor or class, 95 % intervals; lower bounds as arrows."""
    rows = entry["per_layer" if key == "parameter" else "per_class"]
    table = pd.DataFrame(rows, columns=[key, "simple", "simple_low", "simple_high"])
    values, low, high = (
        table[name].astype(float) for name in ("simple", "simple_low", "simple_high")
    )
    heights = np.arange(len(table))
    name = SCALES["simple"][0]
    total = _numbers(entry["simple"])
    if _is_size(total["value"]):
        _mark_size(axes, total, f"{name} of all, {_interval_text(total)}")
    look: Any = {"fmt": "o", "color": BLUE, "markersize": 4}
    axes.errorbar(values, heights, xerr=error_bars(values, low, high), **look)
    bounds = _is_bound(table.assign(simple=values, simple_low=low), "simple")
    if bounds.any():
        open_arrow: Any = {"color": BLUE, "fillstyle": "none", "label": "a lower bound"}
        axes.plot(low[bounds], heights[bounds], ">", **open_arrow)
    axes.set_yticks(heights, [str(name) for name in table[key]], fontsize=SMALL)
    axes.invert_yaxis()
    axes.margins(y=0.1)
    axes.set_xscale("log")
    label = "class" if key == "class" else ""  # the parameters' names need none
    finish(axes, f"{name} of each {key} (examples)", label)
