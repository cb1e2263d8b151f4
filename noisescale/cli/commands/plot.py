"""noisescale plot."""

from __future__ import annotations

import os
from pathlib import Path

import click

from noisescale.cli.artefacts.sources import ALLOWED, DAMAGED, sources
from noisescale.cli.help import Command
from noisescale.cli.options import FOLDER, PICTURES
from noisescale.errors import NoisescaleError, RunFolderError, own_words

FORMATS = tuple(suffix.removeprefix(".") for suffix in PICTURES)


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

    A PATH is the folder of a run, of sweep-lr, critical-batch or recommend, finished or not, or a
    folder of such; a JSON file that measure-noise or sharpness printed with --json; or a single
    table. A file's picture has its name. Each picture's path is printed. A PATH that cannot be
    drawn does not stop the others.
    """
    failures = []
    found = []
    for path in paths:
        found_there = list(sources(path))
        found += found_there
        if not found_there:
            failures.append(f"{path}: nothing to draw in it; {ALLOWED}")
    common = _common_folder(found)
    for source in found:
        folder = source if source.is_dir() else source.parent
        # one source's pictures lie in --out itself, those of several as their sources to each other
        target = None if out is None else out / os.path.relpath(folder.absolute(), common)
        try:
            for picture in _draw(source, out=target, format=format):
                click.echo(picture)
        except NoisescaleError as error:
            said = str(error)
            failures.append(said if said.startswith(str(source)) else f"{source}: {said}")
        except DAMAGED as error:
            failures.append(f"{source}: damaged, it cannot be drawn ({own_words(error)})")
    if failures:
        raise NoisescaleError("\n".join(failures))


def _common_folder(found: list[Path]) -> Path:
    """The folder that all of them lie in; a single folder is its own."""
    if len(found) == 1 and found[0].is_dir():
        return found[0].absolute()
    return Path(os.path.commonpath([source.absolute().parent for source in found] or [Path("/")]))


def _draw(source: Path, *, out: Path | None, format: str) -> list[Path]:
    """Draws one folder or file, into `out` or, None, beside its data; the pictures' paths."""
    from noisescale.cli.artefacts.figures import figures
    from noisescale.training.records.pictures import save_figures

    folder = source if source.is_dir() else source.parent
    if not (paths := save_figures(figures(source), out or folder, format=format)):
        raise RunFolderError("nothing to draw yet: it has no table")
    return paths
