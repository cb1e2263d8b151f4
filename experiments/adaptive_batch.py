"""An adaptive batch size against fixed ones: steps and examples to one loss, rates tuned alike.

MNIST, 784–256–256–10, SGD. Every batch size is trained at half, once and twice ε(B) = 0.5/(1 +
100/B), the form of McCandlish et al. 2018 (2.6). B = √(r·B_simple) starts at B = 32, either at
those rates for 32 and following the noise, or at constant rates, those for 100: a fixed batch size
has a constant rate too.
"""

from __future__ import annotations

from typing import Any

from experiments.runs import Case, experiment
from noisescale import ProblemConfig, RunOptions, TrainConfig
from noisescale.training.config import AdaptiveConfig, LrScaling
from noisescale.training.records.names import run_name
from noisescale.training.tracking.noise import NoiseTracking

PROBLEM = ProblemConfig(dataset="mnist", width=256)
EPOCHS = {16: 2, 32: 2, 64: 2, 128: 3, 256: 4, 512: 6, 1024: 8}  # by fixed batch size
ADAPTIVE_EPOCHS = {30.0: 2, 100.0: 2, 300.0: 3, 1000.0: 4}  # by exchange rate
RATES_OF: dict[LrScaling, int] = {
    "noise": 32,
    "none": 100,
}  # the batch size whose rates each rule is given
FACTORS = (0.5, 1.0, 2.0)
SCALES: dict[str, dict[str, Any]] = {"quick": {"seeds": (0,)}, "full": {"seeds": (0, 1, 2, 3, 4)}}


def rate(batch_size: int) -> float:
    """What the learning rates of this batch size are centred on."""
    return 0.5 / (1 + 100 / batch_size)


def grid(*, seeds: tuple[int, ...]) -> list[TrainConfig]:
    """The runs, seed by seed."""
    runs = []
    for seed in seeds:
        for factor in FACTORS:
            for batch_size, epochs in EPOCHS.items():
                learning_rate = factor * rate(batch_size)
                runs.append(
                    TrainConfig(
                        batch_size=batch_size, learning_rate=learning_rate, epochs=epochs, seed=seed
                    )
                )
            for lr_scaling, like in RATES_OF.items():
                for exchange_rate, epochs in ADAPTIVE_EPOCHS.items():
                    runs.append(
                        TrainConfig(
                            batch_size="adaptive",
                            adaptive=AdaptiveConfig(
                                exchange_rate=exchange_rate, lr_scaling=lr_scaling
                            ),
                            learning_rate=factor * rate(like),
                            epochs=epochs,
                            seed=seed,
                        )
                    )
    return runs


def cases(scale: str) -> list[Case]:
    """With the loss on 2,000 fixed training images at log-spaced steps."""
    options = RunOptions(noise=NoiseTracking(every="log", num_examples=2000))
    return [
        (run_name(PROBLEM, training), PROBLEM, training, options)
        for training in grid(**SCALES[scale])
    ]


adaptive_batch = experiment(
    "adaptive_batch",
    cases,
    scales={"quick": "one seed", "full": "five seeds"},
    help="Steps and examples to a loss, adaptive against fixed batch sizes.",
)
