"""The three-case study: MNIST at B = 1024, 32 and 1 with one rate, at raw and at unit pixels.

The study's question was why B = 1 diverged; the unit-pixel runs answer that its input scale did it.
"""

from __future__ import annotations

from typing import Any

from experiments.runs import Case, experiment
from noisescale import ProblemConfig, RunOptions, TrainConfig
from noisescale.training.records.names import run_name

SCALES: dict[str, dict[str, Any]] = {
    "quick": {"epochs": 2, "seeds": (0,)},
    "full": {"epochs": 30, "seeds": (0, 1, 2)},
}


def grid(*, epochs: int, seeds: tuple[int, ...]) -> list[tuple[ProblemConfig, TrainConfig]]:
    """The runs, longest first; B = 1 at unit pixels, most of an hour, runs at one seed alone."""
    return [
        (
            ProblemConfig(dataset="mnist", pixel_scale=pixel_scale),
            TrainConfig(batch_size=batch_size, learning_rate=1e-3, epochs=epochs, seed=seed),
        )
        for seed in seeds
        for batch_size in (1, 32, 1024)
        for pixel_scale in ("unit", "raw")
        if seed == seeds[0] or (batch_size, pixel_scale) != (1, "unit")
    ]  # fmt: skip


def cases(scale: str) -> list[Case]:
    return [
        (f"{problem.pixel_scale}-{run_name(problem, training)}", problem, training, RunOptions())
        for problem, training in grid(**SCALES[scale])
    ]


three_cases = experiment(
    "three_cases",
    cases,
    scales={"quick": "2 epochs, one seed", "full": "30 epochs, three seeds"},
    help="MNIST at B = 1024, 32 and 1, raw and unit pixels.",
)
