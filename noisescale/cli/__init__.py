"""The command line: each command parses, calls one library function, reports."""

from __future__ import annotations

import click

from noisescale._version import __version__
from noisescale.cli.commands.critical_batch import critical_batch
from noisescale.cli.commands.interpolate import interpolate
from noisescale.cli.commands.measure_noise import measure_noise
from noisescale.cli.commands.plot import plot
from noisescale.cli.commands.recommend import recommend
from noisescale.cli.commands.report import report
from noisescale.cli.commands.sharpness import sharpness
from noisescale.cli.commands.sweep_lr import sweep_lr
from noisescale.cli.commands.train import train
from noisescale.cli.group import Commands
from noisescale.cli.help import HELP_WIDTH


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
)
@click.version_option(__version__, prog_name="noisescale")
def main() -> None:
    """Gradient noise, stability and critical batch size of PyTorch models.

    Tables and JSON go to stdout, progress and notes to stderr, and artefacts to a run folder whose
    path is printed last. Exit codes: 0 done, 1 the work failed, 2 bad usage, 130 interrupted (and
    saved).
    """


main.add_command(train)
main.add_command(measure_noise)
main.add_command(sharpness)
main.add_command(interpolate)
main.add_command(sweep_lr)
main.add_command(critical_batch)
main.add_command(recommend)
main.add_command(plot)
main.add_command(report)
