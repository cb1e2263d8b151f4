"""noisescale interpolate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from noisescale.cli.help import Command
from noisescale.cli.options import PICTURES, FileOf, machine_options
from noisescale.errors import CheckpointError, SettingError
from noisescale.problems.config import resolve_device

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Loaded
    from noisescale.studies.interpolation import Buffers

LOWEST, HIGHEST = -10.0, 10.0  # of α: far beyond, a network is no longer near either model
FEWEST, MOST = 3, 10_001  # points


@click.command(
    cls=Command,
    short_help="Loss and accuracy on the line between two checkpoints.",
    epilog="""\b
Examples:
  noisescale interpolate runs/SMALL-BATCH runs/LARGE-BATCH --plot line.png
  noisescale interpolate a/checkpoint.pt b/checkpoint.pt --points 11 --json
  noisescale interpolate a.pt b.pt --problem my_file.py:make --csv line.csv
""",
)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option(
    "--points",
    type=click.IntRange(FEWEST, MOST),
    default=41,
    show_default=True,
    help="Values of α, evenly from --from-alpha to --to-alpha; 0 and 1 are among them in any case.",
)
@click.option(
    "--from-alpha",
    "low",
    type=click.FloatRange(LOWEST, 0),
    default=-0.5,
    show_default=True,
    help="The first α; at 0 lies the first model.",
)
@click.option(
    "--to-alpha",
    "high",
    type=click.FloatRange(1, HIGHEST),
    default=1.5,
    show_default=True,
    help="The last α; at 1 lies the second model.",
)
@click.option(
    "--split",
    "splits",
    type=click.Choice(["train", "validation", "test"]),
    multiple=True,
    default=("train", "test"),
    show_default=True,
    help="Whose loss; repeatable.",
)
@click.option(
    "--num-examples",
    type=click.IntRange(min=2),
    metavar="N",
    help="A random subset of each split, the same at every point.  [default: all]",
)
@click.option(
    "--buffers",
    type=click.Choice(["recompute", "interpolate"]),
    default="recompute",
    show_default=True,
    help="Batch norm's running statistics: anew at each point from the training examples, or "
    "interpolated as the parameters.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of the subset.",
)
@click.option(
    "--problem",
    metavar="FILE.py:FACTORY",
    help="A function of your own (or MODULE:FACTORY) that returns a noisescale.Problem, for "
    "weights of any origin.",
)
@machine_options
@click.option("--csv", "table", type=FileOf((".csv",)), help="Write a row for each point.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table.")
@click.option("--plot", type=FileOf(PICTURES), help="Draw loss and accuracy; png, pdf or svg.")
def interpolate(
    first: Path,
    second: Path,
    points: int,
    low: float,
    high: float,
    splits: tuple[str, ...],
    num_examples: int | None,
    buffers: Buffers,
    seed: int,
    problem: str | None,
    device: str,
    data_dir: Path | None,
    table: Path | None,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Loss and accuracy along (1 − α)·FIRST + α·SECOND, and the barrier between the two.

    FIRST and SECOND are checkpoints of `noisescale train`, run folders, whose newest is taken, or
    weights of another origin with --problem. The barrier of a split is the largest loss above the
    straight line between those at α = 0 and 1, with a 95 % interval by what single examples lose
    and gain; below zero, the loss lies under that line all along. No units are permuted to lower
    it.
    """
    import numpy as np
    from rich.console import Console

    from noisescale.cli.checkpoints import Activity, load_all, with_problems
    from noisescale.cli.printing.interpolation import print_interpolation
    from noisescale.studies.interpolation import interpolate as along_line

    device = resolve_device(device)
    ends = [load_all((path,), device=device, problem=problem)[-1] for path in (first, second)]
    known = _of_one_problem(ends) if problem is None else ends[0]
    grid = np.union1d(np.linspace(low, high, points).round(10), (0.0, 1.0))
    if not ((grid > 0) & (grid < 1)).any():
        raise SettingError(
            f"--points {points} from {low:g} to {high:g}: none lies between the models; give more"
        )
    with Activity(Console(stderr=True, highlight=False), total=1) as activity:
        activity.begin(f"{first} to {second}")
        ((_, built),) = with_problems([known], problem=problem, data_dir=data_dir, device=device)
        line = along_line(
            built,
            *(end.content for end in ends if end.content is not None),  # each is of a file
            alphas=tuple(grid),
            splits=splits,
            num_examples=num_examples,
            buffers=buffers,
            seed=seed,
            report=activity.show,
        )
    names = [end.title for end in ends]
    if as_json:
        record = {"first": names[0], "second": names[1], **line.to_dict()}
        click.echo(json.dumps(record, indent=2, allow_nan=False))
    else:
        print_interpolation(line, names)
    if table is not None:
        from noisescale.training.records.folder import write_table

        write_table(table, line.to_frame())
        click.echo(table, err=as_json)
    if plot is not None:
        from noisescale.plots.interpolation import interpolation_figure
        from noisescale.plots.style import image
        from noisescale.training.records.folder import write_atomically

        figure = interpolation_figure(line.to_frame(), title=f"{names[0]}\nto {names[1]}")
        write_atomically(plot, image(figure, plot.suffix[1:]))
        click.echo(plot, err=as_json)


def _of_one_problem(ends: list[Loaded]) -> Loaded:
    """The one that says its problem; CheckpointError where the two are of different ones."""
    told = [
        (end, end.checkpoint.problem.to_dict())
        for end in ends
        if end.checkpoint is not None and end.checkpoint.problem is not None
    ]
    if len(told) < len(ends):
        return told[0][0] if told else ends[0]
    (known, one_of), (_, other_of) = told
    # the same text may lie at several places; its digest tells it from others
    names = [name for name in dict.fromkeys([*one_of, *other_of]) if name != "text"]
    differences = [
        f"{name} is {one!r} of the first, {other!r} of the second"
        for name in names
        if (one := one_of.get(name)) != (other := other_of.get(name))
    ]
    if differences:
        raise CheckpointError(
            f"{ends[0].path} and {ends[1].path} are of different problems ({'; '.join(differences)}"
            "): give two checkpoints of one model and its data"
        )
    return known
