"""The edge of stability under RMSprop: λ_max of P^½HP^½ along full-batch training, against 2/η.

A random 2,000 MNIST images, 784–64–64–10, squared error, α = .99; all of them in every update.
"""

from __future__ import annotations

from typing import Any

from experiments.runs import Case, experiment
from noisescale import ProblemConfig, RunOptions, TrainConfig
from noisescale.training.records.names import run_name

RATES = (2e-4, 1e-3)
PROBLEM = ProblemConfig(dataset="mnist", num_train=2000, width=64, loss="mse")
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": (0,), "steps": 200},
    "full": {"seeds": (0, 1, 2), "steps": 1500},
}


def grid(*, seeds: tuple[int, ...], steps: int) -> list[TrainConfig]:
    """The runs, each for so many steps."""
    return [
        TrainConfig(
            batch_size="full", optimizer="rmsprop", learning_rate=rate, epochs=steps, seed=seed
        )
        for seed in seeds
        for rate in RATES
    ]


def cases(scale: str) -> list[Case]:
    """Measured as they train, on all of their examples."""
    options = RunOptions(evaluate_every=250, measure_sharpness_every=50)
    return [
        (run_name(PROBLEM, training), PROBLEM, training, options)
        for training in grid(**SCALES[scale])
    ]


preconditioned_edge = experiment(
    "preconditioned_edge",
    cases,
    scales={"quick": "one seed, 200 steps", "full": "three seeds, 1,500 steps"},
    help="Curvature under RMSprop's P along full-batch training, against 2/η.",
)
