"""The noise scales along one run: whether and where the gradient becomes noisier in training.

MNIST at unit pixels, the study's network, SGD at lr 0.01, B = 128 and 32, two epochs. B_simple,
B_noise and every parameter tensor's part on a random 10,000 training images at eight steps in each
decade.
"""

from __future__ import annotations

from typing import Any

from experiments.runs import Case, experiment
from noisescale import ProblemConfig, RunOptions, TrainConfig
from noisescale.problems.sampling import independent_seed
from noisescale.training.records.names import run_name
from noisescale.training.tracking.noise import NoiseTracking

BATCH_SIZES = (128, 32)
SCALES: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": (0,),
        "epochs": 1,
        "tracking": NoiseTracking(every="log", num_examples=5000, per_layer=True),
    },
    "full": {
        "seeds": (0, 1, 2),
        "epochs": 2,
        "tracking": NoiseTracking(
            every="log", hessian=True, num_probes=8, hessian_examples=1024, per_layer=True
        ),
    },
}


def grid(*, seeds: tuple[int, ...], epochs: int) -> list[tuple[ProblemConfig, TrainConfig]]:
    """The runs, a batch size and a seed each."""
    return [
        (
            ProblemConfig(dataset="mnist"),
            TrainConfig(
                batch_size=batch_size,
                learning_rate=0.01,
                epochs=epochs,
                seed=seed,
                order_seed=independent_seed("noise growth", seed, batch_size),
            ),
        )
        for seed in seeds
        for batch_size in BATCH_SIZES
    ]


def cases(scale: str) -> list[Case]:
    """Measured as they train."""
    settings = SCALES[scale]
    options = RunOptions(noise=settings["tracking"])
    return [
        (run_name(problem, training), problem, training, options)
        for problem, training in grid(seeds=settings["seeds"], epochs=settings["epochs"])
    ]


noise_growth = experiment(
    "noise_growth",
    cases,
    scales={
        "quick": "one seed, one epoch, without B_noise",
        "full": "three seeds, two epochs, with B_noise",
    },
    help="B_simple and B_noise along training, by step, loss and layer.",
)
