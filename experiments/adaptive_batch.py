"""An adaptive batch size against fixed ones: steps and examples to three losses, rates tuned alike.

MNIST, 784–256–256–10, SGD, each run as long as it takes to the lowest loss. The learning rates are
multiples of ε(B) = 0.5/(1 + 100/B), the form of McCandlish et al. 2018 (2.6), three for each batch
size and around the best one. B = √(r·B_simple) starts at B = 32, either at the rates for 32 and
following the noise, or at constant rates, those for 100: a fixed batch size has a constant one too.
Each batch size, and each way to adapt it, has its own orders of the examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from experiments.runs import run_goal_cells
from noisescale import ProblemConfig, TrainConfig
from noisescale.cli.options import machine_options
from noisescale.problems.config import resolve_device
from noisescale.problems.sampling import independent_seed
from noisescale.studies.critical_batch.goal_run import GoalCell
from noisescale.studies.jobs.cell import Cell
from noisescale.training.config import AdaptiveConfig, LrScaling
from noisescale.training.records.folder import record_experiment
from noisescale.training.records.names import run_name
from noisescale.training.tracking.noise import NoiseTracking

PROBLEM = ProblemConfig(dataset="mnist", width=256)
GOALS = (0.3, 0.2, 0.15)  # training loss, on 2,000 fixed images
# epochs at most by fixed batch size, about twice what the lowest goal takes at the best rate
EPOCHS = {16: 1, 32: 1, 64: 1, 128: 2, 256: 2, 512: 3, 1024: 5}
ADAPTIVE_EPOCHS = {30.0: 2, 100.0: 2, 300.0: 3, 1000.0: 3}  # by exchange rate
RATES_OF: dict[LrScaling, int] = {
    "noise": 32,
    "none": 100,
}  # the batch size whose rates each rule is given
FACTORS = (0.5, 1.0, 2.0)
LARGER_FACTORS = (1.0, 2.0, 4.0)  # where the best of the above is the last
LARGER_FOR: tuple[object, ...] = (16, 32, 64, (1000.0, "none"))
TRACKING = NoiseTracking(every="log", num_examples=2000)
SCALES: dict[str, dict[str, Any]] = {"quick": {"seeds": (0,)}, "full": {"seeds": (0, 1, 2, 3, 4)}}


def rate(batch_size: int) -> float:
    """What the learning rates of this batch size are centred on."""
    return 0.5 / (1 + 100 / batch_size)


def grid(*, seeds: tuple[int, ...]) -> list[TrainConfig]:
    """The runs, seed by seed."""
    return [run for seed in seeds for run in (*_fixed(seed), *_adaptive(seed))]


def _fixed(seed: int) -> Iterator[TrainConfig]:
    for batch_size, epochs in EPOCHS.items():
        for factor in _factors(batch_size):
            yield TrainConfig(
                batch_size=batch_size,
                learning_rate=factor * rate(batch_size),
                epochs=epochs,
                seed=seed,
                order_seed=independent_seed(seed, str(batch_size)),
            )


def _adaptive(seed: int) -> Iterator[TrainConfig]:
    for lr_scaling, like in RATES_OF.items():
        for exchange_rate, epochs in ADAPTIVE_EPOCHS.items():
            for factor in _factors((exchange_rate, lr_scaling)):
                yield TrainConfig(
                    batch_size="adaptive",
                    adaptive=AdaptiveConfig(exchange_rate=exchange_rate, lr_scaling=lr_scaling),
                    learning_rate=factor * rate(like),
                    epochs=epochs,
                    seed=seed,
                    order_seed=independent_seed(seed, f"r = {exchange_rate:g}, {lr_scaling}"),
                )


def _factors(setting: object) -> tuple[float, ...]:
    return LARGER_FACTORS if setting in LARGER_FOR else FACTORS


@click.command("adaptive_batch")
@click.option(
    "--scale",
    type=click.Choice(list(SCALES)),
    default="quick",
    show_default=True,
    help="quick: one seed; full: five.",
)
@click.option("--processes", type=click.IntRange(min=1), help="[default: one a core]")
@click.option("--out", type=click.Path(path_type=Path), help="[default: runs/adaptive_batch-SCALE]")
@machine_options
def adaptive_batch(
    scale: str, processes: int | None, out: Path | None, device: str, data_dir: Path | None
) -> None:
    """Steps and examples to a loss, adaptive against fixed batch sizes."""
    out = (out or Path("runs") / f"adaptive_batch-{scale}").absolute()
    record_experiment(out, command=f"python -m experiments adaptive_batch --scale {scale}")
    cells = [
        goal_cell(out, training, device=resolve_device(device), data_dir=data_dir)
        for training in grid(**SCALES[scale])
    ]
    run_goal_cells(cells, processes=processes, console=Console(stderr=True))
    click.echo(f"python -m analysis adaptive_batch {out}")


def goal_cell(out: Path, training: TrainConfig, *, device: str, data_dir: Path | None) -> GoalCell:
    """A run with the noise scale along it, on the same random images whatever the seed."""
    cell = Cell(
        path=out / run_name(PROBLEM, training),
        problem=PROBLEM,
        training=training,
        device=device,
        data_dir=data_dir,
    )
    return GoalCell(cell=cell, goals=GOALS, noise=TRACKING)
