"""Who carries the gradient noise along training, and is its growth signal lost or noise gained?

A random 20,032 images of MNIST, a multiple of B, and all there are here: at one point the noise of
a data set is exact then, and errors are over seeds alone. 784–256–256–10, SGD, B = 64, ε = .1, five
seeds, measured at initialisation and at each look within ± 10 % of a training loss of 1.5, 1, .6,
.4, .25, .15, .08, .04 and .02, whose means stand for it, since |G|² goes up and down with the loss:
|G|², tr Σ, the Lorenz curve of |g_i − G|², n_eff, what lies between classes, what the misclassified
hold, the noisiest 1 %, the first layer's gradient along the principal components of the pixels, and
what the best importance sampling would leave of tr Σ. Then the noisiest 1 % are deleted, or as many
random images instead, and |G|² and tr Σ of the rest measured at the same parameters.

Primary statistics, means over seeds with Student's t:
1. of the growth of log B_simple from loss .4 to .02, the part that is −log |G|²; the rest is log tr
   Σ;
2. at .02, the share of tr Σ that the noisiest 1 % hold, and n_eff;
3. at .02, the overlap of the noisiest 1 % between two seeds (chance: 1 %) at their first looks, by
   a jackknife over seeds;
4. at .02, B_simple without the noisiest 1 % over that without a random 1 %, paired by seed;
5. what importance sampling would leave at each loss: a forecast, tested elsewhere;
6. "clear features first": B_simple of the pixels' components 1–8 over that of 65–784, at .25 over
   that at initialisation, paired by seed; above 1 the leading components' signal is spent first.
Holm over 4 and 6. Beside them all of it at every loss, and overlaps between losses of one seed.

Some 20 core minutes at full scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.batches.scores import identity
from experiments.composition.equal_loss import current, looks_at, values_of
from experiments.runs import Unit, unit_experiment
from noisescale import (
    GradientMoments,
    ProblemConfig,
    TrainConfig,
    gradient_moments,
    measure_noise,
)
from noisescale.problems.problem import source_of
from noisescale.problems.sampling import independent_seed
from noisescale.statistics.gradient_noise import NoiseAnatomy
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.trainer import Training

PROBLEM = ProblemConfig(dataset="mnist", width=256)
NUM_TRAIN = 313 * 64
GOALS = (1.5, 1.0, 0.6, 0.4, 0.25, 0.15, 0.08, 0.04, 0.02)  # training loss
EPOCHS = 40  # at most; the lowest loss takes about ten
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "num_train": 78 * 64, "goals": (1.0, 0.4)},
    "full": {"seeds": 5, "num_train": NUM_TRAIN, "goals": GOALS},
}


def course(
    cell: Cell, training: Training, curve: LossCurve, *, goals: tuple[float, ...]
) -> dict[str, Any]:
    """Trains below the lowest loss, and measures at the start and near each loss."""
    points = [{"goal": None, "step": 0, "loss": None, **dissect(training)}]
    for step, loss, goal in looks_at(training, curve, goals):
        points.append({"goal": goal, "step": step, "loss": loss, **dissect(training)})
    return {**identity(cell, training), "points": points}


def dissect(training: Training) -> dict[str, Any]:
    """The anatomy of the noise on all training examples, and the noise of what deletion leaves."""
    noise = measure_noise(current(training), anatomy=True)
    anatomy = noise.anatomy
    assert anatomy is not None
    generator = torch.Generator().manual_seed(
        independent_seed("deleted", training.config.seed, training.step)
    )
    number = len(anatomy.noisiest)
    by_chance = torch.randperm(anatomy.num_examples, generator=generator)[:number].numpy()
    whole = gradient_moments(current(training), standard_errors=False)
    return {
        **values_of(noise),
        "top_share": anatomy.variance_share(0.01),
        "anatomy": _kept(anatomy),
        "without_noisiest": noise_without(training, whole, anatomy.noisiest),
        "without_random": noise_without(training, whole, by_chance),
    }


def _kept(anatomy: NoiseAnatomy) -> dict[str, Any]:
    """Of the anatomy what a table is made of."""
    record = anatomy.to_dict()
    del record["per_layer"]  # noise_growth has the layers
    return record


def noise_without(
    training: Training, whole: GradientMoments, deleted: np.ndarray
) -> dict[str, Any]:
    """|G|² and tr Σ of the training examples but for some, by the gradients of these alone.

    Args:
        training: as far as it has come.
        whole: of all its examples.
        deleted: their places.
    """
    problem = current(training)
    few = source_of(problem.train).subset(torch.from_numpy(deleted))
    gone = gradient_moments(replace(problem, train=few), standard_errors=False)
    left = whole.num_examples - len(deleted)
    signal = sum(
        float(((whole.num_examples * mean - len(deleted) * gone.mean[name]) / left).square().sum())
        for name, mean in whole.mean.items()
    )
    squares = float(whole.squared_norms.sum() - gone.squared_norms.sum()) / left
    return {"squared_gradient_norm": signal, "gradient_variance": squares - signal}


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """A run for each seed."""
    settings = SCALES[scale]
    yield [
        Unit(
            folder=f"seed{seed}",
            problem=replace(PROBLEM, num_train=settings["num_train"]),
            training=TrainConfig(
                batch_size=64,
                learning_rate=0.1,
                epochs=EPOCHS,
                seed=seed,
                order_seed=independent_seed("anatomy", seed),
            ),
            course=partial(course, goals=settings["goals"]),
        )
        for seed in range(settings["seeds"])
    ]


anatomy = unit_experiment(
    "anatomy",
    units,
    scales={
        "quick": "two seeds, 4,992 images, to a loss of .4",
        "full": "five seeds, 20,032 images, to a loss of .02",
    },
    help="Who carries the gradient noise along training, and what deleting them changes.",
)
