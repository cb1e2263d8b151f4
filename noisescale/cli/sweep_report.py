"""What noisescale sweep-lr prints."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from noisescale.studies.stability_map.results import SweepResult

NAMES = {
    "lower": "lower",
    "gaussian": "Gaussian",
    "wu": "Wu",
    "upper": "upper",
    "lyapunov": "Lyapunov",
    "descent": "descent",
}


def print_sweep(result: SweepResult) -> None:
    """The measured edge beside the predicted ones, how well these meet it, and what the cells were."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    summary, boundary = result.summary, result.boundary
    curves = [name for name in NAMES if name in boundary]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (
        "batch size",
        "η_max",
        "95 % interval",
        "seeds",
        *(NAMES[name] for name in curves),
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in boundary.to_dict("records"):
        table.add_row(
            str(row["batch_size"]),
            _edge(row),
            _interval(row),
            str(row["num_seeds"]),
            *(_short(row[name]) for name in curves),
        )
    if summary["scores"]:
        table.add_section()
        found = summary["scores"]
        table.add_row(
            "cells right", "", "", "", *(_share(found[name]["cells_right"]) for name in curves)
        )
        table.add_row(
            "|log₂ error|", "", "", "", *(_short(found[name]["log2_error"]) for name in curves)
        )
    verb = "diverge" if result.config.start is None else "leave the minimum"
    console.print(
        f"η_max, the learning rate at which half of the seeds {verb}, and its predictions"
    )
    console.print(table)
    labels = ", ".join(f"{count} {label}" for label, count in summary["labels"].items() if count)
    console.print(f"{summary['num_cells']} cells: {labels or 'none finished'}.")
    training = result.config.training
    if training.optimizer != "sgd" or training.momentum or training.weight_decay:
        console.print(
            "No predicted edges: the predictions are of plain SGD, without momentum and weight decay."
        )
    if summary["constants"] is not None:
        constants = summary["constants"]
        console.print(
            f"Gauss–Newton matrix at the start: λ_max = {_short(constants['sharpness'])}, "
            f"2/λ_max = {_short(2 / constants['sharpness'])}, κ = {_short(constants['concentration'])}, "
            f"β/λ_max = {_short(constants['largest_example'] / constants['sharpness'])}, "
            f"tr/λ_max = {_short(constants['trace'] / constants['sharpness'])} "
            f"({constants['num_examples']:,} examples)."
        )


def sweep_record(result: SweepResult) -> dict[str, Any]:
    """The boundary and the summary for strict JSON."""
    rows = [
        {name: _number(value) for name, value in row.items()}
        for row in result.boundary.to_dict("records")
    ]
    return {"boundary": rows, "summary": result.summary}


def _edge(row: dict[Any, Any]) -> str:
    """η_max, or where beyond the rates tried it lies."""
    if math.isfinite(row["lr_max"]):
        return _short(row["lr_max"])
    if row["lr_max_low"] > 0:
        return f"> {_short(row['lr_max_low'])}"
    return f"< {_short(row['lr_max_high'])}" if row["lr_max_high"] < math.inf else "not found"


def _interval(row: dict[Any, Any]) -> str:
    low, high = row["lr_max_low"], row["lr_max_high"]
    return (
        "–"
        if math.isnan(low) or (low == 0 and math.isinf(high))
        else f"{_short(low)}–{_short(high)}"
    )


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"
