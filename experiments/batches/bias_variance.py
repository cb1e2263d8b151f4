"""Bias, variance and bagging at B = 4, 32 and 256, and the learning rate that folds choose.

A pool of 2,000 MNIST images, 784–128–128–10, SGD at ε(B) = .5/(1 + 100/B). Eight bootstrap samples
of the pool × two initialisations × two orders of the examples, all crossed, samples and
initialisations the same at every B, orders each B's own, each trained to a loss of .02 on its own
sample. Then the choice of the rate: factors of 1/4 to 4 on ε(B), by the error on the fold left out
of five, beside the test error of models trained on the whole pool at each, two seeds. Scores on all
10,000 official test images.

Primary statistics: the Brier score's bias² + noise and variance at B = 256 less those at B = 4,
paired over draws and examples (the gain by the mean of 8 models is seven eighths of the variance).
Beside them: the variance's components; the out-of-bag score of 8 models against their test score;
the test error at the rate that folds choose (lowest error, and the smallest rate within one
standard error of it) less the lowest over rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from experiments.batches.scores import identity, test_scores, with_all_held_out
from experiments.runs import Unit, unit_experiment
from noisescale import Problem, ProblemConfig, TrainConfig
from noisescale.problems.problem import Examples
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.evaluation import evaluate, mean_loss
from noisescale.training.records.folder import nullable
from noisescale.training.trainer import Training

POOL = 2000
PROBLEM = ProblemConfig(dataset="mnist", num_train=POOL, width=128)
SIZES = (4, 32, 256)
GOAL = 0.02  # training loss that every model is trained to
LOOK = 100  # examples between two looks at it, or a step: a run stops near the goal
EPOCHS = 150  # at most, for rates at which a model dies
SAMPLES, INITIALISATIONS, ORDERS = 8, 2, 2
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
FOLDS = 5
PREDICTIONS = "predictions.npz"
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"sizes": (32, 256), "samples": 3, "factors": (0.5, 2.0), "goal": 0.5},
    "full": {"sizes": SIZES, "samples": SAMPLES, "factors": FACTORS, "goal": GOAL},
}


def rate(batch_size: int) -> float:
    """What the learning rates of this batch size are centred on."""
    return 0.5 / (1 + 100 / batch_size)


def in_bag(sample: int) -> Tensor:
    """The places in the pool of a bootstrap sample (2,000,), the same at every batch size."""
    generator = torch.Generator().manual_seed(independent_seed("bootstrap", sample))
    return torch.randint(POOL, (POOL,), generator=generator)


def fold_of() -> Tensor:
    """The fold of each example of the pool (2,000,), all of one size."""
    generator = torch.Generator().manual_seed(independent_seed("folds"))
    return torch.randperm(POOL, generator=generator) % FOLDS


def train_to_goal(problem: Problem, config: TrainConfig, goal: float) -> Training:
    """A run that ends once the loss on its training examples is seen at the goal."""
    training = Training(problem, config)
    every = math.ceil(LOOK / training.batch_size)
    assert isinstance(training.examples, Examples)
    for step in training:
        if step % every == 0:
            loss = mean_loss(training.model, problem.loss, training.examples)
            if loss <= goal:
                break
    return training


def bootstrap(
    cell: Cell, training: Training, curve: LossCurve, *, labels: dict[str, int], goal: float
) -> dict[str, Any]:
    """Trains on a bootstrap sample and stores what the model makes of pool and test images."""
    pool, problem = training.examples, training.problem
    assert isinstance(pool, Examples)
    places = in_bag(labels["sample"])
    run = train_to_goal(replace(problem, train=pool.part(places)), cell.training, goal)
    test = with_all_held_out(problem).test
    assert isinstance(test, Examples)
    np.savez(
        cell.path / PREDICTIONS,
        pool=probabilities(run.model, pool.inputs),
        test=probabilities(run.model, test.inputs),
        pool_targets=pool.targets.numpy(),
        test_targets=test.targets.numpy(),
        in_bag=torch.bincount(places, minlength=POOL).numpy(),
    )
    sample = problem.loss, run.examples
    return {
        **identity(cell, run),
        "part": "bootstrap",
        **labels,
        "train_loss": mean_loss(run.model, *sample),
        **test_scores(problem, run.model),
    }


@torch.no_grad()
def probabilities(model: nn.Module, inputs: Tensor) -> np.ndarray:
    """Of the classes, (n, C)."""
    found: np.ndarray = model(inputs).softmax(1).numpy()
    return found


def fold(
    cell: Cell, training: Training, curve: LossCurve, *, labels: dict[str, Any], goal: float
) -> dict[str, Any]:
    """Trains on all folds but one, or on the whole pool, and scores what was left out."""
    pool, problem = training.examples, training.problem
    assert isinstance(pool, Examples)
    folds = fold_of()
    kept = folds != labels["fold"]  # fold −1: nothing is left out
    run = train_to_goal(
        replace(problem, train=pool.part(kept.nonzero().flatten())), cell.training, goal
    )
    left_out = (~kept).nonzero().flatten()
    scores = {}
    if len(left_out):
        accuracy = evaluate(run.model, problem.loss, pool.part(left_out)).accuracy
        scores = {"left_out_accuracy": accuracy, "num_left_out": len(left_out)}
    assert isinstance(run.examples, Examples)
    return {
        **identity(cell, run),
        "part": "folds",
        **labels,
        **scores,
        **nullable({"train_loss": mean_loss(run.model, problem.loss, run.examples)}),
        **test_scores(problem, run.model),
    }


def _training(batch_size: int, factor: float, seed: int, order: int) -> TrainConfig:
    return TrainConfig(
        batch_size=batch_size,
        learning_rate=factor * rate(batch_size),
        epochs=EPOCHS,
        seed=seed,
        order_seed=independent_seed("bias and variance", order, batch_size),
    )


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """The crossed bootstrap runs, then the folds."""
    settings = SCALES[scale]
    goal = settings["goal"]
    yield [
        Unit(
            folder=f"bootstrap/bs{batch_size}-sample{sample}-init{seed}-order{order}",
            problem=PROBLEM,
            training=_training(batch_size, 1.0, seed, order),
            course=partial(
                bootstrap,
                labels={"sample": sample, "initialisation": seed, "order": order},
                goal=goal,
            ),
        )
        for sample in range(settings["samples"])
        for batch_size in settings["sizes"]
        for seed in range(INITIALISATIONS)
        for order in range(ORDERS)
    ]
    yield [
        Unit(
            folder=f"folds/bs{batch_size}-factor{factor:g}-fold{left_out}-seed{seed}",
            problem=PROBLEM,
            training=_training(batch_size, factor, seed, seed),
            course=partial(fold, labels={"fold": left_out, "factor": factor}, goal=goal),
        )
        for batch_size in settings["sizes"]
        for factor in settings["factors"]
        for left_out, seed in (*((number, 0) for number in range(FOLDS)), (-1, 0), (-1, 1))
    ]


bias_variance = unit_experiment(
    "bias_variance",
    units,
    scales={
        "quick": "three samples, two sizes, to a loss of .5",
        "full": "eight samples, two initialisations, two orders, and 105 runs for the folds",
    },
    help="Bias and variance against the batch size, bagging and folds.",
)
