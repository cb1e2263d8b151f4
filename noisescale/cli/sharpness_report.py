"""Sharpness on stdout: a row per quantity, and what λ_max says about stability."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from noisescale.cli.report import examples_text, name_text, numbers, step_text
from noisescale.statistics.stability_curves import side_of
from noisescale.training.config import stable_sharpness

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Loaded
    from noisescale.measure.sharpness import Sharpness

NAMES = {"largest": "λ_max", "smallest": "λ_min"}


MEASURED: dict[str, Any] = {  # what an entry holds of a measurement that failed
    "num_examples": None,
    "population_size": None,
    "loss": None,
    "eigenvalues": [],
    "trace": None,
    "frobenius": None,
    "batch_size": None,
    "batch_sharpness": None,
    "gradient_noise_interaction": None,
    "phi": [],
    "density": None,
}


def sharpness_entry(one: Loaded, found: Sharpness, *, in_batches: bool) -> dict[str, Any]:
    """One entry of `noisescale sharpness --json`.

    in_batches: whether the model normalises over batches; training then descends another loss than the one
    measured, in evaluation mode, and 2/η is no limit for this one.
    """
    limit = None
    if one.checkpoint is not None and not in_batches:
        limit = stable_sharpness(one.checkpoint.training)
    return {**_identity(one), "stable_sharpness": limit, "reason": None, **found.to_dict()}


def unmeasured_entry(one: Loaded, reason: str) -> dict[str, Any]:
    """The entry of a checkpoint that cannot be measured, among others that can."""
    return {**_identity(one), "stable_sharpness": None, "reason": reason, **MEASURED}


def _identity(one: Loaded) -> dict[str, Any]:
    training = None if one.checkpoint is None else one.checkpoint.training
    return {
        "checkpoint": str(one.path),
        "run": one.run,
        "step": one.step,
        "learning_rate": training and training.learning_rate,
        "momentum": training and training.momentum,
        "weight_decay": training and training.weight_decay,
    }


def print_sharpness(entries: list[dict[str, Any]]) -> None:
    """A table of all checkpoints' quantities, then a sentence on each λ_max against 2/η."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
    first = next(entry for entry in entries if not entry["reason"])
    matrix = "Gauss–Newton matrix" if first["matrix"] == "ggn" else "Hessian"
    several_runs = len({entry["run"] for entry in entries}) > 1
    console.print(
        f"{matrix} of the mean loss over {examples_text(entries)} {first['split']} examples"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    if several_runs:
        table.add_column("run", overflow="fold")
    for name in ("step", "loss", "quantity"):
        table.add_column(name, justify="left" if name == "quantity" else "right", no_wrap=True)
    for name in ("value", "± stderr", "95 % interval", "residual"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        if entry["reason"]:
            continue
        labels = [step_text(entry), f"{entry['loss']:.4g}"]
        labels = [entry["run"], *labels] if several_runs else labels
        for quantity in _quantities(entry):
            table.add_row(*labels, *quantity)
            labels = [""] * len(labels)
        table.add_section()
    console.print(table)
    if any(
        not entry["reason"] and entry["num_examples"] < entry["population_size"]
        for entry in entries
    ):
        console.print(
            "Errors of eigenvalues are those of the subset of examples; those of the trace, the norm and the "
            "batch quantities are of their probes and batches alone, on these examples."
        )
    for entry in entries:
        name = name_text(entry, entries)
        if entry["reason"]:
            console.print(f"{name}: not measured. {entry['reason']}")
        elif sentence := _verdict(entry):
            console.print(f"{name}: {sentence}")
    if any(not eigenvalue["converged"] for entry in entries for eigenvalue in entry["eigenvalues"]):
        console.print(
            "Not converged: the residual is above its tolerance. Some eigenvalue lies that near the value, "
            "but which one is open: raise --max-matvecs.",
            style="bold yellow" if sys.stdout.isatty() else None,
        )


def _quantities(entry: dict[str, Any]) -> list[tuple[str, ...]]:
    """Name, value, stderr, interval and residual of everything that was measured."""
    rows: list[tuple[str, ...]] = []
    ranks: dict[str, int] = {}
    for eigenvalue in entry["eigenvalues"]:
        which = eigenvalue["which"]
        ranks[which] = rank = ranks.get(which, 0) + 1
        residual = f"{eigenvalue['residual']:.2g}" + (
            "" if eigenvalue["converged"] else " NOT CONVERGED"
        )
        rows.append(
            (NAMES[which] + (f" ({rank})" if rank > 1 else ""), *numbers(eigenvalue), residual)
        )
    size = entry["batch_size"]
    named = {
        "trace": "trace",
        "frobenius": "squared Frobenius norm",
        "batch_sharpness": f"batch sharpness, B = {size}",
        "gradient_noise_interaction": f"gradient-noise interaction, B = {size}",
    }
    rows += [(label, *numbers(entry[name]), "") for name, label in named.items() if entry[name]]
    for phi in entry["phi"]:
        label = f"φ (%), {phi['space']} space, ε = {phi['epsilon']:g}"
        rows.append((label, f"{phi['value']:.4g}", "", f"after {phi['iterations']} iterations", ""))
    return rows


def _verdict(entry: dict[str, Any]) -> str | None:
    """λ_max beside the limit of stability of the learning rate, as far as its errors allow."""
    largest = next((found for found in entry["eigenvalues"] if found["which"] == "largest"), None)
    limit = entry["stable_sharpness"]
    if largest is None or limit is None:
        return None
    plain = not entry["momentum"] and not entry["weight_decay"]
    formula = "2/η" if plain else "2(1+m)/η − weight decay"
    named = f"the limit of full-batch stability, {formula} = {limit:.4g} at lr {entry['learning_rate']:g}"
    if largest["low"] is None or not largest["converged"]:
        return f"λ_max against {named}, cannot be judged."
    margin = largest["residual"]
    low, high = largest["low"] - margin, largest["high"] + margin
    ratio = f"{largest['value'] / limit:.3g} ({low / limit:.3g}–{high / limit:.3g})"
    return f"λ_max is {ratio} times {named}: {side_of(limit, low=low, high=high)} the edge."
