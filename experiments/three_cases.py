"""The three-case study: MNIST at B = 1024, 32 and 1 with one learning rate, at raw and at unit pixels.

The study's question was why B = 1 diverged; the unit-pixel runs answer that its input scale did it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from noisescale import ProblemConfig, TrainConfig, run_training
from noisescale.cli.options import machine_options, resolve_device
from noisescale.config import run_name
from noisescale.errors import RunFolderBusyError
from noisescale.run import RunOptions
from noisescale.store import record_experiment

SCALES: dict[str, dict[str, Any]] = {
    "quick": {"epochs": 2, "seeds": (0,)},
    "full": {"epochs": 30, "seeds": (0, 1, 2)},
}


def grid(*, epochs: int, seeds: tuple[int, ...]) -> list[tuple[ProblemConfig, TrainConfig]]:
    """The runs, longest first; B = 1 at unit pixels takes most of an hour, so it runs at one seed alone."""
    return [
        (
            ProblemConfig(dataset="mnist", pixel_scale=pixel_scale),
            TrainConfig(batch_size=batch_size, learning_rate=1e-3, epochs=epochs, seed=seed),
        )
        for seed in seeds
        for batch_size in (1, 32, 1024)
        for pixel_scale in ("unit", "raw")
        if seed == seeds[0] or (batch_size, pixel_scale) != (1, "unit")
    ]  # fmt: skip


@click.command("three_cases")
@click.option(
    "--scale",
    type=click.Choice(list(SCALES)),
    default="quick",
    show_default=True,
    help="quick: 2 epochs, one seed; full: 30 epochs, three seeds.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run folders.  [default: runs/three_cases-SCALE]",
)
@machine_options
def three_cases(scale: str, out: Path | None, device: str, data_dir: Path | None) -> None:
    """MNIST at B = 1024, 32 and 1, raw and unit pixels."""
    console = Console(stderr=True)
    out = out or Path("runs") / f"three_cases-{scale}"
    record_experiment(out, command=f"python -m experiments three_cases --scale {scale}")
    for problem, training in grid(**SCALES[scale]):
        path = out / f"{problem.pixel_scale}-{run_name(problem, training)}"
        console.print(str(path), highlight=False)
        try:
            run_training(
                problem,
                training,
                path,
                RunOptions(device=resolve_device(device), data_dir=data_dir, console=console),
            )
        except RunFolderBusyError:
            console.print("  another process is at it", highlight=False)
    click.echo(f"python -m analysis three_cases {out}")
