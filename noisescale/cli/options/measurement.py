"""Options of what is measured of checkpoints, and what follows from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import click

from noisescale.cli.options.execution import machine_options
from noisescale.cli.options.forms import PICTURES, Command, FileOf, together
from noisescale.cli.options.training import amp_option
from noisescale.errors import Interrupted

# as statistics.critical_batch.advice has it, which loads NumPy
Project = Literal["megatron", "olmo", "levanter", "lightning"]
DTYPES = ("float32", "float64")


def batch_schedule_options(command: Command) -> Command:
    """A batch-size schedule of a tracked run, for another project to read."""
    return together(
        click.option(
            "--schedule",
            type=click.Choice(get_args(Project)),
            help="Of a tracked run: also print a batch size that grows along another like it, as "
            "Megatron-LM, OLMo-core, Levanter or Lightning read it.",
        ),
        click.option(
            "--multiple-of",
            type=click.IntRange(min=1),
            metavar="N",
            help="--schedule: a number that divides its batch sizes, such as the examples that all "
            "devices take at once.  [default: 1]",
        ),
    )(command)


def measurement_options(command: Command) -> Command:
    """What to measure on which examples of which problem, and how to print it."""
    return together(
        click.argument(
            "checkpoints",
            nargs=-1,
            metavar="[CHECKPOINT...]",
            type=click.Path(path_type=Path),
        ),
        click.option(
            "--num-examples",
            type=click.IntRange(min=1),
            metavar="N",
            help="A random subset of the split, drawn under --seed; errors are given.  "
            "[default: all]",
        ),
        click.option(
            "--split", default="train", show_default=True, help="train, validation or test."
        ),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            help="Of all computing.  [default: the parameters' own]",
        ),
        amp_option,
        click.option(
            "--param",
            "param_filter",
            multiple=True,
            metavar="GLOB",
            callback=lambda context, option, globs: globs or None,
            help='Of these parameters alone, as "head.*", the others constant; repeatable.',
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Of the subset and the random probes.",
        ),
        click.option(
            "--problem",
            metavar="FILE.py:FACTORY",
            help="A function of your own (or MODULE:FACTORY) that returns a noisescale.Problem; "
            "then any state dict will do, or a folder as save_pretrained leaves it, or no "
            "CHECKPOINT for the model as it is made (under seed 0).",
        ),
        machine_options,
        click.option(
            "--dry-run",
            is_flag=True,
            help="Only say how many seconds and how much memory it will take, about, by the first "
            "chunk of examples.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table."),
        click.option(
            "--plot", type=FileOf(PICTURES), help="Draw what was measured; png, pdf or svg."
        ),
    )(command)


@contextmanager
def showing_what_is_found(show: Callable[[Any], None]) -> Iterator[None]:
    """Shows what an interruption within has found so far, before it goes on its way."""
    try:
        yield
    except Interrupted as stop:
        if stop.found is not None:
            show(stop.found)
        raise
