"""What weights or a tracked run say of the batch size, without any training."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from noisescale.problems.problem import Problem, num_examples_of
from noisescale.statistics.critical_batch.advice import (
    Advice,
    aimed_sizes,
    in_use_text,
    interval_text,
    number_text,
    rate_law,
)
from noisescale.statistics.critical_batch.recommendation import Recommendation, recommend
from noisescale.statistics.gradient_noise import NoiseScale
from noisescale.studies.recommend.budget import Budget
from noisescale.studies.recommend.look import noise_within
from noisescale.training.config import TrainConfig
from noisescale.training.console import duration_text
from noisescale.training.records.folder import SUMMARY, read_json
from noisescale.training.records.tables import read_noise
from noisescale.training.tracking.noise import NUM_EXAMPLES

NOISE_SHARE = 0.5  # of the budget, for a measurement: its time is known to a factor of two


def advise_on_run(
    path: Path, training: TrainConfig, *, in_use: int | None
) -> tuple[Advice, Recommendation] | None:
    """The advice from the noise.csv of a tracked run; None where it has none.

    Args:
        path: the run's folder.
        training: how it was trained, at rates that nothing tuned.
        in_use: the batch size in use; None: the run's own.

    Raises:
        MeasurementError: too few of its measurements are resolved.
    """
    rows = read_noise(path)
    if not rows:
        return None
    found = recommend(pd.DataFrame(rows), learning_rate=training.constant_sgd_rate)
    critical, size = found.critical_batch_size, _own_size(training, found.population_size)
    law = rate_law(
        training.optimizer,
        batch_size=size,
        learning_rate=training.learning_rate,
        critical=critical.value,
    )
    advice = Advice(
        heading=(
            f"B_crit ≈ {number_text(critical.value)} ({interval_text(critical)}), by the noise "
            f"scale along {path}:"
        ),
        sizes=aimed_sizes(
            critical,
            population_size=found.population_size,
            rate=law.rate,
            measured_at=[float(size)],
        ),
        in_use=in_use_text(in_use or size, critical),
        worth=(
            f"Rates: as the run's own, {training.learning_rate:g} at B = {size:,}, which nothing "
            "tuned.",
        ),
        firmer="noisescale critical-batch, which tunes the rate at each of several batch sizes",
        units_per_example=(read_json(path / SUMMARY) or {}).get("units_per_example"),
    )
    return advice, found


def advise_on_weights(
    problem: Problem,
    *,
    name: str,
    training: TrainConfig | None,
    in_use: int | None,
    budget: Budget,
    seed: int = 0,
) -> tuple[Advice, NoiseScale]:
    """The advice from the noise at one point alone, which is B_simple there and no B_crit.

    Args:
        problem: its model holds the weights.
        name: of the weights, for the heading.
        training: how they were trained, where that is known.
        in_use: the batch size in use; None: that of the training.
        budget: of which a half may be spent.
        seed: of the examples measured on.

    Raises:
        MeasurementError: the gradients are not finite there, or cannot be taken.
    """
    num_examples = num_examples_of(problem.train)
    most = min(num_examples, NUM_EXAMPLES)
    noise, _ = noise_within(
        problem, budget, seconds=NOISE_SHARE * budget.seconds, most=most, seed=seed
    )
    simple = noise.simple
    cost = f"Cost: {duration_text(budget.spent)}: the noise on {noise.num_examples:,} examples."
    firmer = "noisescale recommend FILE.py:FACTORY, which trains and tracks a run"
    if not noise.resolved:
        needed = noise.examples_to_resolve
        return Advice(
            heading=f"B_simple at {name}:",
            units_per_example=noise.units_per_example,
            cost=cost,
            firmer=firmer,
            reason=(
                f"|G|² there cannot be told from zero on {noise.num_examples:,} of "
                f"{num_examples:,} examples; "
                + (f"{needed:,} would do, " if needed and needed <= num_examples else "")
                + "give --minutes more, or weights of earlier in training"
            ),
        ), noise
    size = None if training is None else _own_size(training, num_examples)
    rate = None
    if training is not None and size is not None:
        law = rate_law(
            training.optimizer,
            batch_size=size,
            learning_rate=training.learning_rate,
            critical=simple.value,
        )
        rate = law.rate
    used = in_use or size
    return Advice(
        heading=f"B_simple ≈ {number_text(simple.value)} ({interval_text(simple)}) at {name}:",
        sizes=aimed_sizes(simple, population_size=num_examples, rate=rate),
        in_use=None if used is None else in_use_text(used, simple),
        worth=("Of this point alone: the noise grows in training; how B_crit relates is unknown.",),
        cost=cost,
        firmer=firmer,
        units_per_example=noise.units_per_example,
    ), noise


def _own_size(training: TrainConfig, num_examples: int) -> int:
    """The batch size of a run, at first where it followed the noise."""
    if training.batch_size == "adaptive":
        assert training.adaptive is not None
        return training.adaptive.initial_batch_size
    return num_examples if training.batch_size == "full" else training.batch_size
