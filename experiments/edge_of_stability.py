"""The edge of stability: λ_max under gradient descent, batch sharpness under SGD, against 2/η.

A random 5,000 MNIST images, 784–200–200–10, cross-entropy and squared error. The smallest rates of the
squared error are those whose 2/η lies above λ_max at initialisation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from noisescale import ProblemConfig, TrainConfig, run_training
from noisescale.cli.options import machine_options, resolve_device
from noisescale.config import LossName, run_name
from noisescale.errors import RunFolderBusyError
from noisescale.run import RunOptions
from noisescale.store import record_experiment

# loss, learning rates, and steps of gradient descent or epochs of SGD at B = 8
GRADIENT_DESCENT: tuple[tuple[LossName, tuple[float, ...]], ...] = (
    ("cross_entropy", (0.1, 0.2, 0.4)),
    ("mse", (0.08, 0.1, 0.13)),
)
SGD: tuple[tuple[LossName, tuple[float, ...]], ...] = (("cross_entropy", (0.05, 0.1)), ("mse", (0.1, 0.15)))
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": (0,), "steps": 200, "epochs": 4},
    "full": {"seeds": (0, 1), "steps": 800, "epochs": 16},
}
EVERY = {"full": 10, 8: 250}  # steps between two measurements, by batch size


def grid(*, seeds: tuple[int, ...], steps: int, epochs: int) -> list[tuple[ProblemConfig, TrainConfig]]:
    """The runs: gradient descent for so many steps, SGD for so many epochs."""
    cases: list[tuple[ProblemConfig, TrainConfig]] = []
    for seed in seeds:
        for loss, rates in GRADIENT_DESCENT:
            for rate in rates:
                training = TrainConfig(batch_size="full", learning_rate=rate, epochs=steps, seed=seed)
                cases.append((_problem(loss), training))
        for loss, rates in SGD:
            for rate in rates:
                training = TrainConfig(batch_size=8, learning_rate=rate, epochs=epochs, seed=seed)
                cases.append((_problem(loss), training))
    return cases


def _problem(loss: LossName) -> ProblemConfig:
    return ProblemConfig(dataset="mnist", num_train=5000, width=200, loss=loss)


@click.command("edge_of_stability")
@click.option(
    "--scale",
    type=click.Choice(list(SCALES)),
    default="quick",
    show_default=True,
    help="quick: one seed, 200 steps or 4 epochs; full: two seeds, 800 steps or 16 epochs.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run folders.  [default: runs/edge_of_stability-SCALE]",
)
@machine_options
def edge_of_stability(scale: str, out: Path | None, device: str, data_dir: Path | None) -> None:
    """Sharpness along gradient descent and SGD, against 2/η."""
    console = Console(stderr=True)
    out = out or Path("runs") / f"edge_of_stability-{scale}"
    record_experiment(out, command=f"python -m experiments edge_of_stability --scale {scale}")
    for problem, training in grid(**SCALES[scale]):
        path = out / f"{problem.loss}-{run_name(problem, training)}"
        console.print(str(path), highlight=False)
        options = RunOptions(
            device=resolve_device(device),
            data_dir=data_dir,
            evaluate_every=100 if training.batch_size == "full" else 1,
            measure_sharpness_every=EVERY[training.batch_size],
            console=console,
        )
        try:
            run_training(problem, training, path, options)
        except RunFolderBusyError:
            console.print("  another process is at it", highlight=False)
    click.echo(f"python -m analysis edge_of_stability {out}")
