"""An adaptive batch size against fixed ones: steps and examples to three losses, rates tuned alike.

MNIST, 784–256–256–10, SGD, each run as long as it takes to the lowest loss. The learning rates are
multiples of ε(B) = 0.5/(1 + 100/B), the form of McCandlish et al. 2018 (2.6), three for each batch
size and around the best one. B = √(r·B_simple) starts at B = 32, either at the rates for 32 and
following the noise, or at constant rates, those for 100: a fixed batch size has a constant one too.
Each batch size, and each way to adapt it, has its own orders of the examples.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.runs import goal_experiment
from noisescale import ProblemConfig, TrainConfig
from noisescale.problems.sampling import independent_seed
from noisescale.training.config import AdaptiveConfig, LrScaling
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


def runs(scale: str) -> list[tuple[TrainConfig, NoiseTracking]]:
    """With the noise scale along each, on the same random images whatever the seed."""
    return [(training, TRACKING) for training in grid(**SCALES[scale])]


adaptive_batch = goal_experiment(
    "adaptive_batch",
    runs,
    problem=PROBLEM,
    goals=GOALS,
    scales={"quick": "one seed", "full": "five seeds"},
    help="Steps and examples to a loss, adaptive against fixed batch sizes.",
)
