"""What experiments that are grids of training runs share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from noisescale import (
    CriticalBatchConfig,
    ProblemConfig,
    RunOptions,
    StudyOptions,
    TrainConfig,
    run_critical_batch,
    run_training,
)
from noisescale.cli.options import machine_options
from noisescale.errors import RunFolderBusyError
from noisescale.problems.config import resolve_device
from noisescale.studies.critical_batch.goal_runs.goal_run import GoalCell, run_to_goal
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.local import LocalProcesses, default_processes
from noisescale.studies.jobs.short_run import LossCurve, short_run
from noisescale.training.records.folder import record_experiment
from noisescale.training.records.names import run_name
from noisescale.training.tracking.noise import NoiseTracking
from noisescale.training.trainer import Training

Case = tuple[
    str, ProblemConfig, TrainConfig, RunOptions
]  # folder name, what it is, how it is carried out

# trains as far as the experiment wants, from a Training at its start, with the loss on 2,000
# training examples where it looks; gives what is measured, which goes into summary.json
Course = Callable[[Cell, Training, LossCurve], dict[str, Any]]
FRONTS = "fronts"  # of an experiment's folder, the one with its measurements of B_crit


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A run with measurements of its own: its folder's name, what it is, and its course."""

    folder: str
    problem: ProblemConfig
    training: TrainConfig
    course: Course  # one that another process can be sent


def experiment(
    name: str, grid: Callable[[str], Iterable[Case]], *, scales: dict[str, str], help: str
) -> click.Command:
    """A command that computes the runs of `grid(scale)`, in turn and those not finished yet.

    scales: the names that --scale takes, the first the default, and what each means.
    """

    @click.command(name, help=help)
    @_scale_option(scales)
    @_out_option(name)
    @machine_options
    def command(scale: str, out: Path | None, device: str, data_dir: Path | None) -> None:
        console = Console(stderr=True)
        out = _begun(name, scale, out)
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


def goal_experiment(
    name: str,
    grid: Callable[[str], Iterable[tuple[TrainConfig, NoiseTracking]]],
    *,
    problem: ProblemConfig,
    goals: tuple[float, ...],
    scales: dict[str, str],
    help: str,
) -> click.Command:
    """A command for runs that end at their lowest goal, with the noise scale along each.

    They are made in local processes, one a core by default, those not finished yet. grid, scales:
    as of `experiment`; a run is how it is trained and what is measured along it.
    """

    @click.command(name, help=help)
    @_scale_option(scales)
    @click.option("--processes", type=click.IntRange(min=1), help="[default: one a core]")
    @_out_option(name)
    @machine_options
    def command(
        scale: str, processes: int | None, out: Path | None, device: str, data_dir: Path | None
    ) -> None:
        console = Console(stderr=True, highlight=False)
        out = _begun(name, scale, out).absolute()  # for the processes
        device = resolve_device(device)

        def goal_cell(training: TrainConfig, noise: NoiseTracking) -> GoalCell:
            cell = Cell(
                path=out / run_name(problem, training),
                problem=problem,
                training=training,
                device=device,
                data_dir=data_dir,
            )
            return GoalCell(cell=cell, goals=goals, noise=noise)

        pool = LocalProcesses(processes or default_processes())
        try:
            cells = [goal_cell(*run) for run in grid(scale)]
            for cell, future in [(cell, pool.submit(run_to_goal, cell)) for cell in cells]:
                console.print(f"{cell.cell.path.name}  {future.result().summary['steps']:,} steps")
        finally:
            pool.shutdown(cancel_futures=True)
        click.echo(f"python -m analysis {name} {out}")

    return command


def unit_experiment(
    name: str,
    units: Callable[[str, Path], Iterator[list[Unit]]],
    *,
    scales: dict[str, str],
    help: str,
    one_process: bool = False,
    fronts: Callable[[str], dict[str, CriticalBatchConfig]] | None = None,
) -> click.Command:
    """A command that carries out units in local processes, those not finished yet.

    units: of a scale and the experiment's folder, lists of units; each list is asked for once all
    of the one before are finished, so that it may depend on them. one_process: carried out in this
    process, in which a DataLoader's workers start as they do for a user. scales: as of
    `experiment`. fronts: of a scale, measurements of B_crit that follow, by the names of their
    folders in `fronts`.
    """
    most = 1 if one_process else None

    @click.command(name, help=help)
    @_scale_option(scales)
    @click.option(
        "--processes",
        type=click.IntRange(min=1, max=most),
        help=f"[default: {'1, alone' if one_process else 'one a core'}]",
    )
    @_out_option(name)
    @machine_options
    def command(
        scale: str, processes: int | None, out: Path | None, device: str, data_dir: Path | None
    ) -> None:
        console = Console(stderr=True, highlight=False)
        out = _begun(name, scale, out).absolute()  # for the processes
        device = resolve_device(device)
        pool = None if one_process else LocalProcesses(processes or default_processes())
        try:
            for batch in units(scale, out):
                tasks = {
                    unit.folder: partial(
                        carry_out, unit, out / unit.folder, device=device, data_dir=data_dir
                    )
                    for unit in batch
                }
                ends = {
                    folder: task if pool is None else pool.submit(task).result
                    for folder, task in tasks.items()
                }
                for folder, end in ends.items():
                    end()
                    console.print(folder)
            options = StudyOptions(device=device, data_dir=data_dir, console=console)
            for front, config in ({} if fronts is None else fronts(scale)).items():
                console.print(f"{FRONTS}/{front}")
                run_critical_batch(config, out / FRONTS / front, executor=pool, options=options)
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        click.echo(f"python -m analysis {name} {out}")

    return command


def carry_out(unit: Unit, path: Path, *, device: str = "cpu", data_dir: Path | None = None) -> None:
    """Sees to it that a unit lies finished in its folder, computed there unless it is already."""
    cell = Cell(
        path=path,
        problem=unit.problem,
        training=unit.training,
        device=device,
        data_dir=data_dir,
    )
    short_run(cell, partial(unit.course, cell))


def _scale_option(scales: dict[str, str]) -> Callable[..., Any]:
    return click.option(
        "--scale",
        type=click.Choice(list(scales)),
        default=next(iter(scales)),
        show_default=True,
        help="; ".join(f"{scale}: {meaning}" for scale, meaning in scales.items()) + ".",
    )


def _out_option(name: str) -> Callable[..., Any]:
    return click.option(
        "--out",
        type=click.Path(path_type=Path),
        help=f"Folder of the run folders.  [default: runs/{name}-SCALE]",
    )


def _begun(name: str, scale: str, out: Path | None) -> Path:
    """The experiment's folder, in which the command is recorded that makes it."""
    out = out or Path("runs") / f"{name}-{scale}"
    record_experiment(out, command=f"python -m experiments {name} --scale {scale}")
    return out
