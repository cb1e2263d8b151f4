"""Accuracy against the batch size at fixed η/B, with and without batch norm, and ghost batches.

A random 6,144 MNIST images, a multiple of every batch size: else an epoch ends on a smaller batch
at the whole batch's rate, and the model is scored right after it (of 6,000 images the last 112 at B
= 256, after which the loss was seen to have risen from .09 to .31). 784–128–128–10, SGD, 10 epochs;
B = 1, 2, …, 1,024 and η̃ = η/B = 2⁻¹², …, 2⁻⁴, from 2⁻¹⁴ on where B is 512 or more; five seeds. The
same with batch norm from B = 2 on, three seeds. Then ghost batch norm at B = 16, 64, 256:
statistics of parts of b = 2, 4, … ≤ B examples, at the η̃ that is best for batch norm at this B,
eight seeds. Each batch size has its own orders of the examples. Scores are on all 10,000 official
test images, after the last epoch; with batch norm under statistics of all training images, since
the running ones are of the last twenty batches or so, or parts of them, which are few examples
where these are small.

Primary statistics, all by seed: at η̃ = 2⁻⁹ the accuracy at each B less that at B = 16, Holm over
B; the width in octaves of the η̃ whose mean accuracy is within .01 of the best at this B, by linear
interpolation, its interval by a bootstrap over seeds; the best accuracy over η̃ with batch norm
less that without, at each B; the accuracy at each b less that at b = B, and the best b with the b
that are best in 95 % of bootstrap draws over seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.batches.scores import identity, test_scores, train_scores
from experiments.runs import Unit, unit_experiment
from noisescale import ProblemConfig, TrainConfig
from noisescale.problems.config import Norm
from noisescale.problems.models import has_batch_norm
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.evaluation import renew_batch_statistics
from noisescale.training.records.folder import SUMMARY, read_json
from noisescale.training.records.names import run_name
from noisescale.training.trainer import Training

PROBLEM = ProblemConfig(dataset="mnist", num_train=6144, width=128)
SIZES = tuple(2**power for power in range(11))
EXPONENTS = tuple(range(-12, -3))  # of η̃ = η/B, to the base of 2
LOWER, LARGE = (-14, -13), 512  # besides, from this batch size on, where the usable ones lie lower
GHOSTS = {16: (2, 4, 8, 16), 64: (2, 4, 8, 16, 32, 64), 256: (2, 4, 8, 16, 32, 64, 128, 256)}
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"epochs": 1, "seeds": (1, 1, 1), "sizes": (4, 64), "exponents": (-9, -7)},
    "full": {"epochs": 10, "seeds": (5, 3, 8), "sizes": SIZES, "exponents": EXPONENTS},
}


def course(cell: Cell, training: Training, curve: LossCurve) -> dict[str, Any]:
    """Trains to the end and scores the model there."""
    for _ in training:
        pass
    problem, model = training.problem, training.model
    found = {**identity(cell, training), **train_scores(problem, model)}
    found |= test_scores(problem, model)
    if not has_batch_norm(model):
        return found
    renew_batch_statistics(model, training.examples)
    renewed = test_scores(problem, model)
    return found | {f"renewed_{name}": renewed[name] for name in ("test_loss", "test_accuracy")}


def unit(
    norm: Norm,
    batch_size: int,
    exponent: int,
    seed: int,
    *,
    epochs: int,
    ghost: int | None = None,
) -> Unit:
    """One run."""
    problem = replace(PROBLEM, norm=norm, ghost_size=ghost)
    training = TrainConfig(
        batch_size=batch_size,
        learning_rate=batch_size * 2.0**exponent,
        epochs=epochs,
        seed=seed,
        order_seed=independent_seed("small batches", seed, batch_size),
    )
    part = norm if ghost is None else f"ghost{ghost}"
    folder = f"{part}/{run_name(problem, training)}"
    return Unit(folder=folder, problem=problem, training=training, course=course)


def grid(norm: Norm, *, scale: str) -> list[Unit]:
    """Every batch size at every η̃; batch norm takes two examples at least."""
    settings = SCALES[scale]
    num_seeds = settings["seeds"][0 if norm == "none" else 1]
    return [
        unit(norm, size, exponent, seed, epochs=settings["epochs"])
        for seed in range(num_seeds)
        for size in reversed(settings["sizes"])
        for exponent in ((*LOWER, *EXPONENTS) if size >= LARGE else settings["exponents"])
        if norm == "none" or size > 1
    ]


def best_exponent(out: Path, batch_size: int, batch_norm: list[Unit]) -> int:
    """Of the η̃ at which batch norm has the highest mean accuracy at this batch size."""
    accuracies: dict[int, list[float]] = {}
    for unit in batch_norm:
        if unit.training.batch_size == batch_size:
            summary = read_json(out / unit.folder / SUMMARY) or {}
            exponent = round(math.log2(unit.training.learning_rate / batch_size))
            accuracies.setdefault(exponent, []).append(summary["renewed_test_accuracy"])
    return max(accuracies, key=lambda exponent: statistics.mean(accuracies[exponent]))


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """Both grids, then the ghosts at the best η̃ of batch norm."""
    yield grid("none", scale=scale)
    batch_norm = grid("batch", scale=scale)
    yield batch_norm
    settings = SCALES[scale]
    yield [
        unit(
            "ghost",
            batch_size,
            best_exponent(out, batch_size, batch_norm),
            seed,
            epochs=settings["epochs"],
            ghost=ghost,
        )
        for seed in range(settings["seeds"][2])
        for batch_size, ghosts in GHOSTS.items()
        if batch_size in settings["sizes"]
        for ghost in ghosts
    ]


small_batches = unit_experiment(
    "small_batches",
    units,
    scales={"quick": "one epoch of few runs", "full": "515 runs, 282 with batch norm, 144 ghosts"},
    help="Accuracy against the batch size at fixed rate over batch size.",
)
