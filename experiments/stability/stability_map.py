"""Which learning rates are stable at which batch size, from initialisation and from a minimum.

From initialisation: MNIST at unit and at raw pixels, 784–256–256–10, one epoch. From a minimum: a
random 1,000 images, 784–200–200–10, trained to interpolation with the squared error, where linear
theory applies, and with the cross-entropy; 1,000 steps from there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from noisescale import (
    ProblemConfig,
    RunOptions,
    SweepConfig,
    SweepOptions,
    TrainConfig,
    run_sweep,
    run_training,
)
from noisescale.cli.options import machine_options
from noisescale.problems.config import resolve_device
from noisescale.studies.jobs.options import make_cell
from noisescale.studies.stability_map.config import Horizon
from noisescale.studies.stability_map.predictions import constants_at
from noisescale.training.records.folder import CHECKPOINT, record_experiment
from noisescale.training.records.names import file_digest

UNIT = ProblemConfig(dataset="mnist", width=256)
SMALL = ProblemConfig(dataset="mnist", num_train=1000, width=200)
MINIMA = {  # how each is trained to its minimum
    "mse": (replace(SMALL, loss="mse"), TrainConfig(batch_size=50, learning_rate=0.1, epochs=300)),
    "cross_entropy": (SMALL, TrainConfig(batch_size=50, learning_rate=0.1, epochs=1000)),
}
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"num_seeds": 2, "factor": 2.0},
    "full": {"num_seeds": 6, "factor": 1.2, "precision": 1.25, "max_seeds": 48},
}


def maps(scale: str, starts: dict[str, Path]) -> dict[str, SweepConfig]:
    """The sweeps by name; starts: the checkpoints of the minima, by loss."""
    settings = SCALES[scale]
    from_start = {
        "unit": SweepConfig(problem=UNIT, **settings),
        "raw": SweepConfig(
            problem=replace(UNIT, pixel_scale="raw"),
            batch_sizes=(1, 4, 16, 32, 64, 256, 1024),
            lr_min=1e-6,
            lr_max=1e-2,
            **settings,
        ),
    }
    from_minimum = {
        loss: SweepConfig(
            problem=MINIMA[loss][0],
            batch_sizes=(1, 4, 16, 64, 256, 1000),
            horizon=Horizon(steps=1000),
            start=file_digest(path),
            **settings,
        )
        for loss, path in starts.items()
    }
    return from_minimum | from_start


def _measure_start(config: SweepConfig, out: Path, options: SweepOptions) -> None:
    """Leaves the constants of a sweep's predictions in its folder, as the sweep itself would."""
    training = TrainConfig(batch_size=config.batch_sizes[0])
    cell = make_cell(options, out, config.problem, training, start=options.start)
    constants_at(cell, out)


@click.command("stability_map")
@click.option(
    "--scale",
    type=click.Choice(list(SCALES)),
    default="quick",
    show_default=True,
    help="quick: two seeds, edges to a factor of 2; full: six seeds and more, until the interval "
    "of every edge spans a factor of 1.25 at most.",
)
@click.option(
    "--only", multiple=True, help="Only this map (repeat it): mse, cross_entropy, unit, raw."
)
@click.option(
    "--starts-only",
    is_flag=True,
    help="Measure the curvature where the runs start, and run none: the analysis then takes the "
    "cells of the committed table.",
)
@click.option("--out", type=click.Path(path_type=Path), help="[default: runs/stability_map-SCALE]")
@machine_options
def stability_map(
    scale: str,
    only: tuple[str, ...],
    starts_only: bool,
    out: Path | None,
    device: str,
    data_dir: Path | None,
) -> None:
    """Which learning rates are stable at which batch size, measured and predicted."""
    console = Console(stderr=True, highlight=False)
    out = out or Path("runs") / f"stability_map-{scale}"
    flag = " --starts-only" if starts_only else ""
    record_experiment(out, command=f"python -m experiments stability_map --scale {scale}{flag}")
    device = resolve_device(device)
    options = RunOptions(device=device, data_dir=data_dir, console=console, evaluate_every=100)
    starts = {}
    for loss, (problem, training) in MINIMA.items():
        if only and loss not in only:
            continue
        run_training(problem, training, out / f"minimum-{loss}", options)
        starts[loss] = out / f"minimum-{loss}" / CHECKPOINT
    for name, config in maps(scale, starts).items():
        if only and name not in only:
            continue
        console.print(str(out / name))
        how = SweepOptions(
            start=starts.get(name), device=device, data_dir=data_dir, console=console
        )
        if starts_only:
            _measure_start(config, out / name, how)
        else:
            run_sweep(config, out / name, options=how)
    click.echo(f"python -m analysis stability_map {out}")
