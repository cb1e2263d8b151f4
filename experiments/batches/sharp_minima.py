"""Do large batches end in sharper minima, compared at equal epochs, equal updates and equal loss?

A random 8,000 MNIST images, a multiple of both batch sizes, so that no run is measured after a
smaller batch at the whole batch's rate. 784–256–256–10: B = 64 against 1,000, cross-entropy (five
seeds); SGD at one rate for both, SGD with each at its own best rate, Adam at 1e-3. The scale "all"
has squared error (three seeds) as well, and once the network F1 of Keskar et al. 2017, Adam, to
2,000 updates. Each run is measured after 20 epochs, after 2,500 updates (20 epochs at B = 64), and
where the loss on all training images is within a tenth of .01 and half of the looks of the last
epoch are no higher, so that a dip of a loss that goes up and down is not taken for it: λ_max and
trace of the Hessian over all images; Keskar's φ over a fixed 1,000 of them, for ε = 1e-3 and 5e-4
and in a box of 5 % of each filter's norm, after 10 and after 50 iterations; loss and accuracy on
training and on all official test images. Then both on the line between the two models of a seed, α
= −.5, …, 1.5.

The best rates are those with the highest accuracy on another 8,000 training images after 2,500
updates, of a seed that is not used again.

Primary statistics, paired by seed, with 95 % intervals of Student's t: log of the ratio of λ_max,
of the trace, of φ (ε = 1e-3, 50 iterations) and of φ by filters, large batch over small, and the
difference of the test accuracies, for each case and each stop; Holm over all cases and stops of a
quantity. φ is the largest value found in so many iterations, a lower bound. The headline is λ_max
and test accuracy of SGD at one rate, cross-entropy, at equal updates, and the same at equal loss.
Of the line: the barrier of the test loss, the largest excess over the chord between the two ends, α
in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.batches.scores import identity, test_scores, train_scores, with_all_held_out
from experiments.runs import Unit, unit_experiment
from noisescale import (
    Objective,
    ProblemConfig,
    SharpnessOptions,
    TrainConfig,
    interpolate,
    keskar_sharpness,
    measure_sharpness,
)
from noisescale.measure.curvature.keskar import Space
from noisescale.problems.data.splits import load_splits
from noisescale.problems.problem import Examples
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.config import OptimizerName
from noisescale.training.evaluation import evaluate
from noisescale.training.records.checkpoint import load_checkpoint, save_checkpoint
from noisescale.training.records.folder import STEP_CHECKPOINTS, SUMMARY, nullable, read_json
from noisescale.training.trainer import Training

N = 8000
CROSS_ENTROPY = ProblemConfig(dataset="mnist", num_train=N, width=256)
SQUARED_ERROR = replace(CROSS_ENTROPY, loss="mse")
F1 = replace(CROSS_ENTROPY, width=512, depth=5, norm="batch")  # five layers of 512, as the paper's
SMALL, LARGE = 64, 1000  # the paper's large batch is a tenth of its data, this one an eighth
EPOCHS, UPDATES, LOSS = 20, 2500, 0.01  # where runs are compared
WITHIN = 0.1  # of that loss
LOOK = 5  # updates between two looks for it, on 2,000 examples
LAST = 8000  # updates, whether or not the loss has been reached
RATE = 0.1  # of SGD at one rate for both
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)  # that the best ones are chosen from
TUNING_SEED = 100
PHI_EXAMPLES = 1000
EPSILONS = (1e-3, 5e-4)
FILTER_EPSILON = 0.05  # of each filter's norm, about as far as ε = 1e-3 moves a weight here
ITERATIONS = (10, 50)  # of L-BFGS-B: the paper's, and more
POINTS = 41  # on the line


@dataclass(frozen=True, kw_only=True)
class Case:
    """A comparison of the two batch sizes; rates: of small and large, None: those tuned."""

    name: str
    problem: ProblemConfig
    optimizer: OptimizerName
    rates: tuple[float, float] | None
    last: int = LAST


CASES = (
    Case(name="sgd", problem=CROSS_ENTROPY, optimizer="sgd", rates=(RATE, RATE)),
    Case(name="sgd-tuned", problem=CROSS_ENTROPY, optimizer="sgd", rates=None),
    Case(name="adam", problem=CROSS_ENTROPY, optimizer="adam", rates=(1e-3, 1e-3)),
    Case(name="mse-sgd", problem=SQUARED_ERROR, optimizer="sgd", rates=(RATE, RATE)),
    Case(name="mse-sgd-tuned", problem=SQUARED_ERROR, optimizer="sgd", rates=None),
    Case(name="mse-adam", problem=SQUARED_ERROR, optimizer="adam", rates=(1e-3, 1e-3)),
    Case(name="f1-adam", problem=F1, optimizer="adam", rates=(1e-3, 1e-3), last=2000),
)
# the others, of squared error, have three
SEEDS = {"sgd": 5, "sgd-tuned": 5, "adam": 5, "f1-adam": 1}
STOPS = {"last": LAST, "epochs": EPOCHS, "updates": UPDATES}
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": {"sgd": 1, "adam": 1}, "last": 60, "epochs": 2, "updates": 60},
    "full": {
        "seeds": {name: number for name, number in SEEDS.items() if number > 1},
        **STOPS,
    },
    "all": {"seeds": {**dict.fromkeys((case.name for case in CASES), 3), **SEEDS}, **STOPS},
}


def tune(cell: Cell, training: Training, curve: LossCurve) -> dict[str, Any]:
    """Trains to equal updates and scores the model on training images that are not its own."""
    for _ in training:
        pass
    more = load_splits("mnist", num_train=2 * N, data_dir=cell.data_dir, device=cell.device)
    others = more.train.part(slice(N, 2 * N))  # a subset begins with the smaller ones
    scores = evaluate(training.model, training.problem.loss, others)
    return {**identity(cell, training), "part": "tuning", "held_out": scores.accuracy}


def best_rate(out: Path, problem: ProblemConfig, batch_size: int) -> float:
    """The rate with the highest held-out accuracy among the tuning runs of a loss and a size."""
    found = {}
    for rate in RATES:
        summary = read_json(out / _tuning_folder(problem, batch_size, rate) / SUMMARY)
        assert summary is not None
        found[rate] = summary["held_out"]
    return max(found, key=lambda rate: found[rate])


def descend(
    cell: Cell,
    training: Training,
    curve: LossCurve,
    *,
    case: str,
    epochs: int,
    updates: int,
) -> dict[str, Any]:
    """Trains past all three stops, or to the last update, and measures at each."""
    states: list[dict[str, Any]] = []
    for step in training:
        stops = [
            name
            for name, reached in (
                ("epochs", training.epoch_ended and round(training.epoch) == epochs),
                ("updates", step == updates),
                ("loss", _loss_reached(training, curve, step, states)),
            )
            if reached
        ]
        if stops:
            save_checkpoint(training.checkpoint(), _checkpoint(cell.path, step))
            measured = measure(training)
            states += [{"stop": stop, "step": step, **measured} for stop in stops]
        if len(states) == 3:
            break
    return {**identity(cell, training), "part": "minima", "case": case, "states": states}


def _loss_reached(
    training: Training, curve: LossCurve, step: int, states: list[dict[str, Any]]
) -> bool:
    """Whether the loss on all training examples is at the goal, and not by a dip of its own."""
    if step % LOOK or any(state["stop"] == "loss" for state in states):
        return False
    curve.look(step, training.model)
    looks = math.ceil(N / training.batch_size / LOOK)  # of an epoch
    recent = [loss for _, loss in curve.points[-looks:]]
    if not (np.median(recent) <= (1 + WITHIN) * LOSS and recent[-1] >= (1 - 2 * WITHIN) * LOSS):
        return False
    loss = train_scores(training.problem, training.model)["train_loss"]
    return loss is not None and abs(loss / LOSS - 1) <= WITHIN


def measure(training: Training) -> dict[str, Any]:
    """Curvature and scores of the model as it is."""
    problem = replace(training.problem, model=training.model)
    options = SharpnessOptions(trace=True, rtol=1e-2)
    sharpness = measure_sharpness(problem, options=options)
    assert sharpness.largest is not None
    assert sharpness.moments is not None
    found: dict[str, Any] = {
        "sharpness": sharpness.largest.value.value,
        "trace": sharpness.moments.trace.value,
        **train_scores(problem, training.model),
        **test_scores(problem, training.model),
    }
    assert isinstance(training.examples, Examples)
    part = training.examples.part(slice(PHI_EXAMPLES))
    objective = Objective(problem, examples=part, dtype=torch.float64)
    boxes: tuple[tuple[str, Space, float], ...] = (
        *((f"phi_{epsilon:g}", "full", epsilon) for epsilon in EPSILONS),
        ("phi_filter", "filter", FILTER_EPSILON),
    )
    for name, space, epsilon in boxes:
        searched = keskar_sharpness(
            objective, epsilon=epsilon, space=space, max_iterations=max(ITERATIONS)
        )
        for iterations in ITERATIONS:
            # where the search has ended before, what it ended at
            place = min(iterations, searched.iterations)
            found[f"{name}_{iterations}"] = searched.history[place]
    return found


def draw_line(
    cell: Cell, training: Training, curve: LossCurve, *, case: str, ends: tuple[Path, Path]
) -> dict[str, Any]:
    """Loss and accuracy on the line from the small batch's model (α = 0) to the large one's."""
    runs = [read_json(end / SUMMARY) or {} for end in ends]
    problem = with_all_held_out(training.problem)
    rows = []
    for stop in ("epochs", "updates", "loss"):
        steps = [state["step"] for run in runs for state in run["states"] if state["stop"] == stop]
        if len(steps) < 2:  # one of them has not reached it
            continue
        first, second = (
            load_checkpoint(_checkpoint(end, step)) for end, step in zip(ends, steps, strict=True)
        )
        line = interpolate(problem, first, second, alphas=np.linspace(-0.5, 1.5, POINTS).tolist())
        for place, alpha in enumerate(line.alphas):
            scores = {
                f"{split}_{name}": float(values[place].value)
                for split, found in line.splits.items()
                for name, values in (("loss", found.losses), ("accuracy", found.accuracies))
            }
            rows.append({"stop": stop, "alpha": alpha, **nullable(scores)})
    return {**identity(cell, training), "part": "line", "case": case, "rows": rows}


def _checkpoint(path: Path, step: int) -> Path:
    return path / STEP_CHECKPOINTS / f"step-{step}.pt"


def _training(case: Case, batch_size: int, rate: float, seed: int, steps: int) -> TrainConfig:
    return TrainConfig(
        batch_size=batch_size,
        learning_rate=rate,
        optimizer=case.optimizer,
        epochs=math.ceil(steps * batch_size / N) + 1,
        max_steps=steps,
        seed=seed,
        order_seed=independent_seed("sharp minima", seed, batch_size),
    )


def _tuning_folder(problem: ProblemConfig, batch_size: int, rate: float) -> str:
    return f"tuning/{problem.loss}-bs{batch_size}-lr{rate:g}"


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """The runs at given rates; tuning; the runs at the best rates; the lines."""
    settings = SCALES[scale]
    cases = [case for case in CASES if case.name in settings["seeds"]]
    minima: dict[str, tuple[Path, Path]] = {}

    def runs(case: Case, rates: tuple[float, float]) -> Iterator[Unit]:
        last = min(case.last, settings["last"])
        for seed in range(settings["seeds"][case.name]):
            folders = []
            for batch_size, rate in zip((SMALL, LARGE), rates, strict=True):
                folder = f"{case.name}/bs{batch_size}-seed{seed}"
                folders.append(out / folder)
                yield Unit(
                    folder=folder,
                    problem=case.problem,
                    training=_training(case, batch_size, rate, seed, last),
                    course=partial(
                        descend,
                        case=case.name,
                        epochs=settings["epochs"],
                        updates=settings["updates"],
                    ),
                )
            minima[f"{case.name}/line-seed{seed}"] = (folders[0], folders[1])

    yield [unit for case in cases if case.rates for unit in runs(case, case.rates)]
    tuned = [case for case in cases if case.rates is None]
    yield [
        Unit(
            folder=_tuning_folder(case.problem, batch_size, rate),
            problem=case.problem,
            training=_training(case, batch_size, rate, TUNING_SEED, UPDATES),
            course=tune,
        )
        for case in tuned
        for batch_size in (SMALL, LARGE)
        for rate in RATES
    ]
    yield [
        unit
        for case in tuned
        for unit in runs(
            case,
            (best_rate(out, case.problem, SMALL), best_rate(out, case.problem, LARGE)),
        )
    ]
    problems = {case.name: case for case in cases}
    lines = []
    for folder, ends in minima.items():
        case = problems[folder.partition("/")[0]]
        seed = int(folder.rpartition("seed")[2])
        lines.append(
            Unit(
                folder=folder,
                problem=case.problem,
                training=_training(case, SMALL, RATE, seed, 1),
                course=partial(draw_line, case=case.name, ends=ends),
            )
        )
    yield lines


sharp_minima = unit_experiment(
    "sharp_minima",
    units,
    scales={
        "quick": "60 updates, one seed, without tuning",
        "full": "cross-entropy to 8,000 updates, five seeds",
        "all": "squared error as well, three seeds, and F1, one",
    },
    help="Sharpness and generalisation of large and small batches.",
)
