"""noisescale plot."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from noisescale.cli.help import Command
from noisescale.cli.options import FOLDER, PICTURES
from noisescale.errors import NoisescaleError, RunFolderError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FORMATS = tuple(suffix.removeprefix(".") for suffix in PICTURES)
# What a folder holds first of all, before any table, or at the latest
STABILITY_MAP = ("sweep.json", "cells.csv")
CRITICAL_BATCH = ("critical_batch.json", "steps_to_goal.csv", "branches.json", "branches.csv")
RUN = ("config.json", "metrics.csv")
COMPARISON = "comparison*.csv"  # beside the runs that it compares
# The columns by which a table is known whatever its file is called; the first that fits
TABLES = {
    "comparison": {"run", "batch_size", "learning_rate", "steps", "diverged_at_step"},
    "losses": {"step", "epoch", "num_steps", "loss", "smallest", "largest"},
    "curves": {"epoch", "split", "loss", "accuracy"},
    "confusion": {"split", "target", "predicted", "count"},
    "sharpness": {"step", "largest_eigenvalue", "converged", "batch_sharpness", "stable_sharpness"},
    "noise": {"step", "loss", "simple", "simple_low", "simple_high", "full"},
    "batch_size": {"epoch", "batch_size", "learning_rate", "simple", "simple_low", "simple_high"},
    "map": {"batch_size", "learning_rate", "seed", "label", "unstable", "test_accuracy", "error"},
    "pareto": {"batch_size", "steps"},
}
ALLOWED = (
    "give the folder of a run, a sweep, a critical batch size or branches, or a folder of such; "
    "a JSON file that measure-noise or sharpness printed with --json; or one of the tables "
    "metrics.csv, losses.csv, confusion.csv, sharpness.csv, noise.csv, batch_size.csv, "
    "comparison.csv, cells.csv and steps_to_goal.csv"
)


@click.command(
    cls=Command,
    short_help="Draw the pictures of runs, studies, measurements and tables.",
    epilog="""\b
Examples:
  noisescale plot runs/NAME-KEY                       a run's, finished or not
  noisescale plot runs --format pdf --out pictures    those of all runs and studies in a folder
  noisescale plot sweep                               a sweep's map
  noisescale sharpness runs/NAME-KEY --density --json > sharpness.json
  noisescale plot sharpness.json                      what was measured, sharpness.png
  noisescale plot runs/NAME-KEY/noise.csv --format svg
""",
)
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    metavar="PATH...",
    type=click.Path(path_type=Path, exists=True),
)
@click.option(
    "--format", type=click.Choice(FORMATS), default="png", show_default=True, help="Of the files."
)
@click.option(
    "--out",
    type=FOLDER,
    help="Where the pictures go; of several folders, into folders of the same names in there.  "
    "[default: beside the data]",
)
def plot(paths: tuple[Path, ...], format: str, out: Path | None) -> None:
    """Draw, or draw again, the pictures of what the other commands have left.

    A PATH is the folder of a run, of sweep-lr or of critical-batch, finished or not, or a folder
    of such; a JSON file that measure-noise or sharpness printed with --json; or a single table. A
    file's picture has its name. Each picture's path is printed. A PATH that cannot be drawn does
    not stop the others.
    """
    failures = []
    sources = []
    for path in paths:
        sources_there = list(_sources(path))
        sources += sources_there
        if not sources_there:
            failures.append(f"{path}: nothing to draw in it; {ALLOWED}")
    common = _common_folder(sources)
    for source in sources:
        folder = source if source.is_dir() else source.parent
        # one source's pictures lie in --out itself, those of several as their sources to each other
        target = None if out is None else out / os.path.relpath(folder.absolute(), common)
        try:
            for picture in _draw(source, out=target, format=format):
                click.echo(picture)
        except NoisescaleError as error:
            failures.append(f"{source}: {error}")
    if failures:
        raise NoisescaleError("\n".join(failures))


def _sources(path: Path) -> Iterator[Path]:
    """The folders and files drawn each by itself: `path`, or the runs and studies below it."""
    if not path.is_dir() or _holds(path, *STABILITY_MAP, *CRITICAL_BATCH, *RUN):
        yield path
        return
    yield from sorted(path.glob(COMPARISON))
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and not entry.name.startswith("."):
            yield from _sources(entry)


def _holds(folder: Path, *names: str) -> bool:
    return any((folder / name).exists() for name in names)


def _common_folder(sources: list[Path]) -> Path:
    """The folder that all sources lie in; a single folder is its own."""
    if len(sources) == 1 and sources[0].is_dir():
        return sources[0].absolute()
    return Path(os.path.commonpath([source.absolute().parent for source in sources] or [Path("/")]))


def _draw(source: Path, *, out: Path | None, format: str) -> list[Path]:
    """Draws one folder or file, into `out` or, None, beside its data; the pictures' paths."""
    from noisescale.plots.style import image
    from noisescale.training.records.folder import write_atomically

    if source.is_dir():
        return _draw_folder(source, out=out, format=format)
    if source.suffix == ".csv" and _kind(_read_table(source)) == "comparison":
        from noisescale.training.records.comparison import draw_comparison

        return [draw_comparison(source, out=out, format=format)]
    figure = _measurements_figure(source) if source.suffix == ".json" else _table_figure(source)
    path = (out or source.parent) / f"{source.stem}.{format}"
    write_atomically(path, image(figure, format))
    return [path]


def _draw_folder(folder: Path, *, out: Path | None, format: str) -> list[Path]:
    if _holds(folder, *STABILITY_MAP):
        from noisescale.studies.stability_map.pictures import draw_pictures
    elif _holds(folder, *CRITICAL_BATCH):
        from noisescale.studies.critical_batch.pictures import draw_pictures
    else:
        from noisescale.training.records.pictures import draw_pictures
    if not (paths := draw_pictures(folder, out=out, format=format)):
        raise RunFolderError("nothing to draw yet: it has no table")
    return paths


def _measurements_figure(path: Path) -> Figure:
    """What `measure-noise --json` or `sharpness --json` printed, as a figure."""
    from noisescale.plots.noise import noise_figure
    from noisescale.plots.sharpness import has_picture, measurements_figure

    try:
        entries = json.loads(path.read_bytes())
    except ValueError as error:
        raise NoisescaleError(f"no valid JSON ({error}); {ALLOWED}") from error
    measured = (
        isinstance(entries, list) and entries and all(isinstance(entry, dict) for entry in entries)
    )
    keys = set(entries[0]) if measured else set()
    if {"run", "step", "reason", "eigenvalues", "density", "phi"} <= keys:
        if not has_picture(entries):
            raise NoisescaleError(
                "one checkpoint's trace alone makes no picture: measure it with --top, --bottom, "
                "--density, --phi or --batch-sharpness"
            )
        return measurements_figure(entries)
    if {"run", "step", "reason", "simple", "full", "top_examples"} <= keys:
        if all(entry["reason"] for entry in entries):
            raise NoisescaleError(f"nothing was measured: {entries[0]['reason']}")
        return noise_figure(entries)
    raise NoisescaleError(f"no measurements of measure-noise or sharpness; {ALLOWED}")


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, keep_default_na=False, na_values=["nan"], dtype={"reason": str})
    except ValueError as error:  # no table, or no text at all
        raise NoisescaleError(f"no table ({error}); {ALLOWED}") from error


def _kind(table: pd.DataFrame) -> str | None:
    """Which picture a table makes, by its columns; None: none."""
    return next((kind for kind, columns in TABLES.items() if columns <= set(table.columns)), None)


def _table_figure(path: Path) -> Figure:
    """A single table as a figure, which its columns choose."""
    table = _read_table(path)
    kind = _kind(table)
    if kind is None:
        raise NoisescaleError(f"there is no picture of a table with these columns; {ALLOWED}")
    if table.empty:
        raise NoisescaleError("nothing to draw yet: it has no rows")
    try:
        return _figure(kind, path, table)
    except (KeyError, TypeError, ValueError) as error:
        raise NoisescaleError(f"damaged ({error}): it cannot be drawn as {kind}") from error


def _title(path: Path) -> str:
    """What a table is of, by the settings beside it, and its name."""
    from noisescale.training.records.pictures import run_title

    folder = path.absolute().parent
    if _holds(folder, STABILITY_MAP[0]):
        from noisescale.studies.stability_map.pictures import sweep_title

        return f"{sweep_title(folder)}\n{path.name}"
    if _holds(folder, CRITICAL_BATCH[0]):
        from noisescale.studies.critical_batch.pictures import study_title

        return f"{study_title(folder)}\n{path.name}"
    return f"{run_title(folder)}\n{path.name}" if _holds(folder, RUN[0]) else path.name


def _figure(kind: str, path: Path, table: pd.DataFrame) -> Figure:
    from noisescale.plots.noise import batch_size_figure, noise_growth_figure
    from noisescale.plots.sharpness import sharpness_figure
    from noisescale.plots.training import confusion_figure, curves_figure, losses_figure

    title = _title(path)
    match kind:
        case "curves":
            return curves_figure(table, title=title)
        case "losses":
            return losses_figure(table, title=title)
        case "confusion":
            splits = list(table["split"])
            split = "test" if "test" in splits else splits[-1]
            return confusion_figure(table, split=split, title=f"{title}, {split} examples")
        case "sharpness":
            return sharpness_figure(table, title=title)
        case "noise":
            if "seed" in table:  # of the several runs beside a critical batch size
                table = table.assign(run="seed " + table["seed"].astype(str))
            return noise_growth_figure(table, title=title)
        case "batch_size":
            return batch_size_figure(table, title=title)
        case "map":
            return _map_figure(table, title=title)
    return _pareto_figure(path, title=title)


def _map_figure(cells: pd.DataFrame, *, title: str) -> Figure:
    """The map of a sweep, its edges measured from the cells alone, without predictions."""
    from noisescale.plots.stability_map import map_figure
    from noisescale.studies.stability_map.tables import boundary_table

    return map_figure(cells, boundary_table(cells, {}), title=title)


def _pareto_figure(path: Path, *, title: str) -> Figure:
    """The fronts and what is fitted to them, of anybody's steps to a goal."""
    from noisescale.plots.critical_batch import critical_figure
    from noisescale.statistics.critical_batch.goal_table import (
        fastest_runs,
        fits_table,
        laws_table,
        read_goal_table,
    )
    from noisescale.studies.critical_batch.results import analyse

    result = analyse(read_goal_table(path))
    return critical_figure(
        fastest_runs(result.table),
        fits_table(result.fits),
        result.rates,
        laws_table(result.laws),
        result.predicted,
        title=title,
    )
