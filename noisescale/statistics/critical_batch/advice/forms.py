"""A batch-size schedule in the words of the projects that take one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

from noisescale.errors import SettingError, check_choice
from noisescale.statistics.critical_batch.advice.schedule import BatchSizeSchedule

Project = Literal["megatron", "olmo", "levanter", "lightning"]


def schedule_text(schedule: BatchSizeSchedule, project: Project) -> str:
    """The schedule as a project reads it, with comments on what it rests on.

    "megatron": `--step-batch-size-schedule`, THRESHOLD:BATCH_SIZE with thresholds in tokens, of
    Megatron-LM since April 2026 (megatron/core/num_microbatches_calculator.py), and the straight
    ramp that is nearest for `--rampup-batch-size` of releases before. "olmo":
    BatchSizeSchedulerCallback of OLMo-core, sizes and thresholds in tokens. "levanter":
    `train_batch_size` of its trainer's configuration, by step. "lightning":
    GradientAccumulationScheduler, batches to accumulate by epoch.

    Args:
        schedule: the batch sizes.
        project: which one.

    Returns:
        Lines to be copied, those of comments begin with "#".

    Raises:
        SettingError: a project that counts tokens, where it is not told how many an example has.
    """
    check_choice("schedule", project, get_args(Project))
    forms: dict[str, Callable[[BatchSizeSchedule], list[str]]] = {
        "megatron": _megatron,
        "olmo": _olmo,
        "levanter": _levanter,
        "lightning": _lightning,
    }
    return "\n".join([*_rests_on(schedule), *forms[project](schedule)])


def _rests_on(schedule: BatchSizeSchedule) -> list[str]:
    """What the schedule rests on, as comments."""
    share = math.floor(100 * schedule.covered)
    return [
        f"# B(t) = root of B_crit ({schedule.critical:,.3g}) times the noise scale at t, by the",
        f"# {schedule.num_resolved} resolved ones of {schedule.num_measurements} measurements "
        f"along a run. {share} % of its steps lie",
        "# between those; over the others, and after its end, nothing changes.",
    ]


def _tokens(schedule: BatchSizeSchedule, project: str) -> float:
    """Tokens of an example."""
    if schedule.units_per_example is None:
        raise SettingError(
            f"--schedule {project} counts tokens, and it is not told how many an example has: give "
            "the problem's units, as Problem(units=1024)"
        )
    return schedule.units_per_example


def _megatron(schedule: BatchSizeSchedule) -> list[str]:
    length = _whole(_tokens(schedule, "megatron"), "megatron")
    stages = schedule.stages
    pairs = " ".join(f"{stage.examples * length}:{stage.batch_size}" for stage in stages)
    lines = [
        f"# Thresholds in tokens, --seq-length {length}; leave --global-batch-size out.",
        f'--step-batch-size-schedule "{pairs}"',
    ]
    first, last = stages[0], stages[-1]
    if len(stages) > 1:
        lines += [
            "# Before April 2026 there are straight ramps alone; this one ends at that place:",
            f"--rampup-batch-size {first.batch_size} {first.batch_size} {last.examples} "
            f"--global-batch-size {last.batch_size}",
        ]
    return lines


def _olmo(schedule: BatchSizeSchedule) -> list[str]:
    length = _whole(_tokens(schedule, "olmo"), "olmo")
    sizes = ", ".join(str(stage.batch_size * length) for stage in schedule.stages)
    starts = ", ".join(f"Duration.tokens({stage.examples * length})" for stage in schedule.stages)
    return [
        "# Sizes in tokens; it multiplies Adam's rate by the root of each factor itself.",
        "BatchSizeSchedulerCallback(",
        f"    batch_sizes=[{sizes}],",
        f"    schedule=[{starts}],",
        ")",
    ]


def _levanter(schedule: BatchSizeSchedule) -> list[str]:
    return [
        "# Sequences, by the trainer's step.",
        "trainer:",
        "  train_batch_size:",
        *(
            line
            for stage in schedule.stages
            for line in (f"    - start: {stage.step}", f"      value: {stage.batch_size}")
        ),
    ]


def _lightning(schedule: BatchSizeSchedule) -> list[str]:
    """Each stage from the epoch that begins after it does; several in one epoch are its last."""
    loaded = schedule.multiple_of if schedule.multiple_of > 1 else schedule.stages[0].batch_size
    factors: dict[int, int] = {}
    for stage in schedule.stages:
        epoch = math.ceil(stage.examples / schedule.num_examples)
        factors[epoch] = stage.batch_size // loaded
    pairs = ", ".join(f"{epoch}: {factor}" for epoch, factor in factors.items())
    return [
        f"# Batches of {loaded} examples, over all devices, to accumulate from an epoch on.",
        f"GradientAccumulationScheduler(scheduling={{{pairs}}})",
    ]


def _whole(tokens: float, project: str) -> int:
    """The length of all sequences; SettingError where they differ."""
    if tokens != round(tokens):
        raise SettingError(
            f"--schedule {project} counts tokens of sequences of one length, and an example has "
            f"{tokens:.4g} here, on average: give --schedule levanter, which counts sequences"
        )
    return round(tokens)
