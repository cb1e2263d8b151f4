"""Several runs side by side: a table that says where they are, and their losses in one picture."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from noisescale.errors import RunFolderError
from noisescale.training.records.folder import (
    CONFIG,
    parse_config,
    read_json,
    read_summary,
    write_atomically,
    write_table,
)
from noisescale.training.records.names import describe_problem, digest
from noisescale.training.records.tables import read_losses, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMPARISON = "comparison.csv"
SCORES = ("loss", "accuracy", "accuracy_low", "accuracy_high")  # of each split
# of each run's summary.json, in this order
COMPARED = (
    *("dataset", "model", "batch_size", "learning_rate", "seed"),
    *("steps", "epochs", "diverged_at_step"),
)
SCORED = ("train", "validation", "test")


def comparison_name(folders: list[Path]) -> str:
    """The name of these runs' comparison in a folder of many: that of no other runs."""
    return f"comparison-{digest({'runs': [folder.name for folder in folders]})}.csv"


def write_comparison(folders: list[Path], table: Path) -> None:
    """Writes the index of several finished runs, a row for each: settings, length, final scores.

    Args:
        folders: of the runs.
        table: the file; its column run names the folders as seen from it, so that all can be moved
            together.
    """
    rows = []
    for folder in folders:
        summary = read_summary(folder)
        row: dict[str, Any] = {"run": Path(os.path.relpath(folder, table.parent)).as_posix()}
        row |= {name: summary.get(name) for name in COMPARED}
        for split in SCORED:
            scores = summary.get(split) or {}
            row |= {f"{split}_{score}": scores.get(score) for score in SCORES}
        rows.append(row | {"seconds": summary.get("seconds")})
    write_table(table, pd.DataFrame(rows))


def draw_comparison(table: Path) -> Path:
    """The file drawn: the losses of the runs that a comparison.csv names, in one picture.

    Args:
        table: see `write_comparison`.

    Returns:
        The path of the picture, beside the table and of its name.

    Raises:
        RunFolderError: the table is none, or a run is missing or damaged.
    """
    from noisescale.plots.style import image  # matplotlib takes 0.8 s to load

    path = table.with_suffix(".png")
    write_atomically(path, image(figure_of(table)))
    return path


def compared_runs(table: Path) -> list[Path]:
    """The folders of the runs that a comparison.csv names; RunFolderError where it names none."""
    rows = pd.read_csv(table)
    if "run" not in rows or rows.empty:
        raise RunFolderError(f"{table} names no runs: it takes a column run with their folders")
    return [table.parent / str(run) for run in rows["run"]]


def figure_of(table: Path) -> Figure:
    """The figure that `draw_comparison` draws."""
    from noisescale.plots.training import RunCurves, comparison_figure  # loads matplotlib

    folders = compared_runs(table)
    configs = [_config(folder) for folder in folders]
    problems = {describe_problem(problem) for problem, _ in configs}
    rates = {training.learning_rate for _, training in configs}
    seeds = {training.seed for _, training in configs}
    runs = []
    for folder, (problem, training) in zip(folders, configs, strict=True):
        label = f"B = {training.batch_size}"
        if len(rates) > 1:
            label += f", learning rate {training.learning_rate:g}"
        if len(seeds) > 1:
            label += f", seed {training.seed}"
        if len(problems) > 1:
            label += f", {describe_problem(problem)}"
        metrics, diverged = pd.DataFrame(read_metrics(folder)), read_summary(folder)
        if metrics.empty:
            raise RunFolderError(f"{folder} has no metrics.csv: it cannot be compared")
        at_step = diverged["diverged_at_step"]
        runs.append(RunCurves(label, metrics, read_losses(folder), at_step))
    title = problems.pop() if len(problems) == 1 else "Several problems"
    if len(rates) == 1:
        title += f", learning rate {rates.pop():g}"
    return comparison_figure(runs, title=f"{title}: {len(runs)} runs")


def _config(folder: Path) -> Any:
    """The configurations of a run; RunFolderError where there is none."""
    config = read_json(folder / CONFIG)
    if config is None:
        raise RunFolderError(f"{folder} is no run's folder any more: it has no {CONFIG}")
    return parse_config(folder, config)
