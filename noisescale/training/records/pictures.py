"""The pictures of a run, drawn from the tables in its folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from noisescale.plots.noise import batch_size_figure, noise_growth_figure
from noisescale.plots.sharpness import sharpness_figure
from noisescale.plots.style import image
from noisescale.plots.training import confusion_figure, curves_figure
from noisescale.training.records.folder import (
    CONFIG,
    SUMMARY,
    parse_config,
    read_json,
    read_summary,
    write_atomically,
)
from noisescale.training.records.names import describe_problem, describe_training
from noisescale.training.records.tables import (
    read_batch_size,
    read_confusion,
    read_losses,
    read_metrics,
    read_noise,
    read_sharpness,
)


def draw_pictures(folder: Path, *, out: Path | None = None, format: str = "png") -> list[Path]:
    """The files drawn: a picture of every table that a run has left, finished or not.

    Args:
        folder: of the run; only its tables and its summary.json are read.
        out: where the pictures go, made where it is missing; None: beside the tables.
        format: "png", "pdf" or "svg", which also ends the files' names.

    Returns:
        The paths of the pictures of curves, confusion, sharpness, noise and batch_size, as far as
        there are tables for them; none for a folder without a table.

    Raises:
        RunFolderError: where a table or the summary is damaged.
    """
    return save_figures(figures(folder), out or folder, format=format)


def save_figures(figures: Iterable[tuple[str, Figure]], folder: Path, *, format: str) -> list[Path]:
    """Writes figures into a folder, each under its name; the paths."""
    paths = []
    for name, figure in figures:
        paths.append(folder / f"{name}.{format}")
        write_atomically(paths[-1], image(figure, format))
    return paths


def figures(folder: Path) -> Iterator[tuple[str, Figure]]:
    """Each picture's name and the picture, one of `PICTURES` for every table there is."""
    title, diverged = _title_and_divergence(folder)
    if rows := read_metrics(folder):
        figure = curves_figure(
            pd.DataFrame(rows),
            title=title,
            losses=read_losses(folder),
            diverged_at_step=diverged,
        )
        yield "curves", figure
    if rows := read_confusion(folder):
        splits = {row["split"] for row in rows}
        split = next(name for name in ("test", "validation", "train") if name in splits)
        figure = confusion_figure(
            pd.DataFrame(rows), split=split, title=f"{title}, {split} examples"
        )
        yield "confusion", figure
    if rows := read_sharpness(folder):
        yield "sharpness", sharpness_figure(pd.DataFrame(rows), title=title)
    if rows := read_noise(folder):
        yield "noise", noise_growth_figure(pd.DataFrame(rows), title=title)
    if rows := read_batch_size(folder):
        yield "batch_size", batch_size_figure(pd.DataFrame(rows), title=title)


def _title_and_divergence(folder: Path) -> tuple[str, int | None]:
    """What is trained and how, and for how long; the step at which it diverged, None for none."""
    name = run_title(folder)
    if not (folder / SUMMARY).exists():
        return f"{name}\nunfinished", None
    summary = read_summary(folder)
    length = f"{summary['steps']:,} steps"
    if (epochs := summary.get("epochs")) is not None:
        length += f", {epochs:.3g} {'epoch' if epochs == 1 else 'epochs'}"
    diverged = summary["diverged_at_step"]
    return f"{name}\n{length}", diverged


def run_title(folder: Path) -> str:
    """What is trained in a run's folder and how; the folder's name where it does not say."""
    config = read_json(folder / CONFIG)
    if config is None:
        return folder.absolute().name
    problem, training = parse_config(folder, config)
    return f"{describe_problem(problem)}, {describe_training(training)}"
