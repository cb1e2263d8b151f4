"""What do wrong labels, and fewer classes, make of the noise scale?

MNIST, 784–256–256–10, SGD, B = 64, ε = .1, five seeds. A share p = 0, .05, .1, .2, .4, .6 of the
training labels is replaced by another class; then the first C = 5 classes alone, at p = 0, .2 and
.4, and the first 2, at p = 0 and .2. |G|² and tr Σ on all training images at initialisation, and on
10,000 random ones after 100, 300 and 936 updates, and at each look within ± 10 % of a validation
loss of .52·log C, .52 of chance's (validation labels are right, so it is the same task at every p;
at C = 10 it is 1.2, and at p = .6 no model can come below .92, nor at p = .4 with two classes below
theirs). Numbers of images are multiples of B, but of mixtures. And mixtures of the ten classes, in
which the first has ρ = 10 or 100 times as many images as the last, with right labels; their
validation images are the same. Runs of one seed share their initialisation, their orders at equal
C, and the images measured on.

The law: labels of which a share p is wrong are ones of which a share q = p·C/(C − 1) is drawn
evenly from all classes. At any parameters G(p) = (1 − q)·G(0) + q·G_even, and the mean of |g|²
likewise, with the gradients of the same images under right labels and under every class in turn:
from these, measured on all images at initialisation, B_simple(p) follows but for the draw of the
labels. A data set's wrong labels are one draw for all seeds, whose error would be common to them;
so the law is held against labels that are drawn anew for each seed. Were outputs equal, G_even
would vanish and the mean of |g|² not change, so that B_simple(p) + 1 = (B_simple(0) + 1)/(1 − q)²,
which is the (1 − p)⁻² of the literature.

Primary statistic: at initialisation B_simple(p) over the prediction by the same seed's gradients,
for each p > 0 and C, a geometric mean over seeds with Student's t; Holm over all of them. Beside
it: the same over (B_simple(0) + 1)/(1 − q)² − 1; B_simple(p)/B_simple(0) later on and at equal
validation loss, and the same ratio of |G|² and tr Σ; B_simple at C = 2 and 5 over that at 10; and
of each mixture over equal classes.

The critical batch size itself: at p = 0, .2 and .4 and C = 10, by the command's search of rates at
B = 4, 8, …, 512 for test losses of 1.2, .9 and .7, whose labels are right; three seeds. Reported
beside the law: log of B_crit(p)/B_crit(0), each from the seed's own runs, mean over seeds with
Student's t, Holm over p and losses.

Some 15 core minutes at full scale, and 30 for the critical batch sizes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.batches.scores import identity
from experiments.composition.equal_loss import (
    NEAR,
    current,
    noise_at,
    sparse_looks,
    values_of,
)
from experiments.runs import Unit, unit_experiment
from noisescale import (
    CriticalBatchConfig,
    Examples,
    ProblemConfig,
    TrainConfig,
    gradient_moments,
    measure_noise,
)
from noisescale.problems.config import MOST_CLASSES
from noisescale.problems.data.splits import with_wrong_labels
from noisescale.problems.problem import num_examples_of
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.records.folder import nullable
from noisescale.training.trainer import Training

WIDTH, BATCH_SIZE, RATE = 256, 64, 0.1
NUM_EXAMPLES = 10_000
NUM_TRAIN = {10: 936 * 64, 5: 478 * 64, 2: 197 * 64}  # images, by the number of classes
STEPS = (0, 100, 300, 936)  # updates; 936 are an epoch of all classes
EQUAL_LOSS = "equal loss"  # what the looks near the validation loss are called
OF_CHANCE = 0.52  # of the validation loss log C of equal outputs
SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.6)  # of wrong labels
FEWER = ((5, 0.0), (5, 0.2), (5, 0.4), (2, 0.0), (2, 0.2))  # classes and shares
FRONT_SIZES = tuple(2**power for power in range(2, 10))
FRONT_IMAGES = 117 * 512
SCALES: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": 2,
        "steps": (0, 100),
        "cases": ((10, 0.0), (10, 0.4), (2, 0.0)),
        "imbalances": (10.0,),
        "fronts": {"shares": (0.0, 0.4), "goals": (1.5,), "seeds": 2, "sizes": FRONT_SIZES[::2]},
    },
    "full": {
        "seeds": 5,
        "steps": STEPS,
        "cases": (*((10, share) for share in SHARES), *FEWER),
        "imbalances": (10.0, 100.0),
        "fronts": {
            "shares": (0.0, 0.2, 0.4),
            "goals": (1.2, 0.9, 0.7),  # test loss; at p = .4 no model comes below .51
            "seeds": 3,
            "sizes": FRONT_SIZES,
        },
    },
}


def course(
    cell: Cell,
    training: Training,
    curve: LossCurve,
    *,
    classes: int,
    steps: tuple[int, ...],
    shares: tuple[float, ...] = (),
) -> dict[str, Any]:
    """Trains to the last of the steps, and measures at each and near the validation loss.

    Before, where there are shares of wrong labels: what the law is made of, and the noise under
    each of them.
    """
    goal = OF_CHANCE * math.log(classes)
    rows: list[dict[str, Any]] = []

    def note(point: str, validation_loss: float) -> None:
        losses = {
            "validation_loss": validation_loss,
            "train_loss": curve.look(training.step, training.model),
        }
        number = NUM_EXAMPLES if training.step else num_examples_of(training.problem.train)
        noise = noise_at(training, num_examples=number)
        rows.append({"point": point, "step": training.step, **nullable(losses), **noise})

    law: dict[str, Any] = {}
    if shares:
        law["mixture"] = mixed(training, classes)
        law["redrawn"] = [redrawn(training, classes, share) for share in shares]
    held_out = LossCurve(training.problem, "validation")
    for step, loss in sparse_looks(training, held_out, besides=steps):
        if step in steps:
            note(f"step {step}", loss)
        if abs(loss / goal - 1) <= NEAR:
            note(EQUAL_LOSS, loss)
    return {**identity(cell, training), "num_classes": classes, "goal": goal, "rows": rows, **law}


def mixed(training: Training, classes: int) -> dict[str, float]:
    """What the law is made of: products of mean gradients, and mean squares of examples'.

    clean: under the labels as they are; even: under each class in turn, its mean over all.
    """
    problem = current(training)
    examples = problem.train
    assert isinstance(examples, Examples)
    assert isinstance(examples.targets, torch.Tensor)
    means, squares = [], []
    for label in (None, *range(classes)):
        targets = examples.targets if label is None else torch.full_like(examples.targets, label)
        labelled = replace(problem, train=Examples(examples.inputs, targets))
        moments = gradient_moments(labelled, standard_errors=False)
        means.append(torch.cat([mean.flatten() for mean in moments.mean.values()]))
        squares.append(float(moments.squared_norms.sum()) / moments.num_examples)
    clean, even = means[0], torch.stack(means[1:]).mean(0)
    return {
        "clean_clean": float(clean @ clean),
        "clean_even": float(clean @ even),
        "even_even": float(even @ even),
        "clean_squares": squares[0],
        "even_squares": sum(squares[1:]) / classes,
    }


def redrawn(training: Training, classes: int, share: float) -> dict[str, float]:
    """The noise on all training images with a share of wrong labels, drawn for this seed."""
    problem = current(training)
    examples = problem.train
    assert isinstance(examples, Examples)
    assert isinstance(examples.targets, torch.Tensor)
    seed = independent_seed("redrawn", training.config.seed, classes)
    targets = with_wrong_labels(
        examples.targets, share, classes, torch.Generator().manual_seed(seed)
    )
    noise = measure_noise(replace(problem, train=Examples(examples.inputs, targets)))
    return {"label_noise": share, **values_of(noise)}


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """All shares, classes and mixtures of a seed, then those of the next."""
    settings = SCALES[scale]
    cases = [(classes, share, 1.0) for classes, share in settings["cases"]]
    wrong: dict[int, list[float]] = {}  # shares above 0, by the number of classes
    for classes, share, _ in cases:
        wrong.setdefault(classes, []).extend([share] if share else [])
    cases += [(MOST_CLASSES, 0.0, imbalance) for imbalance in settings["imbalances"]]
    yield [
        Unit(
            folder=_folder(classes, share, imbalance, seed),
            problem=ProblemConfig(
                dataset="mnist",
                num_train=None if imbalance > 1 else NUM_TRAIN[classes],
                width=WIDTH,
                label_noise=share,
                classes=None if classes == MOST_CLASSES else classes,
                imbalance=imbalance,
            ),
            training=TrainConfig(
                batch_size=BATCH_SIZE,
                learning_rate=RATE,
                epochs=10,
                max_steps=max(settings["steps"]),
                seed=seed,
                order_seed=independent_seed("heterogeneity", seed, classes),
            ),
            course=partial(
                course,
                classes=classes,
                steps=settings["steps"],
                shares=tuple(wrong[classes]) if share == 0 and imbalance == 1 else (),
            ),
        )
        for seed in range(settings["seeds"])
        for classes, share, imbalance in cases
    ]


def _folder(classes: int, share: float, imbalance: float, seed: int) -> str:
    mixed = "" if imbalance == 1 else f"-imbalance{imbalance:g}"
    return f"classes{classes}-noise{share:g}{mixed}-seed{seed}"


def fronts(scale: str) -> dict[str, CriticalBatchConfig]:
    """B_crit for test losses at each share of wrong labels."""
    settings = SCALES[scale]["fronts"]
    return {
        f"noise{share:g}": CriticalBatchConfig(
            problem=ProblemConfig(
                dataset="mnist", num_train=FRONT_IMAGES, width=WIDTH, label_noise=share
            ),
            batch_sizes=settings["sizes"],
            goals=settings["goals"],
            split="test",
            num_seeds=settings["seeds"],
            noise_examples=None,
        )
        for share in settings["shares"]
    }


heterogeneity = unit_experiment(
    "heterogeneity",
    units,
    fronts=fronts,
    scales={
        "quick": "two seeds, three cases, 100 updates",
        "full": "five seeds of six shares of wrong labels, and of two and five classes",
    },
    help="The noise scale against wrong labels and the number of classes.",
)
