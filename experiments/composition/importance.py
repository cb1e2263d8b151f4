"""Does sampling by importance lower the critical batch size, and by the factor forecast?

A random 6,144 training images of MNIST, so that a run to a loss of .05 sees each several times and
its running scores are worth something; 784–256–256–10, SGD. B_crit for training losses .4, .2, .1
and .05 by the command's search of rates at B = 16, 32, …, 1,024, five seeds, once with examples
drawn evenly and once with `sampling="importance"`; all else is the same. Both draw with replacement
(a floor of 1 is even chances): shuffled batches are without, and over several passes their noise is
less than that of the forecast, in a trial by a fifth of the steps at B = 32.

The forecast, which is written to forecast.json before any of those runs: along a run by importance
at B = 64, ε = .1 for each seed, at some 24 steps and on all 6,144 images, |G|², tr Σ and what the
run's own chances leave of it, f = (mean |g|²/(N·p) − |G|²)/tr Σ. E_min/S_min is B_simple averaged
by progress (McCandlish et al. 2018, 2.12), so that up to each loss B_crit should fall by the factor
Σ w·B_simple·f/Σ w·B_simple, w the progress of each stretch, 1/(1 + f·B_simple/B) a step. Beside it
the same with what fresh gradient norms and no floor would leave, the bound.

Primary statistic, at each loss: log of B_crit by importance over that of even draws, each from the
seed's own runs, less the log of the seed's forecast, mean over seeds with Student's t; Holm over
the losses. Beside it the ratio itself, that of S_min, which should be 1, and that of E_min.

Some 40 core minutes at full scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.batches.scores import identity
from experiments.composition.equal_loss import current
from experiments.runs import Unit, unit_experiment
from noisescale import CriticalBatchConfig, ProblemConfig, TrainConfig, gradient_moments
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve, looks
from noisescale.training.records.folder import SUMMARY, nullable, read_json, write_json
from noisescale.training.tracking.rows import is_due
from noisescale.training.trainer import Training
from noisescale.training.updates.importance import ImportanceBatches

PROBLEM = ProblemConfig(dataset="mnist", width=256, num_train=6144)
GOALS = (0.4, 0.2, 0.1, 0.05)  # training loss
BATCH_SIZE, RATE, EPOCHS = 64, 0.1, 40  # of the runs that the forecast is made of
SIZES = tuple(2**power for power in range(4, 11))
FORECAST = "forecast.json"
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "num_train": 1024, "goals": (1.0, 0.4), "sizes": (16, 64, 256, 1024)},
    "full": {"seeds": 5, "num_train": PROBLEM.num_train, "goals": GOALS, "sizes": SIZES},
}


def course(cell: Cell, training: Training, curve: LossCurve, *, lowest: float) -> dict[str, Any]:
    """Trains to the lowest loss, and measures what the chances leave of tr Σ on the way."""
    rows = []
    for step in looks(training, curve, lambda step: is_due(step, "log")):
        loss = curve.points[-1][1]
        rows.append({"step": step, "loss": loss, **noise_left(training)})
        if loss <= lowest:
            break
    return {**identity(cell, training), "rows": rows}


def noise_left(training: Training) -> dict[str, float]:
    """|G|² and tr Σ of all training examples, and the shares of tr Σ that importance leaves.

    left: by the run's chances as they are. best: by fresh norms, ((mean |g|)² − |G|²)/tr Σ.
    """
    batches = training.batches
    assert isinstance(batches, ImportanceBatches)
    moments = gradient_moments(current(training), standard_errors=False)
    squares, signal = moments.squared_norms.sum(1), float(moments.mean_squares.sum())
    variance = float(squares.mean()) - signal
    return {
        "squared_gradient_norm": signal,
        "gradient_variance": variance,
        "left": variance_left(squares, signal, batches.chances.cpu().numpy()) / variance,
        "best": (float(np.sqrt(squares).mean()) ** 2 - signal) / variance,
    }


def variance_left(squares: np.ndarray, signal: float, chances: np.ndarray) -> float:
    """Tr of the covariance of g_i/(N·p_i) for i drawn by p: Σ|g_i|²/(N²·p_i) − |G|².

    Args:
        squares: |g_i|² of all N examples (N,).
        signal: |G|².
        chances: p_i (N,).
    """
    return float((squares / (len(squares) * chances)).mean()) - signal


def forecast(rows: list[dict[str, Any]], goal: float, which: str) -> float:
    """By which factor B_crit for a loss should fall, from the rows of a run.

    nan where the run does not reach it.

    Args:
        rows: of `course`.
        goal: the loss.
        which: "left" or "best".
    """
    reached = [place for place, row in enumerate(rows) if row["loss"] <= goal]
    if not reached:
        return math.nan
    end = reached[0]
    steps, signal, variance, left = (
        np.array([row[name] for row in rows[: end + 1]], dtype=float)
        for name in ("step", "squared_gradient_norm", "gradient_variance", which)
    )
    own = np.array([row["left"] for row in rows[: end + 1]], dtype=float)
    simple = variance / signal
    weights = simple / (1 + own * simple / BATCH_SIZE)  # by the progress of a step of this run
    stretches = np.diff(steps)

    def summed(values: np.ndarray) -> float:
        return float((stretches * (values[1:] + values[:-1]) / 2).sum())

    return summed(weights * left) / summed(weights)


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """The runs that the forecast is made of; once they are finished it is written."""
    settings = SCALES[scale]
    made = [
        Unit(
            folder=f"forecast-seed{seed}",
            problem=replace(PROBLEM, num_train=settings["num_train"]),
            training=TrainConfig(
                batch_size=BATCH_SIZE,
                learning_rate=RATE,
                epochs=EPOCHS,
                seed=seed,
                order_seed=independent_seed("importance", seed),
                sampling="importance",
            ),
            course=partial(course, lowest=min(settings["goals"])),
        )
        for seed in range(settings["seeds"])
    ]
    yield made
    if not (out / FORECAST).exists():
        write_forecast(out, [unit.folder for unit in made], settings["goals"])


def write_forecast(out: Path, folders: list[str], goals: tuple[float, ...]) -> None:
    """Writes the factor of each seed and loss, by the run's own chances and by the best ones."""
    found = []
    for folder in folders:
        summary = read_json(out / folder / SUMMARY) or {}
        for goal in goals:
            factors = {which: forecast(summary["rows"], goal, which) for which in ("left", "best")}
            found.append({"seed": summary["seed"], "goal": goal, **nullable(factors)})
    write_json(out / FORECAST, {"factors": found})


def fronts(scale: str) -> dict[str, CriticalBatchConfig]:
    """B_crit of both ways to draw examples."""
    settings = SCALES[scale]
    return {
        sampling: CriticalBatchConfig(
            problem=replace(PROBLEM, num_train=settings["num_train"]),
            training=training,
            batch_sizes=settings["sizes"],
            goals=settings["goals"],
            num_seeds=settings["seeds"],
            epochs=EPOCHS,
            noise_examples=None,
        )
        for sampling, training in (
            ("even", TrainConfig(sampling="importance", sampling_floor=1.0)),
            ("importance", TrainConfig(sampling="importance")),
        )
    }


importance = unit_experiment(
    "importance",
    units,
    fronts=fronts,
    scales={
        "quick": "1,024 images, four batch sizes, two losses and seeds",
        "full": "6,144 images, seven batch sizes, four losses, five seeds",
    },
    help="The critical batch size by importance sampling, beside a forecast from gradient norms.",
)
