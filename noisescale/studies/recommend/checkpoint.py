"""What weights or a tracked run say of the batch size, without any training."""

from __future__ import annotations

import shlex
from pathlib import Path

import pandas as pd

from noisescale.problems.config import AnyConfig, FactoryConfig, ProblemConfig
from noisescale.problems.problem import Params, Problem, num_examples_of
from noisescale.statistics.critical_batch.advice import (
    Advice,
    BatchSizeSchedule,
    aimed_sizes,
    batch_size_schedule,
    in_use_text,
    interval_text,
    number_text,
)
from noisescale.statistics.critical_batch.recommendation import Recommendation, recommend
from noisescale.statistics.gradient_noise import NoiseScale
from noisescale.studies.critical_batch.config import (
    OWN_FACTORY,
    firmer_command,
    optimizer_words,
    problem_words,
)
from noisescale.studies.recommend.config import Budget
from noisescale.studies.recommend.look import noise_within
from noisescale.studies.recommend.optimizer import (
    caveat,
    scaling_rules,
)
from noisescale.training.config import TrainConfig
from noisescale.training.console import duration_text
from noisescale.training.records.folder import CONFIG, SUMMARY, parse_config, read_json
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
    found = _recommended(pd.DataFrame(rows), training)
    critical, size = found.critical_batch_size, _own_size(training, found.population_size)
    rules = scaling_rules(
        training,
        batch_size=size,
        learning_rate=training.learning_rate,
        critical=critical.value,
    )
    said = caveat(training.optimizer, in_geometry=found.geometry == "optimizer")
    advice = Advice(
        heading=(
            f"B_crit ≈ {number_text(critical.value)} ({interval_text(critical)}), by the noise "
            f"scale along {path}:"
        ),
        sizes=aimed_sizes(
            critical,
            population_size=found.population_size,
            rate=rules.rate_at,
            measured_at=[float(size)],
            beta2=rules.beta2_at,
            weight_decay=rules.weight_decay_at,
        ),
        in_use=in_use_text(in_use or size, critical),
        rules=rules.rules,
        worth=(
            *filter(None, [said, _caveat_of_sampling(training)]),
            f"Rates: as the run's own, {training.learning_rate:g} at B = {size:,}, which nothing "
            "tuned.",
        ),
        firmer=firmer_command(
            problem_of(path),
            training,
            critical=critical,
            num_examples=found.population_size,
        ),
        units_per_example=(read_json(path / SUMMARY) or {}).get("units_per_example"),
    )
    return advice, found


def _recommended(table: pd.DataFrame, training: TrainConfig) -> Recommendation:
    """What a run's noise.csv says, with what its training tells of its rate."""
    return recommend(
        table, learning_rate=training.constant_sgd_rate, optimizer=training.optimizer_kind
    )


def schedule_of_run(
    path: Path, training: TrainConfig, *, multiple_of: int = 1
) -> BatchSizeSchedule | None:
    """A batch size that grows along a run like this one; None where its noise was not tracked.

    Args:
        path: the run's folder.
        training: how it was trained.
        multiple_of: a number that divides every batch size.

    Raises:
        MeasurementError: too few of its measurements are resolved.
        SettingError: a multiple of more than all training examples.
    """
    rows = read_noise(path)
    if not rows:
        return None
    table = pd.DataFrame(rows)
    return batch_size_schedule(
        table,
        _recommended(table, training),
        multiple_of=multiple_of,
        units_per_example=(read_json(path / SUMMARY) or {}).get("units_per_example"),
    )


def advise_on_weights(
    problem: Problem,
    *,
    name: str,
    training: TrainConfig | None,
    in_use: int | None,
    budget: Budget,
    preconditioner: Params | None = None,
    seed: int = 0,
) -> tuple[Advice, NoiseScale]:
    """The advice from the noise at one point alone, which is B_simple there and no B_crit.

    Args:
        problem: its model holds the weights.
        name: of the weights, for the heading.
        training: how they were trained, where that is known.
        in_use: the batch size in use; None: that of the training.
        budget: of which a half may be spent.
        preconditioner: the optimizer's P by parameter, whose noise scale then counts.
        seed: of the examples measured on.

    Raises:
        MeasurementError: the gradients are not finite there, or cannot be taken.
    """
    num_examples = num_examples_of(problem.train)
    most = min(num_examples, NUM_EXAMPLES)
    measured, _ = noise_within(
        problem,
        budget,
        seconds=NOISE_SHARE * budget.seconds,
        most=most,
        seed=seed,
        preconditioner=preconditioner,
    )
    noise = measured.preconditioned or measured
    simple, quantity = noise.simple, "B_simple" if noise is measured else "B^P_simple"
    cost = f"Cost: {duration_text(budget.spent)}: the noise on {noise.num_examples:,} examples."
    firmer = recommend_command(problem.config, training)
    if not noise.resolved:
        needed = noise.examples_to_resolve
        return Advice(
            heading=f"{quantity} at {name}:",
            units_per_example=noise.units_per_example,
            cost=cost,
            firmer=firmer,
            reason=(
                f"|G|² there cannot be told from zero on {noise.num_examples:,} of "
                f"{num_examples:,} examples; "
                + (f"{needed:,} would do, " if needed and needed <= num_examples else "")
                + "give --minutes more, or weights of earlier in training"
            ),
        ), measured
    size = None if training is None else _own_size(training, num_examples)
    rules = said = None
    if training is not None and size is not None:
        rules = scaling_rules(
            training,
            batch_size=size,
            learning_rate=training.learning_rate,
            critical=simple.value,
        )
        said = caveat(training.optimizer, in_geometry=noise is not measured)
    used = in_use or size
    return Advice(
        heading=f"{quantity} ≈ {number_text(simple.value)} ({interval_text(simple)}) at {name}:",
        sizes=aimed_sizes(
            simple,
            population_size=num_examples,
            rate=None if rules is None else rules.rate_at,
            beta2=None if rules is None else rules.beta2_at,
            weight_decay=None if rules is None else rules.weight_decay_at,
        ),
        in_use=None if used is None else in_use_text(used, simple),
        rules=() if rules is None else rules.rules,
        worth=(
            *filter(None, [said, _caveat_of_sampling(training)]),
            "Of this point alone: the noise grows in training; how B_crit relates is unknown.",
        ),
        cost=cost,
        firmer=firmer,
        units_per_example=noise.units_per_example,
    ), measured


def problem_of(path: Path) -> AnyConfig | None:
    """What a run trains, as far as its folder says; None where it does not.

    Args:
        path: the run's folder.
    """
    record = read_json(path / CONFIG)
    return None if record is None else parse_config(path, record)[0]


def recommend_command(problem: AnyConfig | None, training: TrainConfig | None) -> str:
    """The `recommend` that trains and tracks a run.

    Args:
        problem: of it; None, and an object of Python: it stands for a factory.
        training: its optimizer, rate and batch size are the ones in use; None: not known.
    """
    words = ["noisescale recommend"]
    if isinstance(problem, FactoryConfig):
        words.append(shlex.quote(problem.factory))
    elif isinstance(problem, ProblemConfig):
        words += problem_words(problem)
    else:
        words.append(OWN_FACTORY)
    if training is not None:
        words += [f"--lr {training.learning_rate:.3g}", *optimizer_words(training.drawn_evenly())]
        if isinstance(training.batch_size, int):
            words.append(f"--bs {training.batch_size}")
    return " ".join(words)


def _caveat_of_sampling(training: TrainConfig | None) -> str | None:
    """What to say where the run's batches are not those whose noise was measured."""
    if training is None or training.sampling == "shuffle":
        return None
    return "The run drew by importance; this noise is that of examples drawn evenly."


def _own_size(training: TrainConfig, num_examples: int) -> int:
    """The batch size of a run, at first where it followed the noise."""
    if training.batch_size == "adaptive":
        assert training.adaptive is not None
        return training.adaptive.initial_batch_size
    return num_examples if training.batch_size == "full" else training.batch_size
