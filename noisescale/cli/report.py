"""Tables on stdout."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from noisescale.errors import MeasurementError, RunFolderError

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
        if "final_batch_size" in run:
            console.print(_adaptive(run))
    for run in summaries:
        if text := _tracked(run):
            console.print(text)
    for run in summaries:
        print(run["run"])


def _tracked(run: dict[str, Any]) -> str:
    """How the noise scale went, where it was tracked."""
    from noisescale.cli.noise_report import growth_text
    from noisescale.statistics.critical_batch.recommendation import recommend
    from noisescale.training.records.tables import read_noise

    title = f"B = {run['batch_size']}"
    try:
        rows = read_noise(Path(run["run"]))
        return f"{title}: {growth_text(recommend(pd.DataFrame(rows)).to_dict())}." if rows else ""
    except (MeasurementError, RunFolderError) as error:
        return f"{title}: {error}."


def _adaptive(run: dict[str, Any]) -> str:
    """What the adaptive batch size came to, and what is predicted of it."""
    text = f"The adaptive batch size ended at {run['final_batch_size']:,}."
    if (predicted := run["predicted"]) is None:
        return f"{text} B_simple was never resolved, so that nothing is predicted."
    return (
        f"{text} From B_simple, resolved at {100 * predicted['resolved_share']:.0f} % of the updates "
        f"(population: distribution), predicted: B_crit {predicted['critical_batch_size']:,.0f}, "
        f"γ {predicted['gain']:.3f}, {100 * predicted['steps_saved']:.1f} % fewer steps than the fixed batch "
        "size of as many examples."
    )


def numbers(estimate: dict[str, Any]) -> tuple[str, str, str]:
    """Value, stderr and interval as text; an exact value has neither of the latter, a bound no value."""
    value, stderr, low, high = (estimate[name] for name in ("value", "stderr", "low", "high"))
    if value is None:
        return ("not resolved", "", "" if low is None else f"> {low:,.4g}")
    if stderr == 0:
        return f"{value:,.5g}", "", ""
    if stderr is None:
        return f"{value:,.5g}", "unknown", ""
    digits = max(0, 1 - math.floor(math.log10(stderr)))
    if digits > 6:
        return f"{value:.5g}", f"{stderr:.2g}", f"{low:.5g} – {high:.5g}"
    text = [f"{number:,.{digits}f}" for number in (value, stderr, low, high)]
    return text[0], text[1], f"{text[2]} – {text[3]}"


def examples_text(entries: list[dict[str, Any]]) -> str:
    """On how many examples of how many, as far as the entries agree."""
    counts = {
        (entry["num_examples"], entry["population_size"])
        for entry in entries
        if not entry["reason"]
    }
    texts = [
        f"all {size:,}" if count == size else f"{count:,} of {size:,}"
        for count, size in sorted(counts)
    ]
    return " or ".join(texts)


def step_text(entry: dict[str, Any]) -> str:
    return "–" if entry["step"] is None else f"{entry['step']:,}"


def name_text(entry: dict[str, Any], entries: list[dict[str, Any]]) -> str:
    """What to call a checkpoint in a sentence among these."""
    if entry["step"] is None:
        return str(entry["checkpoint"])
    step = f"step {entry['step']:,}"
    several_runs = len({one["run"] for one in entries}) > 1
    return f"{entry['run']}, {step}" if several_runs else step.capitalize()


def _score(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
