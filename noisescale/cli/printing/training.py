"""What noisescale train prints: its runs side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from noisescale.cli.printing.noise import growth_text
from noisescale.cli.printing.tables import Screen, plain_table, stdout_console
from noisescale.errors import MeasurementError, RunFolderError

# what may be left out, the least important first
LESS = (
    "ex/s",
    "test F1",
    "train acc",
    "train bits/char",
    "epochs",
    "train loss",
    "seconds",
    "steps",
    "95 % interval",
)
DIVERGED = (
    "A diverged model's outputs are nan, and argmax over nan returns class 0: every prediction is "
    "class 0, and the accuracy is that class's share."
)


def print_comparison(summaries: list[dict[str, Any]], console: Screen | None = None) -> None:
    """A row per run: what it was, how it ended, what it scored."""
    # a problem of one's own may have no test split
    held_out = next((split for split in ("test", "validation") if split in summaries[0]), "test")
    of_held_out = [
        f"{held_out.replace('validation', 'val')} {score}" for score in ("loss", "acc", "F1")
    ]
    # runs of earlier versions, and problems without classes, have no interval
    with_interval = any("accuracy_low" in (run.get(held_out) or {}) for run in summaries)
    if with_interval:
        of_held_out.insert(2, "95 % interval")
    scores: tuple[str, ...] = ("train loss", "train acc", *of_held_out)
    is_text = "bits_per_character" in summaries[0]["train"]
    if is_text:
        scores = ("train loss", "train bits/char", of_held_out[0], f"{held_out} bits/char")
    with_units = "units_per_example" in summaries[0]
    sizes = ("batch size", "tokens") if with_units else ("batch size",)
    table = plain_table(
        *(*sizes, "lr", "steps", "epochs", *scores, "seconds", "ex/s"),
        less=LESS,
        where="summary.json has them",
    )
    for run in summaries:
        table.add_row(
            *_sizes(run, with_units=with_units),
            f"{run['learning_rate']:g}",
            f"{run['steps']:,}",
            f"{run['epochs']:.3g}",
            *_scores(run, held_out, is_text=is_text, with_interval=with_interval),
            f"{run['seconds']:.1f}",
            f"{run['examples_per_second']:,.0f}",
        )
    console = console or stdout_console()
    first = summaries[0]
    named = first.get("problem")
    if named is None:
        data = (
            f"sequences of {first['context']} characters"
            if "context" in first
            else f"{first['pixel_scale']} pixels"
        )
        named = f"{first['dataset']}, {data}, {first['model']}"
        if (num_train := first.get("num_train")) is not None:
            named += f", {num_train:,} training examples"
        if "classes" in first:
            named += f", {first['classes']} classes"
        if "imbalance" in first:
            named += f", imbalance {first['imbalance']:g}"
        if "label_noise" in first:
            named += f", {100 * first['label_noise']:g} % wrong labels"
    if first.get("sampling") == "importance":
        named += ", drawn by importance"
    console.print(f"{named}, seed {first['seed']}")
    console.print(table)
    if with_interval:
        found = [run.get(held_out) or {} for run in summaries]
        counts = {each["num_examples"] for each in found if "accuracy_low" in each}
        count = " or ".join(f"{size:,}" for size in sorted(counts))
        console.print(
            f"Interval of the {held_out} accuracy: Wilson's, of its {count} examples for this "
            "model; other seeds differ too."
        )
    diverged = [run for run in summaries if run["diverged_at_step"] is not None]
    for run in diverged:
        console.print(f"B = {run['batch_size']} diverged at step {run['diverged_at_step']:,}.")
    if any(run["train"]["accuracy"] is not None for run in diverged):
        console.print(DIVERGED)
    for run in summaries:
        if "final_batch_size" in run:
            console.print(_adaptive(run))
    for run in summaries:
        if text := _tracked(run):
            console.print(text)


def _tracked(run: dict[str, Any]) -> str:
    """How the noise scale went, where it was tracked."""
    from noisescale.statistics.critical_batch.recommendation import recommend
    from noisescale.training.records.tables import read_noise

    title = f"B = {run['batch_size']}"
    try:
        rows = read_noise(Path(run["run"]))
        return f"{title}: {growth_text(recommend(pd.DataFrame(rows)))}." if rows else ""
    except (MeasurementError, RunFolderError) as error:
        return f"{title}: {error}."


def _adaptive(run: dict[str, Any]) -> str:
    """What the adaptive batch size came to, and what is predicted of it."""
    text = f"The adaptive batch size ended at {run['final_batch_size']:,}."
    if (predicted := run["predicted"]) is None:
        return f"{text} B_simple was never resolved, so that nothing is predicted."
    return (
        f"{text} From B_simple, resolved at {100 * predicted['resolved_share']:.0f} % of the "
        "updates (population: training), predicted: "
        f"B_crit {predicted['critical_batch_size']:,.0f}, γ {predicted['gain']:.3f}, "
        f"{100 * predicted['steps_saved']:.1f} % fewer steps than the fixed batch size of as many "
        "examples."
    )


def _sizes(run: dict[str, Any], *, with_units: bool) -> Iterator[str]:
    """The cells of a run's batch size, in examples and in their tokens."""
    size = run["batch_size"]
    yield str(size)
    if with_units:
        yield f"{size * run['units_per_example']:,.0f}" if isinstance(size, int) else "–"


def _scores(
    run: dict[str, Any], held_out: str, *, is_text: bool, with_interval: bool
) -> Iterator[str]:
    """The cells of a run's scores, on the training and a held-out split."""
    names = ("loss", "bits_per_character") if is_text else ("loss", "accuracy")
    of_held_out = names if is_text else ("loss", "accuracy", "f1")
    for split, wanted in (("train", names), (held_out, of_held_out)):
        for name in wanted:
            if name == "f1" and with_interval:  # after the accuracy
                yield _interval(run.get(split))
            yield _score(run.get(split), name)


def _score(scores: dict[str, Any] | None, name: str) -> str:
    """A score; a dash where there is no such split, or no class to score."""
    if scores is None or (scores[name] is None and name in ("accuracy", "f1")):
        return "–"
    return "not finite" if scores[name] is None else f"{scores[name]:.4f}"


def _interval(scores: dict[str, Any] | None) -> str:
    """The ends of the accuracy's interval; a dash where there are none."""
    if scores is None or "accuracy_low" not in scores:
        return "–"
    return f"{scores['accuracy_low']:.4f}–{scores['accuracy_high']:.4f}"
