"""The three-case study: MNIST at B = 1024, 32 and 1 with one rate, at raw and at unit pixels.

The study's question was why B = 1 diverged; the unit-pixel runs answer that its input scale did it.
"""

from __future__ import annotations

from typing import Any

from experiments.runs import Case, experiment
from noisescale import ProblemConfig, RunOptions, TrainConfig
from noisescale.training.records.names import run_name

SCALES: dict[str, dict[str, Any]] = {
    "quick": {"epochs": 2, "seeds": {1: 1, 32: 1, 1024: 1}},
    "full": {"epochs": 30, "seeds": {1: 3, 32: 5, 1024: 5}},
}


def grid(*, epochs: int, seeds: dict[int, int]) -> list[tuple[ProblemConfig, TrainConfig]]:
    """The runs, the longest last; seeds: how many of each batch size."""
    return [
        (
            ProblemConfig(dataset="mnist", pixel_scale=pixel_scale),
            TrainConfig(batch_size=batch_size, learning_rate=1e-3, epochs=epochs, seed=seed),
        )
        for batch_size in sorted(seeds, reverse=True)
        for seed in range(seeds[batch_size])
        for pixel_scale in ("raw", "unit")
    ]


def cases(scale: str) -> list[Case]:
    return [
        (f"{problem.pixel_scale}-{run_name(problem, training)}", problem, training, RunOptions())
        for problem, training in grid(**SCALES[scale])
    ]


three_cases = experiment(
    "three_cases",
    cases,
    scales={"quick": "2 epochs, one seed", "full": "30 epochs, five seeds, at B = 1 three"},
    help="MNIST at B = 1024, 32 and 1, raw and unit pixels.",
)
