"""Does the noise scale depend on the size of the model, at equal loss?

59,904 images of MNIST, a multiple of B, SGD, B = 64, one network for each width 8, 16, …, 1,024 at
depth 2, and depths 1, 3 and 4 at widths 16, 64 and 256: 6,400 to 1.9 million parameters, ε = .1,
five seeds; widths 8 … 512 at depth 2 with ε = .05 as well, three seeds. B_simple at training losses
1, .5, .25 and .12, on 4,096 random training images at each look within ± 10 % of the loss (means of
tr Σ over means of |G|²); B_noise at those within ± 4 %, likewise, its Hessian on 1,024 images with
eight probes.

Primary statistic, at ε = .1 and loss .25: the slope b of log B_simple = a_seed + b·log P over all
networks, one slope for each seed, their mean with Student's t. Beside it the same at the other
losses and rate, of B_noise, over the widths alone, and over the depths alone (log B_simple against
log depth at equal width); Holm over the losses. A network counts at a loss where all seeds reach
it.

The critical batch size itself: widths 16, 64 and 256 at depth 2, by the command's search of rates
at B = 16, 32, …, 1,024 for training losses .5 and .25; three seeds. Reported beside the slopes:
that of log B_crit = a_seed + b·log P, B_crit from the seed's own runs.

Some 50 core minutes at full scale, and 20 for the critical batch sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from experiments.batches.scores import identity
from experiments.composition.equal_loss import looks_at, noise_at
from experiments.runs import Unit, unit_experiment
from noisescale import CriticalBatchConfig, ProblemConfig, TrainConfig
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.trainer import Training

GOALS = (1.0, 0.5, 0.25, 0.12)  # training loss
BATCH_SIZE = 64
NUM_TRAIN, FRONT_IMAGES = 936 * 64, 58 * 1024
NEAREST = 0.04  # of a loss: where the curvature is measured as well
NUM_EXAMPLES, HESSIAN_EXAMPLES = 4096, 1024
WIDTHS = tuple(2**power for power in range(3, 11))
BY_DEPTH = tuple((width, depth) for width in (16, 64, 256) for depth in (1, 3, 4))
EPOCHS = 30  # at most: the narrowest network does not reach the lowest loss at all
FRONT_SIZES = tuple(2**power for power in range(4, 11))
SCALES: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": (2, 1),
        "goals": (1.0, 0.5),
        "sizes": ((8, 2), (64, 2), (16, 1), (16, 4)),
        "fronts": {"widths": (8, 64), "goals": (1.0,), "seeds": 2, "sizes": FRONT_SIZES[::2]},
    },
    "full": {
        "seeds": (5, 3),
        "goals": GOALS,
        "sizes": (*((width, 2) for width in WIDTHS), *BY_DEPTH),
        "fronts": {
            "widths": (16, 64, 256),  # three of those above
            "goals": (0.5, 0.25),
            "seeds": 3,
            "sizes": FRONT_SIZES,
        },
    },
}
RATES = (0.1, 0.05)
WIDEST_AT_HALF_RATE = 512  # twice the updates: the widest would cost more than all others


def course(
    cell: Cell, training: Training, curve: LossCurve, *, goals: tuple[float, ...]
) -> dict[str, Any]:
    """Trains below the lowest loss, and measures near each."""
    rows = []
    for step, loss, goal in looks_at(training, curve, goals):
        noise = noise_at(
            training,
            num_examples=NUM_EXAMPLES,
            hessian_examples=HESSIAN_EXAMPLES if abs(loss / goal - 1) <= NEAREST else 0,
        )
        rows.append({"goal": goal, "step": step, "loss": loss, **noise})
    num_parameters = sum(param.numel() for param in training.model.parameters())
    return {**identity(cell, training), "num_parameters": num_parameters, "rows": rows}


def _unit(width: int, depth: int, rate: float, seed: int, goals: tuple[float, ...]) -> Unit:
    return Unit(
        folder=f"lr{rate:g}/width{width}-depth{depth}-seed{seed}",
        problem=ProblemConfig(dataset="mnist", num_train=NUM_TRAIN, width=width, depth=depth),
        training=TrainConfig(
            batch_size=BATCH_SIZE,
            learning_rate=rate,
            epochs=EPOCHS,
            seed=seed,
            order_seed=independent_seed("model size", seed),
        ),
        course=partial(course, goals=goals),
    )


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """Every network of every seed at the higher rate, then those of depth 2 at the lower one."""
    settings = SCALES[scale]
    for rate, num_seeds in zip(RATES, settings["seeds"], strict=True):
        yield [
            _unit(width, depth, rate, seed, settings["goals"])
            for seed in range(num_seeds)
            for width, depth in settings["sizes"]
            if rate == RATES[0] or (depth == 2 and width <= WIDEST_AT_HALF_RATE)
        ]


def fronts(scale: str) -> dict[str, CriticalBatchConfig]:
    """B_crit of networks of several widths."""
    settings = SCALES[scale]["fronts"]
    return {
        f"width{width}": CriticalBatchConfig(
            problem=ProblemConfig(dataset="mnist", num_train=FRONT_IMAGES, width=width, depth=2),
            batch_sizes=settings["sizes"],
            goals=settings["goals"],
            num_seeds=settings["seeds"],
            noise_examples=None,
        )
        for width in settings["widths"]
    }


model_size = unit_experiment(
    "model_size",
    units,
    fronts=fronts,
    scales={
        "quick": "four networks to a loss of .5",
        "full": "17 networks to .12, five seeds; three at half the rate",
    },
    help="The noise scale against the size of the model, at equal loss.",
)
