"""Does the noise scale follow the temperature ε/B of SGD, at equal loss?

59,904 images of MNIST, a multiple of every batch size, 784–256–256–10, SGD at every pair of B = 16,
32, 64, 128 and ε = .025, .05, .1, .2, five seeds, each batch size with its own orders. B_simple at
training losses .5, .25 and .15, on 4,096 random training images at each look within ± 10 % of the
loss (means of tr Σ over means of |G|²).

McCandlish et al. 2018 (arXiv 1812.06162), appendix C: at equal loss B_simple ∝ B/ε, where the
parameters have come to the noise's own distribution.

Primary statistic, at loss .25: the slope c of log B_simple = a_seed + c·log(B/ε) over the pairs,
one slope for each seed, their mean with Student's t; 1 is the law, 0 no effect. Beside it the same
at the other losses, and the two slopes of log B and log 1/ε taken apart, which the law has equal;
Holm over the losses.

Some 25 core minutes at full scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from experiments.batches.scores import identity
from experiments.composition.equal_loss import looks_at, noise_at
from experiments.runs import Unit, unit_experiment
from noisescale import ProblemConfig, TrainConfig
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.trainer import Training

PROBLEM = ProblemConfig(dataset="mnist", num_train=468 * 128, width=256)
SIZES, RATES = (16, 32, 64, 128), (0.025, 0.05, 0.1, 0.2)
GOALS = (0.5, 0.25, 0.15)  # training loss
NUM_EXAMPLES = 4096
EPOCHS = 40  # at most, which none of the pairs should take
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "sizes": (32, 128), "rates": (0.05, 0.2), "goals": (0.5,)},
    "full": {"seeds": 5, "sizes": SIZES, "rates": RATES, "goals": GOALS},
}


def course(
    cell: Cell, training: Training, curve: LossCurve, *, goals: tuple[float, ...]
) -> dict[str, Any]:
    """Trains below the lowest loss, and measures near each."""
    rows = [
        {"goal": goal, "step": step, "loss": loss, **noise_at(training, num_examples=NUM_EXAMPLES)}
        for step, loss, goal in looks_at(training, curve, goals)
    ]
    return {**identity(cell, training), "rows": rows}


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """Every pair of a seed, then those of the next."""
    settings = SCALES[scale]
    yield [
        Unit(
            folder=f"bs{batch_size}-lr{rate:g}-seed{seed}",
            problem=PROBLEM,
            training=TrainConfig(
                batch_size=batch_size,
                learning_rate=rate,
                epochs=EPOCHS,
                seed=seed,
                order_seed=independent_seed("temperature", seed, batch_size),
            ),
            course=partial(course, goals=settings["goals"]),
        )
        for seed in range(settings["seeds"])
        for batch_size in settings["sizes"]
        for rate in settings["rates"]
    ]


temperature = unit_experiment(
    "temperature",
    units,
    scales={
        "quick": "four pairs of batch size and rate to a loss of .5, two seeds",
        "full": "16 pairs to .15, five seeds",
    },
    help="The noise scale against rate over batch size, at equal loss.",
)
