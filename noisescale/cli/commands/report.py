"""noisescale report."""

from __future__ import annotations

from pathlib import Path

import click

from noisescale.cli.help import Command
from noisescale.errors import NoisescaleError


@click.command(
    cls=Command,
    short_help="Put runs, studies and measurements on one page of HTML.",
    epilog="""\b
Examples:
  noisescale report runs/NAME-KEY                      a run, finished or not
  noisescale report runs --out runs.html               all runs and studies in a folder
  noisescale report sweep critical --out study.html    a sweep and a critical batch size
  noisescale measure-noise runs/NAME-KEY --json > noise.json
  noisescale report noise.json --out noise.html        what was measured
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
    "--out",
    type=click.Path(path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The page; an earlier report there is replaced.",
)
def report(paths: tuple[Path, ...], out: Path) -> None:
    """Put on one page what the other commands have left: answers, tables and pictures.

    A PATH is the folder of a run, of sweep-lr, critical-batch or recommend, finished or not, or a
    folder of such; a JSON file that measure-noise or sharpness printed with --json; or a single
    table. The page holds its pictures, asks for nothing from elsewhere, and prints well. Its path
    is printed. A PATH that cannot be shown does not stop the others.
    """
    from noisescale.cli.artefacts.report import report as write

    written = write(list(paths), out)
    if written.path is not None:
        click.echo(written.path)
    if written.failures:
        raise NoisescaleError("\n".join(written.failures))
