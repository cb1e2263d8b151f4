"""What experiments that are grids of training runs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from noisescale import ProblemConfig, RunOptions, TrainConfig, run_training
from noisescale.cli.options import machine_options
from noisescale.errors import RunFolderBusyError
from noisescale.problems.config import resolve_device
from noisescale.studies.critical_batch.goal_run import GoalCell, run_to_goal
from noisescale.studies.jobs.local import LocalProcesses, default_processes
from noisescale.training.records.folder import record_experiment

Case = tuple[
    str, ProblemConfig, TrainConfig, RunOptions
]  # folder name, what it is, how it is carried out


def run_goal_cells(cells: Sequence[GoalCell], *, processes: int | None, console: Console) -> None:
    """Carries out runs to goals in local processes, one a core by default, those not finished."""
    pool = LocalProcesses(processes or default_processes())
    try:
        for cell, future in [(cell, pool.submit(run_to_goal, cell)) for cell in cells]:
            steps = future.result().summary["steps"]
            console.print(f"{cell.cell.path.name}  {steps:,} steps", highlight=False)
    finally:
        pool.shutdown(cancel_futures=True)


def experiment(
    name: str, grid: Callable[[str], Iterable[Case]], *, scales: dict[str, str], help: str
) -> click.Command:
    """A command that computes the runs of `grid(scale)`, in turn and those not finished yet.

    scales: the names that --scale takes, the first the default, and what each means.
    """

    @click.command(name, help=help)
    @click.option(
        "--scale",
        type=click.Choice(list(scales)),
        default=next(iter(scales)),
        show_default=True,
        help="; ".join(f"{scale}: {meaning}" for scale, meaning in scales.items()) + ".",
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        help=f"Folder of the run folders.  [default: runs/{name}-SCALE]",
    )
    @machine_options
    def command(scale: str, out: Path | None, device: str, data_dir: Path | None) -> None:
        console = Console(stderr=True)
        out = out or Path("runs") / f"{name}-{scale}"
        record_experiment(out, command=f"python -m experiments {name} --scale {scale}")
        device = resolve_device(device)
        for folder, problem, training, options in grid(scale):
            console.print(str(out / folder), highlight=False)
            options = replace(options, device=device, data_dir=data_dir, console=console)
            try:
                run_training(problem, training, out / folder, options)
            except RunFolderBusyError:
                console.print("  another process is at it", highlight=False)
        click.echo(f"python -m analysis {name} {out}")

    return command
