"""What a page shows of a run, of a study and of a measurement: the answer, tables, pictures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from noisescale.cli.artefacts import commands
from noisescale.cli.artefacts.figures import figures, table_title
from noisescale.cli.artefacts.page import Section
from noisescale.cli.artefacts.sources import kind_of, read_entries, read_table, table_kind
from noisescale.cli.artefacts.tables import (
    cell_text,
    cells_so_far,
    layers_table,
    noise_table,
    plain_frame,
    sharpness_table,
    sizes_table,
)
from noisescale.errors import MeasurementError, NoisescaleError, RunFolderError
from noisescale.statistics.display import counted
from noisescale.statistics.estimate import from_record, written_out
from noisescale.training.records.folder import (
    CONFIG,
    SUMMARY,
    parse_config,
    read_json,
    read_summary,
    what_to_do,
)
from noisescale.training.records.tables import (
    read_batch_size,
    read_metrics,
    read_noise,
    read_noise_layers,
    read_sharpness,
)

if TYPE_CHECKING:
    from noisescale.training.config import TrainConfig

MEANINGS = {
    "run": "A training run: what was trained and how, how it ended, and what was measured on "
    "the way.",
    "comparison": "Several runs side by side: their settings, how they ended, and their losses.",
    "sweep": "A map of stability: at which learning rates training diverges at each batch size, "
    "measured, and predicted from the curvature.",
    "critical batch": "The critical batch size, measured: up to B_crit, larger batches save steps "
    "nearly in proportion; beyond it they cost examples.",
    "branches": "The critical batch size at one checkpoint: batch sizes that go on from it, "
    "compared after as many examples.",
    "recommendation": "Which batch size and learning rate to use, by a few short runs and the "
    "noise scale along one of them.",
    "noise": "The noise of the gradient at one or more checkpoints: B_simple is about the batch "
    "size below which doubling the batch halves the steps.",
    "sharpness": "The curvature of the loss at one or more checkpoints: its eigenvalues, and what "
    "they say of stability.",
    "table": "A table, and the picture of it.",
}
UNFINISHED = "Unfinished: this is what there is so far. The command that made it goes on with it."


def show(section: Section, path: Path) -> None:
    """Fills a section with one of the `sources`.

    NoisescaleError, and what `DAMAGED` names, where there is nothing to show, or it is damaged;
    what was shown before that stays.
    """
    section.title = path.name or str(path)
    kind = kind_of(path)
    section.meaning = MEANINGS[kind]
    SHOWN[kind](section, path)


def title_of(sections: list[Section]) -> str:
    """The title of a page of these."""
    if len(sections) == 1:
        return sections[0].title
    return f"{counted(len(sections), 'result')} of noisescale"


def _run(section: Section, folder: Path) -> None:
    from noisescale.training.records.pictures import run_title

    section.title = run_title(folder)
    config = read_json(folder / CONFIG)
    problem, training = (None, None) if config is None else parse_config(folder, config)
    metrics = read_metrics(folder)
    finished = (folder / SUMMARY).exists()
    summary: dict[str, Any] = read_summary(folder) if finished else {}
    if not finished:
        section.warn(UNFINISHED)
    section.say_first(_how_it_ended(summary, metrics))
    if training is not None:
        _advise(section, folder, training)
    if finished:
        _compare(section, [folder])
    tracked = (
        ("The noise scale along the run", read_noise(folder), noise_table),
        ("The batch size and the noise it follows", read_batch_size(folder), sizes_table),
        ("Sharpness along the run", read_sharpness(folder), sharpness_table),
        ("The noise scale by parameter, at the end", read_noise_layers(folder), layers_table),
        ("Metrics by epoch", metrics, plain_frame),
    )
    _draw(section, folder)
    for title, rows, table in tracked:
        if rows:
            section.details(title, table(pd.DataFrame(rows)))
    if problem is not None and training is not None:
        _settings(section, {**problem.to_dict(), **_used(training)})
        command = commands.train_command(folder, problem, training)
        measured = read_noise(folder) or read_sharpness(folder)
        _close(section, folder, summary, command)
        if command is not None and measured:
            section.print("With --measure-noise-every or --measure-sharpness-every as measured.")


def _advise(section: Section, folder: Path, training: TrainConfig) -> None:
    """What the noise tracked along a run says of the batch size."""
    from noisescale.studies.recommend.checkpoint import advise_on_run

    try:
        found = advise_on_run(folder, training, in_use=None)
    except MeasurementError as error:
        section.print(f"Note: no batch size is recommended: {error}.")
        return
    if found is not None:
        advice, recommendation = found
        section.advice(advice)
        for note in recommendation.warnings:
            section.print(f"Note: {note}.")


def _how_it_ended(summary: dict[str, Any], metrics: list[dict[Any, Any]]) -> str:
    """A run's result in a sentence."""
    if summary.get("diverged_at_step") is not None:
        return f"Diverged at step {summary['diverged_at_step']:,}."
    if summary:
        rows = {name: summary[name] for name in ("test", "validation", "train") if name in summary}
        length = f"{summary['steps']:,} steps"
    elif metrics:
        rows = {row["split"]: row for row in metrics}  # the last of each
        length = f"{metrics[-1]['step']:,} steps so far"
    else:
        return "No epoch has been evaluated yet."
    split = next(name for name in ("test", "validation", "train") if name in rows)
    texts = [
        f"{name} {rows[split][name]:.4g}"
        for name in ("loss", "bits_per_character", "accuracy")
        if (value := rows[split].get(name)) is not None and math.isfinite(value)
    ]
    return f"After {length}: {split} {', '.join(texts) or 'loss not finite'}."


def _comparison(section: Section, path: Path) -> None:
    from noisescale.training.records.comparison import compared_runs

    folders = compared_runs(path)
    section.title = f"{counted(len(folders), 'run')} compared"
    _compare(section, folders)
    _draw(section, path)


def _compare(section: Section, folders: list[Path]) -> None:
    from noisescale.cli.printing.training import print_comparison

    print_comparison([{"run": str(folder), **read_summary(folder)} for folder in folders], section)


def _sweep(section: Section, folder: Path) -> None:
    from noisescale.cli.printing.stability_map import print_sweep
    from noisescale.studies.stability_map.pictures import sweep_title
    from noisescale.studies.stability_map.results import read_sweep

    section.title = f"Stable learning rates: {sweep_title(folder)}"
    if (result := read_sweep(folder)) is None:
        _so_far(section, folder)
        return
    section.advice(result.advice)
    section.answer = _edges(result.boundary)
    print_sweep(replace(result, advice=None), section)
    _draw(section, folder)
    section.details("Every cell", plain_frame(result.cells))
    _settings(section, result.summary)
    _close(section, folder, result.summary, commands.sweep_command(folder, result))


def _edges(boundary: pd.DataFrame) -> str:
    """The ends of the measured edge in words."""
    from noisescale.studies.stability_map.results import edge_cells

    rows = [edge_cells(row) for row in boundary.to_dict("records")]
    chosen = dict.fromkeys([rows[0], rows[-1]])
    return "η_max " + ", ".join(
        f"{edge} ({interval}) at B = {size}" for size, edge, interval, *_ in chosen
    )


def _critical_batch(section: Section, folder: Path) -> None:
    from noisescale.studies.critical_batch.config import BRANCH_SETTINGS

    if (folder / BRANCH_SETTINGS).exists():
        section.meaning = MEANINGS["branches"]
        _branches(section, folder)
    else:
        _front(section, folder)


def _front(section: Section, folder: Path) -> None:
    from noisescale.cli.printing.critical_batch import print_fits
    from noisescale.studies.critical_batch.config import SETTINGS
    from noisescale.studies.critical_batch.pictures import study_title
    from noisescale.studies.critical_batch.results import read_front

    section.title = f"Critical batch size: {study_title(folder)}"
    if (result := read_front(folder)) is None:
        _so_far(section, folder)
        return
    if result.summary is None and (folder / SETTINGS).exists():
        section.warn(UNFINISHED)
    section.advice(result.advice)
    print_fits(replace(result, advice=None), section)
    _draw(section, folder)
    section.details("Best learning rates", plain_frame(result.rates))
    section.details("Every run and goal", plain_frame(result.table))
    summary = result.summary or {}
    _settings(section, summary)
    _close(section, folder, summary, commands.front_command(folder, result))


def _branches(section: Section, folder: Path) -> None:
    from noisescale.cli.printing.critical_batch import print_branches
    from noisescale.studies.critical_batch.branches import read_branches
    from noisescale.studies.critical_batch.config import BRANCH_SETTINGS

    section.title = "Critical batch size from one checkpoint on"
    _identity(folder / BRANCH_SETTINGS)
    if (result := read_branches(folder)) is None:
        _so_far(section, folder)
        return
    critical = result.critical_batch_size.text(number=written_out, unknown="not resolved")
    section.say_first(f"Critical batch size there: {critical}.")
    print_branches(result, section)
    _draw(section, folder)
    section.details("Every branch", plain_frame(result.table))
    _settings(section, result.summary)
    _close(section, folder, result.summary, commands.branch_command(folder, result))


def _recommendation(section: Section, folder: Path) -> None:
    from noisescale.cli.printing.recommend import print_advice
    from noisescale.problems.config import parse_problem
    from noisescale.studies.recommend.config import SETTINGS
    from noisescale.studies.recommend.results import TRIED, read_result, title_of as study_title

    problem = parse_problem(_identity(folder / SETTINGS)["problem"])
    section.title = study_title(problem)
    if (result := read_result(folder)) is None:
        _so_far(section, folder)
        return
    section.advice(result.advice)
    print_advice(None, result.notes, section)
    _draw(section, folder)
    section.heading("Learning rates tried")
    section.print(
        "The loss of each after as many steps as all have in common; inf: it diverged, or did not "
        "train."
    )
    section.print(plain_frame(pd.read_csv(folder / TRIED)))
    section.details("The noise scale along the run", noise_table(pd.DataFrame(read_noise(folder))))
    _settings(section, result.summary)
    command = commands.recommend_command(folder, result.summary, problem)
    _close(section, folder, result.summary, command)


def _noise(section: Section, path: Path) -> None:
    from noisescale.cli.artefacts.stored import stored_noise
    from noisescale.cli.printing.noise import print_noise
    from noisescale.plots.style import measured_title

    entries = read_entries(path)
    section.title = f"Gradient noise: {measured_title(entries)}"
    reports = stored_noise(entries)
    results = [each.measured.result for each in reports if each.measured.result is not None]
    if not results:
        raise NoisescaleError(f"nothing was measured: {entries[0]['reason']}")
    last = results[-1]
    text = f"B_simple {last.simple}"
    if len(results) > 1:
        text = f"At the last checkpoint: {text}"
    section.say_first(text if last.full is None else f"{text}; B_noise {last.full}")
    print_noise(reports, section)
    from noisescale.statistics.critical_batch.advice import Advice

    for entry in entries:
        if (recommended := entry["recommendation"]) is not None:
            section.heading(f"For another run like {entry['run']}")
            critical = from_record({"stderr": None, **recommended["critical_batch_size"]})
            section.print(f"B_crit {critical}, by the noise scale along it.")
            if entry.get("advice") is None:
                section.print(_sizes(recommended))
            else:
                section.advice(Advice.from_dict(entry["advice"]))
            for warning in recommended["warnings"]:
                section.print(f"Note: {warning}.")
    _draw(section, path)
    section.commands("Made with", [commands.noise_command(path, entries)])


def _sizes(recommended: dict[str, Any]) -> Any:
    """The batch sizes that a tracked run recommends."""
    from noisescale.cli.printing.tables import plain_table
    from noisescale.statistics.critical_batch.recommendation import SIZE_HEADINGS, size_cells

    table = plain_table(*SIZE_HEADINGS, words=("aim",))
    for row in recommended["sizes"]:
        table.add_row(*size_cells(row))
    return table


def _sharpness(section: Section, path: Path) -> None:
    from noisescale.cli.artefacts.stored import stored_sharpness
    from noisescale.cli.printing.sharpness import print_sharpness
    from noisescale.plots.sharpness import has_picture
    from noisescale.plots.style import measured_title

    entries = read_entries(path)
    section.title = f"Sharpness: {measured_title(entries)}"
    reports = stored_sharpness(entries)
    results = [each.measured.result for each in reports if each.measured.result is not None]
    if not results:
        raise NoisescaleError(f"nothing was measured: {entries[0]['reason']}")
    largest = results[-1].largest
    if largest is not None:
        text = f"λ_max {largest.value}" + ("" if largest.converged else ", not converged")
        section.say_first(f"At the last checkpoint: {text}" if len(results) > 1 else text)
    print_sharpness(reports, section)
    if has_picture(entries):
        _draw(section, path)
    section.commands("Made with", [commands.sharpness_command(path, entries)])


def _table(section: Section, path: Path) -> None:
    table = read_table(path)
    section.title = table_title(path).replace("\n", ", ")
    section.meaning = f"{MEANINGS['table']} {counted(len(table), 'row')}."
    _draw(section, path)
    if table_kind(table) != "losses":  # of up to thousands of rows
        section.details("The table", plain_frame(table))


def _identity(path: Path) -> dict[str, Any]:
    """What all runs of a study have in common; RunFolderError where that is damaged."""
    identity = read_json(path) or {}
    if not isinstance(identity.get("problem"), dict):
        raise RunFolderError(f"{path} says no problem: {what_to_do(path)}")
    return identity


def _so_far(section: Section, folder: Path) -> None:
    """The runs that a study has finished."""
    section.warn(UNFINISHED)
    table, number = cells_so_far(folder)
    section.say_first(f"{counted(number, 'run')} finished so far.")
    if number:
        section.print(table)


def _draw(section: Section, path: Path) -> None:
    for name, figure in figures(path):
        section.figure(figure, f"{name}: {section.title}")


def _settings(section: Section, values: Mapping[str, Any]) -> None:
    """What was asked for: what is plain of a record, without what came of it."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if name in ("problem", "training", "horizon") and isinstance(value, dict):
            flat |= value
        elif name in SETTINGS or not isinstance(value, dict | list):
            flat[name] = value
    shown = {
        name.replace("_", " "): ", ".join(map(cell_text, value))
        if isinstance(value, list)
        else cell_text(value)
        for name, value in flat.items()
        if value is not None and name not in RESULTS
    }
    if shown:
        section.listing("Settings", shown)


# of a summary: lists that are settings, and plain values that are not
SETTINGS = ("batch_sizes", "goals")
RESULTS = (
    *("seconds", "finished", "reason", "resolved", "at_base", "num_not_monotone", "definition"),
    *("start_loss", "num_cells", "num_runs", "bisected"),
)


def _used(training: TrainConfig) -> dict[str, Any]:
    """The fields of a training, the adaptive ones only where they are used."""
    fields = dataclasses.asdict(training)
    return fields | (fields.pop("adaptive") or {})


def _close(section: Section, folder: Path, summary: dict[str, Any], command: str | None) -> None:
    """What failed, the environment, and the command."""
    for failure in summary.get("failures", ()):
        section.warn(f"Failed: {failure}")
    if summary:
        section.listing(
            "Environment",
            {
                "finished": summary.get("finished", "–"),
                "seconds": f"{summary['seconds']:.1f}",
                **summary["environment"],
            },
        )
    noted = commands.experiment_commands(folder)
    if made := [*noted, *([] if command is None else [command])]:
        section.commands("Made with", made)
    else:
        section.print("Made in Python, or by a study as one of its runs.")


SHOWN: dict[str, Callable[[Section, Path], None]] = {
    "run": _run,
    "comparison": _comparison,
    "sweep": _sweep,
    "critical batch": _critical_batch,
    "recommendation": _recommendation,
    "noise": _noise,
    "sharpness": _sharpness,
    "table": _table,
}
