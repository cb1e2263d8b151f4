"""A batch size that grows along a run, and that each project reads back what was meant."""

import ast
import itertools
import json
import math
import re
import shlex

import numpy as np
import pandas as pd
import pytest

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.critical_batch.advice import (
    BatchSizeSchedule,
    Stage,
    batch_size_schedule,
    schedule_text,
)
from noisescale.statistics.critical_batch.recommendation import recommend

POPULATION = 100_000


def tracked(scales, *, steps=None, batch_size=10, population=POPULATION):
    """The rows of a run along which these noise scales were measured; nan: not resolved."""
    values = np.array(scales, dtype=float)
    rows = {
        "step": 100 * np.arange(len(values)) if steps is None else steps,
        "batch_size": batch_size,
        "num_examples": 1000,
        "population_size": population,
        "full": math.nan,
        "squared_gradient_norm": 1 / values,
        "gradient_variance": 1.0,
    }
    for name in ("squared_gradient_norm", "simple"):
        base = values if name == "simple" else rows["squared_gradient_norm"]
        rows |= {name: base, f"{name}_stderr": 0.01 * base}
        rows |= {f"{name}_low": 0.98 * base, f"{name}_high": 1.02 * base}
    return pd.DataFrame(rows)


def schedule_of(table, **options):
    found = recommend(table)
    share = found.critical_batch_size.value / found.by_progress.value
    return batch_size_schedule(table, found, **options), found.critical_batch_size.value, share


def test_a_noise_scale_that_stays_gives_its_critical_batch_size_alone():
    made, critical, _ = schedule_of(tracked([300.0] * 5))
    assert made.stages == (Stage(0, 0, round(critical)),)
    eights, critical, _ = schedule_of(tracked([300.0] * 5), multiple_of=8)
    assert eights.stages == (Stage(0, 0, 8 * round(critical / 8)),)


def test_sixteen_times_the_noise_is_four_times_the_batch_from_the_same_progress_on():
    made, critical, share = schedule_of(tracked([50.0, 50.0, 800.0, 800.0]))
    first, second = made.stages
    assert first.batch_size == round(math.sqrt(critical * share * 50))
    assert second.batch_size == 4 * first.batch_size
    # E = 1 + B/𝓑 of the least examples for the same progress, at the geometric mean of two ends
    examples = sum(
        1000 * (first.batch_size + share * scale) / (10 + share * scale) for scale in (50, 200)
    )
    assert second.examples == round(examples)
    assert second.step == round(examples / first.batch_size)


def test_nothing_is_invented_where_it_is_not_resolved():
    made, _, _ = schedule_of(tracked([50.0, math.nan, 800.0, 800.0]))
    assert [stage.batch_size / made.stages[0].batch_size for stage in made.stages] == [1, 4]
    assert made.stages[1].examples == 2000  # as many as the run took, at 10 an update
    assert (made.num_resolved, made.num_measurements) == (3, 4)
    assert made.covered == pytest.approx(1 / 3)
    found = recommend(tracked([50.0, 50.0]))
    with pytest.raises(MeasurementError, match="no measurement of the noise"):
        batch_size_schedule(tracked([math.nan, math.nan]), found)


def test_a_noise_scale_that_falls_gives_one_batch_size():
    made, critical, share = schedule_of(tracked([800.0, 200.0, 100.0, 50.0]))
    mean = (800 * 200 * 100 * 50) ** 0.25  # pooled in logarithms
    assert made.stages == (Stage(0, 0, round(math.sqrt(critical * share * mean))),)


def test_every_schedule_is_one_that_all_can_read():
    random = np.random.default_rng(3)
    lengths = []
    for multiple in (1, 8, 24, 1000):
        for population in (3000, 10**7):
            scales = np.exp(random.normal(size=20).cumsum() + 4)
            scales[random.random(20) < 0.2] = math.nan
            steps = np.unique(np.geomspace(1, 3000, 20).round()).astype(int) - 1
            table = tracked(scales[: len(steps)], steps=steps, population=population)
            made, _, _ = schedule_of(table, multiple_of=multiple)
            sizes = [stage.batch_size for stage in made.stages]
            assert all(size % multiple == 0 and size <= population for size in sizes)
            assert all(big > small and big % small == 0 for small, big in itertools.pairwise(sizes))
            for name in ("examples", "step"):
                begins = [getattr(stage, name) for stage in made.stages]
                assert begins[0] == 0
                assert all(np.diff(begins) > 0)
            lengths.append(len(sizes))
    assert max(lengths) > 2


def test_a_multiple_of_more_than_there_are_is_refused():
    with pytest.raises(SettingError, match="there are 20 training examples; give 20 at most"):
        schedule_of(tracked([5.0, 5.0], population=20), multiple_of=21)


SCHEDULE = BatchSizeSchedule(
    stages=(Stage(0, 0, 24), Stage(2400, 100, 48), Stage(12_000, 300, 192)),
    multiple_of=8,
    num_examples=5000,
    num_resolved=9,
    num_measurements=11,
    covered=0.825,
    critical=123.4,
    units_per_example=1024.0,
)


def lines_of(project, schedule=SCHEDULE):
    """The lines that the project reads, and those of comments, which are 80 columns at most."""
    lines = schedule_text(schedule, project).splitlines()
    comments = [line for line in lines if line.startswith("#")]
    assert all(len(line) <= 80 for line in comments)
    assert "123" in comments[0]
    assert "9 resolved ones of 11 measurements along a run. 82 %" in comments[1]
    return [line for line in lines if not line.startswith("#")], comments


def test_megatron_reads_it_back():
    """As _parse_schedule and _validate_schedule of num_microbatches_calculator.py have it."""
    (steps, ramp), comments = lines_of("megatron")
    option, text = shlex.split(steps)
    assert option == "--step-batch-size-schedule"
    length = int(re.search(r"--seq-length (\d+)", " ".join(comments))[1])
    pairs = [tuple(map(int, entry.split(":"))) for entry in text.split()]
    read = [(threshold // length, size) for threshold, size in pairs]
    assert read == [(0, 24), (2400, 48), (12_000, 192)]
    option, start, increment, samples, flag, last = shlex.split(ramp)
    assert (option, flag) == ("--rampup-batch-size", "--global-batch-size")
    assert (int(last) - int(start)) % int(increment) == 0  # as its calculator asserts
    assert (int(start), int(samples), int(last)) == (24, 12_000, 192)


def test_olmo_reads_it_back():
    """As BatchSizeSchedulerCallback.__post_init__ has it."""
    lines, _ = lines_of("olmo")
    call = ast.parse("\n".join(lines)).body[0].value
    assert call.func.id == "BatchSizeSchedulerCallback"
    given = {keyword.arg: keyword.value.elts for keyword in call.keywords}
    assert set(given) == {"batch_sizes", "schedule"}
    sizes = [ast.literal_eval(each) for each in given["batch_sizes"]]
    assert {ast.unparse(each.func) for each in given["schedule"]} == {"Duration.tokens"}
    starts = [ast.literal_eval(each.args[0]) for each in given["schedule"]]
    assert starts == [0, 2400 * 1024, 12_000 * 1024]
    assert sizes == [24 * 1024, 48 * 1024, 192 * 1024]
    assert all(big % small == 0 for small, big in itertools.pairwise(sizes))


def test_levanter_reads_it_back():
    """A list of ScheduleStep under trainer.train_batch_size, as YAML; BatchSchedule's offsets."""
    (trainer, name, *entries), _ = lines_of("levanter")
    assert (trainer, name) == ("trainer:", "  train_batch_size:")
    found = re.fullmatch(r"((?: {4}- start: \d+\n {6}value: \d+\n)+)", "\n".join(entries) + "\n")
    numbers = list(map(int, re.findall(r"\d+", found[0])))
    steps = list(zip(numbers[::2], numbers[1::2], strict=True))
    assert steps == [(0, 24), (100, 48), (300, 192)]
    offset = sum((until - start) * size for (start, size), (until, _) in itertools.pairwise(steps))
    assert offset == 12_000  # examples before the last stage


def test_lightning_reads_it_back():
    """As GradientAccumulationScheduler.__init__ has it: epochs from 0, whole factors."""
    (line,), comments = lines_of("lightning")
    call = ast.parse(line).body[0].value
    assert call.func.id == "GradientAccumulationScheduler"
    scheduling = ast.literal_eval(call.keywords[0].value)
    assert call.keywords[0].arg == "scheduling"
    assert "Batches of 8 examples" in comments[-1]
    # 2,400 of 5,000 are within the first epoch, 12,000 within the third
    assert scheduling == {0: 3, 1: 6, 3: 24}


def test_tokens_are_counted_where_they_are_known_and_alike():
    def of(units):
        return BatchSizeSchedule(**{**vars(SCHEDULE), "units_per_example": units})

    for project in ("megatron", "olmo"):
        with pytest.raises(SettingError, match="not told how many an example has"):
            schedule_text(of(None), project)
        with pytest.raises(SettingError, match="sequences of one length"):
            schedule_text(of(99.5), project)
    for project in ("levanter", "lightning"):
        assert schedule_text(of(None), project) == schedule_text(SCHEDULE, project)
    with pytest.raises(SettingError, match="choose one of megatron"):
        schedule_text(SCHEDULE, "deepspeed")


def test_it_is_strict_json():
    stored = json.loads(json.dumps(SCHEDULE.to_dict(), allow_nan=False))
    assert stored["stages"][1] == {"examples": 2400, "step": 100, "batch_size": 48}
