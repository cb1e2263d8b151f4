"""The noise scale on stdout: a row per quantity or per checkpoint, and what it says about batch sizes."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from noisescale.cli.report import examples_text, name_text, numbers, step_text
from noisescale.errors import MeasurementError, RunFolderError

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Loaded
    from noisescale.statistics.gradient_noise import NoiseScale

QUANTITIES = {
    "loss": "mean loss",
    "squared_gradient_norm": "|G|²",
    "gradient_variance": "tr Σ",
    "simple": "B_simple = tr Σ/|G|²",
    "hessian_covariance_trace": "tr(HΣ)",
    "gradient_curvature": "GᵀHG",
    "full": "B_noise = tr(HΣ)/GᵀHG",
    "max_learning_rate": "ε_max = |G|²/GᵀHG",
}
ALONG_TRAINING = ("squared_gradient_norm", "gradient_variance", "simple", "full")
RECOMMENDED_FROM = {"simple": "B_simple", "full": "B_noise"}
UNMEASURED = (
    *("split", "population", "engine", "num_examples", "population_size", "examples_to_resolve"),
    *(
        "hessian_examples",
        "num_matvecs",
        "per_layer",
        "per_class",
        "top_examples",
        "optimal_learning_rates",
    ),
    *QUANTITIES,
)


def noise_entry(one: Loaded, found: NoiseScale, batch_sizes: tuple[int, ...]) -> dict[str, Any]:
    """One entry of `noisescale measure-noise --json`; the run's own batch size where none is named."""
    identity = _identity(one)
    curvature = found.curvature
    own = identity["batch_size"]
    sizes = batch_sizes or ((own,) if isinstance(own, int) else ())
    rates = None
    if curvature is not None:
        rates = [
            {"batch_size": size, **curvature.optimal_learning_rate(size).to_dict()}
            for size in sizes
        ]
    return {**identity, "reason": None, **found.to_dict(), "optimal_learning_rates": rates}


def unmeasured_entry(one: Loaded, reason: str) -> dict[str, Any]:
    """The entry of a checkpoint that cannot be measured, among others that can."""
    nothing: dict[str, Any] = dict.fromkeys(UNMEASURED)
    return {**_identity(one), "reason": reason, **nothing, "resolved": False, "notes": []}


def recommend_sizes(entries: list[dict[str, Any]]) -> None:
    """Gives the last entry of every run what the noise scale tracked along it recommends, None the others."""
    from noisescale.statistics.critical_batch.recommendation import recommend
    from noisescale.training.records.tables import read_noise

    for entry in entries:
        entry["recommendation"] = None
    for run, last in {entry["run"]: entry for entry in entries}.items():
        try:
            if rows := read_noise(Path(run)):
                last["recommendation"] = recommend(pd.DataFrame(rows)).to_dict()
        except (MeasurementError, RunFolderError) as error:
            last["notes"] = [*last["notes"], f"no batch size is recommended: {error}"]


def print_noise(entries: list[dict[str, Any]]) -> None:
    """The table, those of layers and classes where there are any, and a sentence on each checkpoint."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
    measured = [entry for entry in entries if not entry["reason"]]
    first = measured[0]
    console.print(
        f"Gradient noise over {examples_text(entries)} {first['split']} examples, "
        f"population: {first['population']}, engine: {', '.join(sorted({one['engine'] for one in measured}))}"
    )
    console.print(_quantities(first) if len(entries) == 1 else _along_training(entries))
    for entry in measured:
        if len(entries) > 1 and (entry["per_layer"] or entry["per_class"]):
            console.print(name_text(entry, entries))
        for key in ("parameter", "class"):
            if rows := entry["per_layer" if key == "parameter" else "per_class"]:
                console.print(_parts(key, rows, whole=entry["gradient_variance"]["value"]))
        if entry["per_class"]:
            console.print(_noisiest(entry["top_examples"]))
    for note in dict.fromkeys(note for entry in measured for note in entry["notes"]):
        console.print(f"Note: {note}.")
    for entry in entries:
        name = (
            f"{name_text(entry, entries)}: "
            if len(entries) > 1 or entry["step"] is not None
            else ""
        )
        if entry["reason"]:
            console.print(f"{name}not measured. {entry['reason']}")
        elif entry is measured[-1] or not entry["resolved"]:
            console.print(name + _sentence(entry))
            if entry["full"] is not None:
                console.print(_prediction(entry))
    for entry in entries:
        if found := entry["recommendation"]:
            console.print(_along(entry, found))
            console.print(_sizes(found))
            console.print(
                f"A batch size that follows the noise scale (--bs adaptive): γ = {found['gain']:.2f}, so at "
                f"best {1 + math.sqrt(found['gain']):.2f} times the least of both where a fixed one takes 2."
            )


def growth_text(found: dict[str, Any]) -> str:
    """How the noise scale went along a run, from a recommendation."""
    start, end, average = (_with_interval(found[name]) for name in ("start", "end", "average"))
    return f"{RECOMMENDED_FROM[found['from']]} goes from {start} to {end}, {average} on the average step"


def _with_interval(estimate: dict[str, Any]) -> str:
    value = _rounded(estimate["value"])
    if not estimate["stderr"]:
        return value
    high = "" if estimate["high"] is None else _rounded(estimate["high"])
    return f"{value} ({_rounded(estimate['low'])}–{high})"


def _along(entry: dict[str, Any], found: dict[str, Any]) -> str:
    """Where a recommendation comes from."""
    critical = {"stderr": found["average"]["stderr"], **found["critical_batch_size"]}
    text = (
        f"Along {entry['run']}, {growth_text(found)}. For another run like it, B_crit ≈ "
        f"{_with_interval(critical)}:"
    )
    if found["num_unresolved"]:
        text += (
            f" ({found['num_unresolved']} of {found['num_measurements']} measurements were not resolved, and "
            f"{100 * found['covered']:.0f} % of the steps are covered: it may be larger)"
        )
    return text


def _sizes(found: dict[str, Any]) -> Table:
    """A row per aim: the batch size, and what it takes."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("aim", no_wrap=True)
    for name in ("batch size", "steps S/S_min", "examples E/E_min"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found["sizes"]:
        table.add_row(
            row["aim"], f"{row['batch_size']:,}", f"{row['steps']:.1f}", f"{row['examples']:.1f}"
        )
    return table


def _identity(one: Loaded) -> dict[str, Any]:
    training = None if one.checkpoint is None else one.checkpoint.training
    return {
        "checkpoint": str(one.path),
        "run": one.run,
        "step": one.step,
        "batch_size": training and training.batch_size,
        "learning_rate": training and training.learning_rate,
    }


def _quantities(entry: dict[str, Any]) -> Table:
    """One checkpoint: a row per quantity."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("quantity", no_wrap=True)
    for name in ("value", "± stderr", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, label in QUANTITIES.items():
        if entry[name] is not None:
            table.add_row(label, *numbers(entry[name]))
    for rate in entry["optimal_learning_rates"] or ():
        table.add_row(f"ε_opt(B = {rate['batch_size']:,})", *numbers(rate))
    return table


def _along_training(entries: list[dict[str, Any]]) -> Table:
    """Several checkpoints: a row each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    several_runs = len({entry["run"] for entry in entries}) > 1
    if several_runs:
        table.add_column("run", overflow="fold")
    shown = [name for name in ALONG_TRAINING if any(entry[name] is not None for entry in entries)]
    for name in ("step", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in shown:
        table.add_column(QUANTITIES[name].split(" = ")[0], justify="right", no_wrap=True)
        if name in ("simple", "full"):
            table.add_column("95 % interval", justify="right", no_wrap=True)
    for entry in entries:
        row = [entry["run"], step_text(entry)] if several_runs else [step_text(entry)]
        row.append(f"{entry['loss']['value']:.4g}" if entry["loss"] else "")
        for name in shown:
            value, stderr, interval = numbers(entry[name]) if entry[name] else ("", "", "")
            row.append(f"{value} ± {stderr}" if stderr else value)
            if name in ("simple", "full"):
                row.append(interval)
        table.add_row(*row)
    return table


def _parts(key: str, rows: list[dict[str, Any]], *, whole: float) -> Table:
    """A row per parameter tensor or class; tensors with their share of tr Σ."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(key, no_wrap=True)
    middle = "share of tr Σ" if key == "parameter" else "examples"
    for name in ("|G|²", "tr Σ", middle, "B_simple", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        estimates = []
        for quantity in ("squared_gradient_norm", "gradient_variance", "simple"):
            parts = {part: row[f"{quantity}_{part}"] for part in ("stderr", "low", "high")}
            value, stderr, interval = numbers({"value": row[quantity], **parts})
            estimates.append((f"{value} ± {stderr}" if stderr else value, interval))
        share = f"{row['gradient_variance'] / whole:.1%}" if whole else ""
        between = share if key == "parameter" else f"{row['num_examples']:,}"
        table.add_row(str(row[key]), estimates[0][0], estimates[1][0], between, *estimates[2])
    return table


def _noisiest(rows: list[dict[str, Any]]) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="Largest shares of tr Σ", title_justify="left"
    )
    for name in rows[0]:
        table.add_column(name, justify="right")
    for row in rows:
        cells = {**row, "share": f"{row['share']:.3%}", "loss": f"{row['loss']:.4g}"}
        table.add_row(*(str(cell) for cell in cells.values()))
    return table


def _sentence(entry: dict[str, Any]) -> str:
    """What B_simple means for the choice of a batch size."""
    simple, population, count = entry["simple"], entry["population"], entry["num_examples"]
    if entry["resolved"]:
        value = f"{_rounded(simple['value'])} ({_interval(simple)}{population})"
        return (
            f"B_simple ≈ {value}: below it, doubling the batch about halves the steps; far above it, it buys "
            "little."
        )
    bound = "" if simple["low"] is None else f" > {_rounded(simple['low'])}, but"
    needed = entry["examples_to_resolve"]
    advice = "" if needed is None else f": {_rounded(needed)} or more would"
    if needed is not None and population == "distribution" and needed > entry["population_size"]:
        advice += ", more than the split has"
    unresolved = f"{count:,} examples cannot tell |G|² from zero{advice}"
    return f"B_simple{bound} is not resolved ({population}): {unresolved}."


def _prediction(entry: dict[str, Any]) -> str:
    full, curvature = entry["full"], entry["gradient_curvature"]
    if full["value"] is None:
        if curvature["high"] is not None and curvature["high"] < 0:
            return "GᵀHG is negative: the loss curves down along its gradient, so no step length is the best."
        return "B_noise is not resolved: GᵀHG cannot be told from zero; raise --num-examples."
    text = f"B_noise ≈ {_rounded(full['value'])} ({_interval(full)}{entry['population']})"
    for rate in entry["optimal_learning_rates"] or ():
        if rate["value"] is not None:
            text += f"; the one step that lowers the loss most at B = {rate['batch_size']:,} has "
            text += f"lr {rate['value']:.3g}"
    if entry["learning_rate"] is not None:
        text += f" (trained with {entry['learning_rate']:g})"
    return f"{text}."


def _interval(estimate: dict[str, Any]) -> str:
    """The interval and a comma, nothing for an exact value."""
    if not estimate["stderr"]:
        return ""
    return f"{_rounded(estimate['low'])}–{_rounded(estimate['high'])}, "


def _rounded(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,g}" if abs(value) < 1e6 else f"{value:.2e}"
