"""Noise scales along runs at several batch sizes and rates, to calibrate what one run says.

The network of critical_batch.py beside it, whose B_crit to six losses is measured there: MNIST,
784–256–256–10, SGD. Rates are multiples, from a thirty-second to twice, of about the best ones to a
loss of 0.4, since a run that is to be advised about need not be tuned.
"""

from __future__ import annotations

from typing import Any

from experiments.noise.critical_batch import PROBLEM
from experiments.runs import goal_experiment
from noisescale import TrainConfig
from noisescale.problems.sampling import independent_seed
from noisescale.studies.critical_batch.config import PRESETS
from noisescale.training.tracking.noise import NoiseTracking

GOALS: tuple[float, ...] = PRESETS["mnist-paper"]["goals"]
EPOCHS = 4  # at the least rates enough for losses down to 0.4 or so
# of the best rate, by batch size: at more than the last, runs do not arrive; B = 16 at the least
# takes 15,000 updates and more
MULTIPLES: dict[int, tuple[float, ...]] = {
    16: (1 / 8, 1 / 2, 1.0, 2.0),
    64: (1 / 32, 1 / 8, 1 / 2, 1.0),
    256: (1 / 32, 1 / 8, 1 / 2, 1.0, 1.5),
}
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": (0,), "hessian_seeds": ()},
    "full": {"seeds": (0, 1, 2), "hessian_seeds": (2,)},
}


def best_rate(batch_size: int) -> float:
    """About the best rate to a loss of 0.4, by the law fitted in critical_batch/laws.csv."""
    return 0.4 / (1 + 43 / batch_size)


def grid(*, seeds: tuple[int, ...]) -> list[TrainConfig]:
    """The runs, seed by seed."""
    return [
        TrainConfig(
            batch_size=batch_size,
            learning_rate=float(f"{multiple * best_rate(batch_size):.3g}"),
            epochs=EPOCHS,
            seed=seed,
            order_seed=independent_seed(seed, batch_size, repr(multiple)),
        )
        for seed in seeds
        for batch_size, multiples in MULTIPLES.items()
        for multiple in multiples
    ]


def tracking(seed: int, *, hessian: bool) -> NoiseTracking:
    """What is measured along a run: with B_noise, which is dear, on fewer examples."""
    if hessian:
        return NoiseTracking(
            num_examples=2000, hessian=True, num_probes=4, hessian_examples=500, seed=seed
        )
    return NoiseTracking(num_examples=5000, seed=seed)


def runs(scale: str) -> list[tuple[TrainConfig, NoiseTracking]]:
    """How each is trained, and what is measured along it."""
    settings = SCALES[scale]
    with_hessian = settings["hessian_seeds"]
    return [
        (training, tracking(training.seed, hessian=training.seed in with_hessian))
        for training in grid(seeds=settings["seeds"])
    ]


calibration = goal_experiment(
    "calibration",
    runs,
    problem=PROBLEM,
    goals=GOALS,
    scales={
        "quick": "one seed, without B_noise",
        "full": "three, one of them with it",
    },
    help="Noise scales along runs at several rates, to calibrate the recommendation.",
)
