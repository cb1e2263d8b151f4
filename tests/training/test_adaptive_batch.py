"""The adaptive batch size: its rule, its bounds, and the runs it makes."""

import copy
import dataclasses
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from noisescale.errors import CheckpointError, SettingError
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.problems.config import ProblemConfig
from noisescale.statistics.critical_batch.curves.steps_vs_examples import Tradeoff
from noisescale.statistics.estimate import exact, from_stderr, undefined
from noisescale.statistics.gradient_noise import GradientNoise
from noisescale.statistics.running_noise import RunningNoise, two_batch
from noisescale.training.adaptive_batch import AdaptiveBatchSize
from noisescale.training.config import AdaptiveConfig, TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.tables import BATCH_SIZE, BATCH_SIZE_COLUMNS, read_batch_size
from noisescale.training.run import RunOptions, run_training
from noisescale.training.trainer import CHUNK, Training, train
from tests.helpers.problems import classification

DIGITS = ProblemConfig(dataset="digits", width=16)
SMALL = {"batch_size": "adaptive", "learning_rate": 0.1, "noise_memory": 500, "exchange_rate": 100}


def noise(value, *, low=None):
    """A resolved B_simple, or one of which only a bound is known."""
    simple = (
        from_stderr(value, abs(value) / 10, num_samples=50)
        if low is None
        else undefined(num_samples=50, low=low)
    )
    return GradientNoise(exact(1.0), exact(1.0), simple, None, "training")


class Heard:
    """A monitor of which every estimate is known."""

    def __init__(self, *found, updates=100):
        self.found = list(found)
        self.num_updates = updates
        self.pending = (8, 24)

    def update(self):
        self.present = self.found.pop(0)
        self.num_updates += 1

    def noise(self):
        return self.present

    def state_dict(self):
        return {}


def scheduled(*found, updates=100, **settings):
    """The batch size and rate after each of these estimates."""
    config = TrainConfig.from_dict(
        {"batch_size": "adaptive", "learning_rate": 0.1, "exchange_rate": 100, **settings}
    )
    schedule = AdaptiveBatchSize(config, torch.nn.Linear(2, 2), num_examples=60_000)
    schedule.monitor = Heard(*found, updates=updates)
    made = []
    for step in range(1, len(found) + 1):
        schedule.update(step)
        made.append((schedule.batch_size, schedule.learning_rate))
    return schedule, made


def test_the_batch_size_is_the_root_of_exchange_rate_times_noise_scale():
    schedule, made = scheduled(noise(400.0), noise(900.0))
    assert [size for size, _ in made] == [200, 300]
    assert schedule.changed_at_step == 2


def test_hysteresis_holds_what_is_nearly_right():
    _, made = scheduled(noise(400.0), noise(600.0), noise(620.0), noise(630.0), hysteresis=1.25)
    assert [size for size, _ in made] == [
        200,
        200,
        200,
        251,
    ]  # √(100·600) = 245 < 250, √(100·630) = 251


def test_bounds_hold():
    _, made = scheduled(noise(1e6), noise(0.01), noise(4e6), min_batch_size=20, max_batch_size=500)
    assert [size for size, _ in made] == [500, 20, 500]
    _, made = scheduled(noise(1e9))
    assert made[0][0] == 4096


def test_bounds_that_are_not_given_do_not_contradict_those_that_are():
    schedule, made = scheduled(noise(1e9), min_batch_size=5000, initial_batch_size=6000)
    assert schedule.max_batch_size == made[0][0] == 6000
    config = TrainConfig(batch_size="adaptive")
    assert AdaptiveBatchSize(config, torch.nn.Linear(2, 2), num_examples=500).max_batch_size == 500
    assert (
        AdaptiveBatchSize(config, torch.nn.Linear(2, 2), num_examples=500).monitor.memory == 20_000
    )


def test_nothing_changes_before_the_averages_are_worth_it():
    _, made = scheduled(*[noise(400.0)] * 10, updates=0)
    assert [size for size, _ in made] == [32] * 9 + [200]


def test_a_lower_bound_raises_and_never_lowers():
    _, made = scheduled(
        noise(400.0),
        noise(math.nan, low=100.0),
        noise(math.nan, low=1600.0),
        noise(math.nan, low=math.nan),
    )
    assert [size for size, _ in made] == [200, 200, 400, 400]


def test_a_variance_below_zero_by_chance_changes_nothing():
    schedule, made = scheduled(noise(400.0), noise(-30.0), noise(math.nan, low=-5.0))
    assert [size for size, _ in made] == [200, 200, 200]
    assert schedule.tradeoff == Tradeoff().after(400.0, batch_size=32)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", [0.1, 0.1]),
        ("sqrt", [0.1 * math.sqrt(200 / 32), 0.1 * math.sqrt(400 / 32)]),
        ("linear", [0.1 * 200 / 32, 0.1 * 400 / 32]),
        (
            "noise",
            [0.1 * (1 + 400 / 32) / (1 + 400 / 200), 0.1 * (1 + 400 / 32) / (1 + 1600 / 400)],
        ),
    ],
)
def test_the_learning_rate_follows_its_rule(rule, expected):
    _, made = scheduled(noise(400.0), noise(1600.0), lr_scaling=rule)
    assert [rate for _, rate in made] == pytest.approx(expected)


def test_the_first_noise_scale_is_one_that_is_known():
    """The rates go by the first value known to a quarter; until then by the present one."""
    simple = from_stderr(1600.0, 640.0, num_samples=50)
    rough = GradientNoise(exact(1.0), exact(1.0), simple, None, "training")
    schedule, made = scheduled(rough, noise(400.0), noise(1600.0), lr_scaling="noise")
    assert [size for size, _ in made] == [400, 200, 400]
    assert [rate for _, rate in made] == pytest.approx(
        [
            0.1 * (1 + 1600 / 32) / (1 + 1600 / 400),  # of what is known so far
            0.1 * (1 + 400 / 32) / (1 + 400 / 200),
            0.1 * (1 + 400 / 32) / (1 + 1600 / 400),
        ]
    )
    assert schedule.state_dict()["first_scale"] == 400


@pytest.mark.statistical
def test_the_first_noise_scale_is_near_the_true_one():
    """Ten directions carry the noise: the first resolved value lay in 26 to 155 of 106, 10–90 %."""
    generator, truth, dim, sizes = np.random.default_rng(0), 106.0, 10, (8, 24)
    mean = np.full(dim, dim**-0.5)
    taken = []
    for _ in range(60):
        running = RunningNoise(memory=20_000)
        found = []
        for _ in range(250):
            small, rest = (
                mean + math.sqrt(truth / dim / size) * generator.normal(size=dim) for size in sizes
            )
            whole = (8 * small + 24 * rest) / 32
            norms = two_batch(small @ small, 8, whole @ whole, 32)
            running.add(*norms, num_examples=32)
            found.append(running.noise)
        schedule, _ = scheduled(*found, updates=0, exchange_rate=1000)
        taken.append(schedule.state_dict()["first_scale"])
    taken = [scale for scale in taken if scale is not None]
    assert len(taken) > 50  # known after 8,000 examples
    low, high = np.quantile(taken, (0.1, 0.9))
    assert 55 < low < truth < high < 145


def test_the_course_is_kept_with_what_each_update_really_used():
    schedule, _ = scheduled(noise(400.0), noise(math.nan, low=3.0), noise(1600.0))
    assert schedule.tradeoff == Tradeoff().after(400.0, batch_size=32).after(1600.0, batch_size=32)
    assert schedule.num_resolved == 2


def test_batches_are_divided_into_a_small_part_and_the_rest():
    schedule, _ = scheduled()
    for count in (1, 2, 3, 32, 33, 4 * CHUNK + 8, 20_000):
        indices = torch.arange(count)
        parts = schedule.parts(indices, largest=CHUNK)
        assert torch.equal(torch.cat(parts), indices)
        assert all(1 <= len(part) <= CHUNK for part in parts)
        assert len(parts[0]) == min(max(1, count // 4), CHUNK)


def test_updates_are_those_of_the_same_batches_at_the_same_rates():
    """The division into parts, and the looking, leave plain SGD."""
    problem = classification()
    config = TrainConfig.from_dict(
        {**SMALL, "epochs": 8, "initial_batch_size": 8, "lr_scaling": "sqrt"}
    )
    training = Training(problem, config)
    model = copy.deepcopy(problem.model)
    sizes, taken = [], Training(problem, config).batches
    previous = (training.batch_size, config.learning_rate)
    for _ in training:
        size, rate = previous
        previous = (training.batch_size, training.optimizer.param_groups[0]["lr"])
        indices = taken.take(size)
        model.zero_grad()
        problem.loss(
            model(problem.train.inputs[indices]), problem.train.targets[indices]
        ).mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= rate * parameter.grad
        sizes.append(size)
    assert len(set(sizes)) > 2
    for one, other in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_at_a_bound_of_the_noise_the_rate_is_that_of_the_bound():
    schedule, made = scheduled(
        noise(400.0), noise(math.nan, low=3600.0), lr_scaling="noise", max_batch_size=10_000
    )
    assert [rate for _, rate in made] == pytest.approx(
        [0.1 * 13.5 / (1 + 400 / 200), 0.1 * 13.5 / (1 + 3600 / 600)]
    )
    other, _ = scheduled()
    other.monitor = schedule.monitor = NoiseScaleMonitor(torch.nn.Linear(2, 2))
    other.load_state_dict(schedule.state_dict())
    assert other.state_dict() == schedule.state_dict()
    assert (other.changed_at_step, other.num_resolved, other.batch_size) == (2, 1, 600)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_resumed_run_continues_identically(optimizer, tmp_path):
    config = TrainConfig.from_dict(
        {**SMALL, "epochs": 4, "lr_scaling": "noise", "optimizer": optimizer}
    )
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_training(DIGITS, config, whole)
    calls = Training.calls

    def interrupted(self, stops):
        for made in calls(self, stops):
            yield made
            if made == 30:
                raise ZeroDivisionError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "calls", interrupted)
        with pytest.raises(ZeroDivisionError):
            run_training(DIGITS, config, broken, RunOptions(checkpoint_every=7))
    assert load_checkpoint(broken).step not in (0, 30)
    run_training(DIGITS, config, broken)
    one, other = load_checkpoint(whole), load_checkpoint(broken)
    assert one.step == other.step
    assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())
    assert one.schedule == other.schedule
    tables = [pd.read_csv(path / BATCH_SIZE) for path in (whole, broken)]
    pd.testing.assert_frame_equal(*tables)


def test_a_table_from_before_its_population_was_named_is_of_the_same(tmp_path):
    columns = [name for name in BATCH_SIZE_COLUMNS if name != "population"]
    pd.DataFrame([dict.fromkeys(columns, 3.0)]).to_csv(tmp_path / BATCH_SIZE, index=False)
    (row,) = read_batch_size(tmp_path)
    assert row["population"] == "training"
    assert row["step"] == row["simple"] == 3


@pytest.mark.pictures
def test_every_change_is_a_row(tmp_path):
    config = TrainConfig.from_dict({**SMALL, "epochs": 4, "lr_scaling": "sqrt"})
    summary = run_training(DIGITS, config, tmp_path)
    rows = pd.read_csv(tmp_path / BATCH_SIZE)
    assert list(rows.columns) == list(BATCH_SIZE_COLUMNS)
    assert set(rows["population"]) == {"training"}
    assert rows["step"].tolist()[0] == 0
    assert rows["batch_size"].tolist()[0] == 32
    changes = (
        rows.iloc[1:-1]
        if rows["batch_size"].iloc[-1] == rows["batch_size"].iloc[-2]
        else rows.iloc[1:]
    )
    assert len(changes) >= 2
    resolved = changes[changes["simple"].notna()]
    wanted = (100 * resolved["simple"]) ** 0.5
    assert (abs(wanted.clip(8, 4096) - resolved["batch_size"]) <= 1).all()
    assert (rows["learning_rate"] / (0.1 * (rows["batch_size"] / 32) ** 0.5)).round(9).eq(1).all()
    assert summary["batch_size"] == "adaptive"
    assert summary["final_batch_size"] == rows["batch_size"].iloc[-1]
    assert 0 < summary["predicted"]["gain"] <= 1
    json.dumps(summary, allow_nan=False)
    assert (tmp_path / "batch_size.png").stat().st_size > 5000


def test_a_checkpoint_without_its_schedule_is_refused():
    problem = classification()
    adaptive, plain = TrainConfig.from_dict(SMALL), TrainConfig(batch_size=8)
    *_, checkpoint = train(problem, plain)
    forged = dataclasses.replace(checkpoint, training=adaptive)
    with pytest.raises(CheckpointError, match="does not fit"):
        list(itertools.islice(train(problem, adaptive, start=forged), 1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_batch_size": 64}, "2 <= smallest <= initial <= largest"),
        ({"max_batch_size": 16}, "2 <= smallest <= initial <= largest"),
        ({"min_batch_size": 1}, "2 <= smallest <= initial <= largest"),
        (
            {"min_batch_size": 100, "initial_batch_size": 200, "max_batch_size": 150},
            "by way of 200",
        ),
        ({"exchange_rate": 0}, "examples worth a step"),
        ({"exchange_rate": math.nan}, "examples worth a step"),
        ({"hysteresis": 1}, "factor above 1"),
        ({"noise_memory": 0}, "noise memory 0"),
        ({"lr_scaling": "cubic"}, "choose one of none, sqrt, linear, noise"),
        ({"batch_size": 32, "exchange_rate": 5}, "only an adaptive batch size takes it"),
        ({"batch_size": "full", "lr_scaling": "sqrt"}, "only an adaptive batch size takes it"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        TrainConfig.from_dict({"batch_size": "adaptive", **settings})


def test_what_cannot_be_trained_so_is_refused(tmp_path):
    with pytest.raises(SettingError, match="with batch norm"):
        run_training(
            ProblemConfig(dataset="digits", width=8, norm="batch"),
            TrainConfig.from_dict(SMALL),
            tmp_path,
        )
    with pytest.raises(SettingError, match="batch sizes up to 5000"):
        run_training(DIGITS, TrainConfig.from_dict({**SMALL, "max_batch_size": 5000}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_adaptive_settings_are_a_record_of_their_own_stored_beside_the_others():
    config = TrainConfig(batch_size="adaptive", adaptive=AdaptiveConfig(exchange_rate=100))
    assert config == TrainConfig.from_dict({"batch_size": "adaptive", "exchange_rate": 100})
    assert config.to_dict() == TrainConfig().to_dict() | {
        "batch_size": "adaptive",
        "exchange_rate": 100.0,
    }
    assert TrainConfig(batch_size="adaptive").adaptive == AdaptiveConfig()
    with pytest.raises(SettingError, match="only an adaptive batch size takes them"):
        TrainConfig(batch_size=32, adaptive=AdaptiveConfig())
