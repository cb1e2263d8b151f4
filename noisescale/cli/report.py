"""Tables on stdout."""

from __future__ import annotations

import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

DIVERGED = (
    "A diverged model's outputs are nan, and argmax over nan returns class 0: every prediction is class 0, "
    "and the accuracy is that class's share."
)


def print_comparison(summaries: list[dict[str, Any]]) -> None:
    """A row per run: what it was, how it ended, what it scored; the run folders last."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    scores = ("train loss", "train acc", "test loss", "test acc", "test F1")
    for name in ("batch size", "lr", "steps", "epochs", *scores, "seconds", "ex/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in summaries:
        table.add_row(
            str(run["batch_size"]),
            f"{run['learning_rate']:g}",
            f"{run['steps']:,}",
            f"{run['epochs']:.3g}",
            _score(run["train"]["loss"]),
            _score(run["train"]["accuracy"]),
            _score(run["test"]["loss"]),
            _score(run["test"]["accuracy"]),
            _score(run["test"]["f1"]),
            f"{run['seconds']:.1f}",
            f"{run['examples_per_second']:,.0f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    first = summaries[0]
    console.print(
        f"{first['dataset']}, {first['pixel_scale']} pixels, {first['model']}, seed {first['seed']}"
    )
    console.print(table)
    diverged = [run for run in summaries if run["diverged_at_step"] is not None]
    for run in diverged:
        console.print(f"B = {run['batch_size']} diverged at step {run['diverged_at_step']:,}.")
    if diverged:
        console.print(DIVERGED)
    for run in summaries:
        print(run["run"])


def _score(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
