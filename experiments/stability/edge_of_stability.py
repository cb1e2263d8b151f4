"""The edge of stability: λ_max under gradient descent, batch sharpness under SGD, against 2/η.

A random 5,000 MNIST images, 784–200–200–10, cross-entropy and squared error. The smallest rates of
the squared error are those whose 2/η lies above λ_max at initialisation.
"""

from __future__ import annotations

from typing import Any

from experiments.runs import Case, experiment
from noisescale import ProblemConfig, RunOptions, TrainConfig
from noisescale.problems.config import LossName
from noisescale.training.records.names import run_name

# loss, learning rates, and steps of gradient descent or epochs of SGD at B = 8
GRADIENT_DESCENT: tuple[tuple[LossName, tuple[float, ...]], ...] = (
    ("cross_entropy", (0.1, 0.2, 0.4)),
    ("mse", (0.08, 0.1, 0.13)),
)
SGD: tuple[tuple[LossName, tuple[float, ...]], ...] = (
    ("cross_entropy", (0.05, 0.1)),
    ("mse", (0.1, 0.15)),
)
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": (0,), "steps": 200, "epochs": 4},
    "full": {"seeds": (0, 1), "steps": 800, "epochs": 16},
}
EVERY = {"full": 10, 8: 250}  # steps between two measurements, by batch size


def grid(
    *, seeds: tuple[int, ...], steps: int, epochs: int
) -> list[tuple[ProblemConfig, TrainConfig]]:
    """The runs: gradient descent for so many steps, SGD for so many epochs."""
    cases: list[tuple[ProblemConfig, TrainConfig]] = []
    for seed in seeds:
        for loss, rates in GRADIENT_DESCENT:
            for rate in rates:
                training = TrainConfig(
                    batch_size="full", learning_rate=rate, epochs=steps, seed=seed
                )
                cases.append((_problem(loss), training))
        for loss, rates in SGD:
            for rate in rates:
                training = TrainConfig(batch_size=8, learning_rate=rate, epochs=epochs, seed=seed)
                cases.append((_problem(loss), training))
    return cases


def _problem(loss: LossName) -> ProblemConfig:
    return ProblemConfig(dataset="mnist", num_train=5000, width=200, loss=loss)


def cases(scale: str) -> list[Case]:
    """Measured as they train, on all of their examples."""
    return [
        (
            f"{problem.loss}-{run_name(problem, training)}",
            problem,
            training,
            RunOptions(
                evaluate_every=100 if training.batch_size == "full" else 1,
                measure_sharpness_every=EVERY[training.batch_size],
            ),
        )
        for problem, training in grid(**SCALES[scale])
    ]


edge_of_stability = experiment(
    "edge_of_stability",
    cases,
    scales={
        "quick": "one seed, 200 steps or 4 epochs",
        "full": "two seeds, 800 steps or 16 epochs",
    },
    help="Sharpness along gradient descent and SGD, against 2/η.",
)
