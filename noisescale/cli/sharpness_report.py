"""Sharpness on stdout: a row per quantity, and what λ_max says about stability."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from noisescale.stability import side_of, stable_sharpness

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Loaded
    from noisescale.measure import Sharpness

NAMES = {"largest": "λ_max", "smallest": "λ_min"}


def sharpness_entry(one: Loaded, found: Sharpness) -> dict[str, Any]:
    """One entry of `noisescale sharpness --json`."""
    training = one.checkpoint.training
    return {
        "checkpoint": str(one.path),
        "step": one.checkpoint.step,
        "learning_rate": training.learning_rate,
        "stable_sharpness": stable_sharpness(training),
        **found.to_dict(),
    }


def print_sharpness(entries: list[dict[str, Any]]) -> None:
    """A table of all checkpoints' quantities, then a sentence on each λ_max against 2/η."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False, soft_wrap=True)
    first = entries[0]
    matrix = "Gauss–Newton matrix" if first["matrix"] == "ggn" else "Hessian"
    share = "all" if first["num_examples"] == first["population_size"] else f"{first['num_examples']:,} of"
    console.print(
        f"{matrix} of the mean loss over {share} {first['population_size']:,} {first['split']} examples"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("step", "loss", "quantity"):
        table.add_column(name, justify="left" if name == "quantity" else "right", no_wrap=True)
    for name in ("value", "± stderr", "95 % interval", "residual"):
        table.add_column(name, justify="right", no_wrap=True)
    for entry in entries:
        labels = f"{entry['step']:,}", f"{entry['loss']:.4g}"
        for quantity in _quantities(entry):
            table.add_row(*labels, *quantity)
            labels = "", ""
        table.add_section()
    console.print(table)
    if first["num_examples"] < first["population_size"]:
        console.print(
            "Errors of eigenvalues are those of the subset of examples; those of the trace, the norm and the "
            "batch quantities are of their probes and batches alone, on these examples."
        )
    for entry in entries:
        if sentence := _verdict(entry):
            console.print(sentence)
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
        residual = f"{eigenvalue['residual']:.2g}" + ("" if eigenvalue["converged"] else " NOT CONVERGED")
        rows.append((NAMES[which] + (f" ({rank})" if rank > 1 else ""), *_numbers(eigenvalue), residual))
    size = entry["batch_size"]
    named = {
        "trace": "trace",
        "frobenius": "squared Frobenius norm",
        "batch_sharpness": f"batch sharpness, B = {size}",
        "gradient_noise_interaction": f"gradient-noise interaction, B = {size}",
    }
    rows += [(label, *_numbers(entry[name]), "") for name, label in named.items() if entry[name]]
    for phi in entry["phi"]:
        label = f"φ (%), {phi['space']} space, ε = {phi['epsilon']:g}"
        rows.append((label, f"{phi['value']:.4g}", "", f"after {phi['iterations']} iterations", ""))
    return rows


def _numbers(estimate: dict[str, Any]) -> tuple[str, str, str]:
    """Value, stderr and interval as text; an exact value has neither of the latter."""
    value, stderr = estimate["value"], estimate["stderr"]
    if stderr == 0:
        return f"{value:.5g}", "", ""
    if stderr is None:
        return f"{value:.5g}", "unknown", ""
    digits = max(0, 1 - math.floor(math.log10(stderr)))
    numbers = (f"{number:,.{digits}f}" for number in (value, stderr, estimate["low"], estimate["high"]))
    text = list(numbers)
    return text[0], text[1], f"{text[2]} – {text[3]}"


def _verdict(entry: dict[str, Any]) -> str | None:
    """λ_max beside the limit of stability of the learning rate, as far as its errors allow."""
    largest = next((found for found in entry["eigenvalues"] if found["which"] == "largest"), None)
    limit = entry["stable_sharpness"]
    if largest is None or limit is None:
        return None
    margin = largest["residual"]
    if largest["low"] is None or not largest["converged"]:
        return f"Step {entry['step']:,}: λ_max against the limit 2/η = {limit:.4g} cannot be judged."
    low, high = largest["low"] - margin, largest["high"] + margin
    side = side_of(limit, low=low, high=high)
    ratio = f"{largest['value'] / limit:.3g} ({low / limit:.3g}–{high / limit:.3g})"
    return (
        f"Step {entry['step']:,}: λ_max is {ratio} "
        f"times the limit of full-batch stability, 2/η = {limit:.4g} at lr {entry['learning_rate']:g}: "
        f"{side} the edge."
    )
