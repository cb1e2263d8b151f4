"""Measurements of the critical batch size in small: what is run, kept, shared, refused."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from noisescale.errors import NoisescaleError, RunFolderError, SettingError
from noisescale.problems.build import build_problem
from noisescale.problems.config import FactoryConfig
from noisescale.problems.factory import build_own_problem, factory_config
from noisescale.problems.synthetic import linear_regression
from noisescale.statistics.critical_batch.goal_table import fastest_runs
from noisescale.studies.critical_batch import fits, pictures
from noisescale.studies.critical_batch.config import (
    CriticalBatchConfig,
    default_batch_sizes,
    default_goals,
)
from noisescale.studies.critical_batch.goal_runs.goal_run import (
    GoalCell,
    read_goal_run,
    run_to_goal,
)
from noisescale.studies.critical_batch.pictures import draw_pictures
from noisescale.studies.critical_batch.run import run_critical_batch
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.options import StudyOptions, common_options
from noisescale.studies.jobs.tasks import Tasks
from noisescale.studies.stability_map.run import SweepOptions
from noisescale.training.config import TrainConfig
from noisescale.training.evaluation import evaluate, mean_loss
from noisescale.training.records import tables
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.folder import finished_runs
from noisescale.training.records.tables import read_noise
from noisescale.training.tracking.noise import NoiseTracking
from tests.helpers.critical_batch import CONFIG, PROBLEM, TRACKED
from tests.helpers.executors import Here
from tests.helpers.problems import seeded
from tests.helpers.processes import environment

HERE = f"{Path(__file__)}:make_problem"


def make_problem():
    """A problem of one's own, its data drawn at random."""
    return linear_regression(
        input_variances=torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64),
        weights=torch.randn(3, dtype=torch.float64),
        noise=0.5,
        num_examples=64,
        generator=seeded(0),
    ).problem


@pytest.fixture
def serial(finished_critical_batch):
    """A whole measurement in one thread, to be read: its folder, result and executor."""
    return finished_critical_batch


@pytest.fixture
def copy(serial, tmp_path):
    """A folder with the same content, to go on in."""
    return shutil.copytree(serial.out, tmp_path / "copy")


def test_the_files_of_a_measurement(serial):
    out, result, _ = serial
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {
        "cells",
        "critical_batch.json",
        "fit.json",
        "learning_rates.csv",
        "noise-100",
        "noise.csv",
        "pareto.png",
        "predicted.csv",
        "start.json",
        "steps_to_goal.csv",
        "summary.json",
    }
    table = pd.read_csv(out / "steps_to_goal.csv")
    assert list(table)[:6] == ["goal", "batch_size", "learning_rate", "seed", "steps", "censored"]
    assert set(table["goal"]) == {1.8, 1.2}
    assert len(table) == len(result.table)
    records = json.loads((out / "fit.json").read_text())["goals"]
    assert [record["goal"] for record in records] == [1.8, 1.2]
    for record in records:
        for name in ("min_steps", "min_examples", "critical_batch_size"):
            assert {"value", "low", "high"} <= set(record[name])
        assert record["definition"] == "pareto"
        assert {row["quantity"] for row in record["predicted"]} >= {"simple"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["failures"] == []
    assert summary["num_runs"] == len(table) / 2


def test_steps_are_passages_of_the_smoothed_recorded_losses(serial):
    """The oracle: a plain loop over losses.csv with NumPy's weighted polynomials."""
    out, result, _ = serial
    runs = {path: read_goal_run(path) for path in finished_runs(out / "cells")}
    for row in result.table[result.table["censored"] == 0].to_dict("records"):
        matching = [
            run
            for run in runs.values()
            if all(
                run.summary[name] == row[name] for name in ("batch_size", "learning_rate", "seed")
            )
        ]
        run = max(matching, key=lambda run: run.summary["steps"])  # of the first search's rungs
        before = None
        looks = list(run.losses.itertuples(index=False))
        for step, loss in looks:
            near = [(math.log10(at / step), value) for at, value in looks if step and at]
            near = [(far, value) for far, value in near if abs(far) < 0.1]
            smooth = loss
            if len(near) >= 3:
                distance, value = np.transpose(near)
                smooth = np.polyfit(distance, value, 1, w=np.sqrt(1 - (distance / 0.1) ** 2))[1]
            if smooth <= row["goal"]:
                break
            before = (step, smooth)
        share = (before[1] - row["goal"]) / (before[1] - smooth)
        assert row["steps"] == pytest.approx(before[0] + share * (step - before[0]))


def test_runs_end_once_the_lowest_goal_is_passed(serial):
    out, result, _ = serial
    for path in finished_runs(out / "cells"):
        run = read_goal_run(path)
        assert run.losses["step"].iloc[-1] == run.summary["steps"]
        assert run.summary["best_loss"] == run.losses["loss"].min()
        if math.isfinite(run.steps(1.2)):
            assert replace(run, losses=run.losses[:-1]).steps(1.2) == math.inf
            assert run.summary["steps"] < 1.5 * run.steps(1.2) + 2
    reached = result.table[(result.table["goal"] == 1.2) & (result.table["censored"] == 0)]
    assert set(reached["batch_size"]) == {2, 8, 32, 128}


def test_each_seeds_best_rate_lies_between_others(serial):
    _, result, _ = serial
    for _, runs in result.table.groupby(["goal", "batch_size", "seed"]):
        best = runs[runs["censored"] == 0].sort_values("steps")["learning_rate"].iloc[0]
        assert runs["learning_rate"].min() < best < runs["learning_rate"].max()


def test_the_looks_are_at_a_fixed_subset_of_the_split(serial):
    out, _, _ = serial
    start = json.loads((out / "start.json").read_text())
    problem = build_problem(PROBLEM)
    assert start["loss"] == pytest.approx(
        mean_loss(problem.model, problem.loss, problem.train), rel=1e-6
    )
    of_seed_0 = [
        run
        for path in finished_runs(out / "cells")
        if (run := read_goal_run(path)).summary["seed"] == 0
    ]
    assert {run.losses["loss"].iloc[0] for run in of_seed_0} == {start["loss"]}


def test_the_mean_loss_is_that_of_an_evaluation():
    problem = build_problem(PROBLEM)
    expected = evaluate(problem.model, problem.loss, problem.train).loss
    problem.model.train()
    assert mean_loss(problem.model, problem.loss, problem.train) == pytest.approx(
        expected, rel=1e-12
    )
    assert problem.model.training


def test_seeds_share_their_start_and_no_order_of_examples(serial):
    """One order at all batch sizes would make a seed's deviations common to them all."""
    configs = [
        json.loads((path / "config.json").read_text())["training"]
        for path in finished_runs(serial.out / "cells")
    ]
    orders = {(run["seed"], run["batch_size"]): run["order_seed"] for run in configs}
    assert len(set(orders.values())) == len(orders) > len({run["seed"] for run in configs})
    for run in configs:
        assert run["order_seed"] == orders[run["seed"], run["batch_size"]]


def test_the_same_again_runs_nothing(serial, copy):
    before = {path: path.stat().st_mtime_ns for path in (copy / "cells").rglob("*.csv")}
    again = run_critical_batch(TRACKED, copy, executor=Here())
    assert {path: path.stat().st_mtime_ns for path in (copy / "cells").rglob("*.csv")} == before
    pd.testing.assert_frame_equal(again.table, serial.result.table)
    assert again.to_dict() == serial.result.to_dict()


def test_more_seeds_and_batch_sizes_keep_what_is_there(serial, copy):
    more = run_critical_batch(
        replace(CONFIG, batch_sizes=(2, 8, 32, 128, 200), num_seeds=3), copy, executor=Here()
    )
    assert set(more.table["seed"]) == {0, 1, 2}
    assert set(more.table["batch_size"]) == {2, 8, 32, 128, 200}
    key = ["goal", "batch_size", "learning_rate", "seed"]
    both = serial.result.table.merge(more.table, on=key)
    assert len(both) == len(serial.result.table)


def test_higher_goals_take_the_same_runs(copy):
    before = len(finished_runs(copy / "cells"))
    found = run_critical_batch(replace(CONFIG, goals=(1.8, 1.5, 1.2)), copy, executor=Here())
    assert list(found.fits) == [1.8, 1.5, 1.2]
    assert (
        len(finished_runs(copy / "cells")) <= before + 4
    )  # a best rate of its own may want a neighbour


def test_another_problem_or_split_is_refused(serial):
    out, _, _ = serial
    with pytest.raises(RunFolderError, match=r"other settings .*width"):
        run_critical_batch(replace(CONFIG, problem=replace(PROBLEM, width=9)), out, executor=Here())
    with pytest.raises(RunFolderError, match="split is 'train' there"):
        run_critical_batch(replace(CONFIG, split="test"), out, executor=Here())


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"holds thesis.tex but no critical_batch.json"):
        run_critical_batch(CONFIG, tmp_path, executor=Here())


def test_goals_out_of_reach_say_the_best_loss(tmp_path):
    config = replace(CONFIG, goals=(1e-9,), epochs=1)
    with pytest.raises(
        NoisescaleError, match=r"goals 1e-09: the best loss seen is [\d.]+, at B = 32 and lr"
    ):
        run_critical_batch(config, tmp_path / "out", executor=Here())


@pytest.mark.slow
def test_a_goal_that_only_some_reach_is_a_bound(tmp_path):
    """At B = 8 the budget of the middle batch size's single epoch is not enough."""
    config = replace(CONFIG, goals=(2.2, 0.3), epochs=1)
    found = run_critical_batch(config, tmp_path / "out", executor=Here())
    assert found.fits[0.3].num_censored > 0
    assert not found.fits[0.3].resolved
    assert (found.table[found.table["goal"] == 2.2]["censored"] == 0).any()


def test_a_bound_is_the_last_step_at_which_the_smoothed_loss_is_known(tmp_path):
    """A run that passes the goal in its last tenth has not been seen to."""
    training = TrainConfig(batch_size=8, learning_rate=0.25, epochs=100, max_steps=100)
    run = run_to_goal(
        GoalCell(cell=Cell(path=tmp_path / "a", problem=PROBLEM, training=training), goals=())
    )
    assert run.seen * 10**0.1 <= 100
    goal = float(run.losses["loss"].iloc[-2:].mean())
    assert run.steps(goal) == math.inf or run.steps(goal) <= run.seen


def test_a_batch_size_that_cannot_be_trained_does_not_cost_the_others(tmp_path):
    executor = Here(fail=lambda cell: cell.training.batch_size == 128)
    found = run_critical_batch(CONFIG, tmp_path / "out", executor=executor)
    assert set(pd.read_csv(tmp_path / "out" / "steps_to_goal.csv")["batch_size"]) == {2, 8, 32}
    assert not found.fits[1.2].resolved
    assert found.summary["failures"]


def test_where_nothing_can_be_trained_the_reason_is_given(tmp_path):
    with pytest.raises(
        NoisescaleError, match=r"no run could be made: B = 32.*no room for this one"
    ):
        run_critical_batch(CONFIG, tmp_path / "out", executor=Here(fail=lambda cell: True))


@pytest.mark.parametrize("goals", [(3.0, 1.2), (2.5,)])
def test_a_goal_that_the_start_has_reached_is_refused(tmp_path, goals):
    with pytest.raises(SettingError, match="is not below the loss at the start"):
        run_critical_batch(replace(CONFIG, goals=goals), tmp_path / "out", executor=Here())


@pytest.mark.slow
def test_a_goal_that_no_run_reaches_beside_others(tmp_path):
    config = replace(TRACKED, goals=(1.8, 1e-6), num_seeds=1, epochs=3)
    found = run_critical_batch(config, tmp_path / "out", executor=Here())
    assert any("1e-06 is reached by no run: the best loss seen is" in note for note in found.notes)
    assert set(found.predicted["goal"]) == {1.8}
    bounds = found.table[found.table["goal"] == 1e-6]
    assert (bounds["censored"] == 1).all()
    # without tracking the tables of it go, as they are of other goals now
    run_critical_batch(replace(config, noise_examples=None), tmp_path / "out", executor=Here())
    assert not (tmp_path / "out" / "predicted.csv").exists()
    assert not (tmp_path / "out" / "noise.csv").exists()


@pytest.mark.slow
def test_batch_norm_starts_in_evaluation_mode(tmp_path):
    config = replace(
        CONFIG, problem=replace(PROBLEM, norm="batch"), num_seeds=1, batch_sizes=(4, 8, 16, 32)
    )
    found = run_critical_batch(config, tmp_path / "out", executor=Here())
    assert set(found.table["batch_size"]) == {4, 8, 16, 32}


def test_a_batch_size_that_does_not_divide_the_examples_is_noted(serial):
    _, result, _ = serial
    notes = [note for note in result.notes if "last batch is short" in note]
    assert [note[:7] for note in notes] == ["B = 32:", "B = 128"]
    assert "28 % more" in notes[1]  # 128 and 72 of 200


def test_a_run_that_fails_is_recorded_and_the_rest_goes_on(tmp_path):
    executor = Here(fail=lambda cell: cell.training.batch_size == 128)
    found = run_critical_batch(
        replace(CONFIG, batch_sizes=(2, 4, 8, 32, 128)),
        tmp_path / "out",
        executor=executor,
    )
    failures = found.summary["failures"]
    assert failures
    assert all(
        line.startswith("B = 128") and line.endswith("no room for this one") for line in failures
    )
    assert set(found.table["batch_size"]) == {2, 4, 8, 32}
    assert found.fits[1.2].num_batch_sizes == 4


def test_noise_along_the_runs_stands_beside(serial):
    """Every number of predicted.csv again, from the runs' own noise.csv."""
    out, result, _ = serial
    runs = [read_goal_run(path) for path in finished_runs(out / "noise-100")]
    assert len(runs) == 2
    for run in runs:
        assert sorted((run.path / "checkpoints").glob("step-*.pt"))
        for goal in (1.8, 1.2):
            at = int(run.losses["step"][run.losses["loss"] <= goal].iloc[0])
            checkpoint = load_checkpoint(run.path / "checkpoints" / f"step-{at}.pt")
            assert checkpoint.step == at
            assert at in [row["step"] for row in read_noise(run.path)]
    row = result.predicted.query("goal == 1.2 and quantity == 'simple'").iloc[0]
    averages = []
    for run in runs:
        noise = pd.DataFrame(read_noise(run.path))
        noise = noise[: (noise["step"] < run.steps(1.2)).sum() + 1]  # and the first one beyond
        area = sum(
            (noise["simple"][i] + noise["simple"][i + 1])
            / 2
            * (noise["step"][i + 1] - noise["step"][i])
            for i in range(len(noise) - 1)
        )
        averages.append(area / noise["step"].iloc[-1])
    assert row["average"] == pytest.approx(math.sqrt(averages[0] * averages[1]))
    fit = result.fits[1.2]
    if fit.resolved:
        assert row["ratio"] == pytest.approx(fit.critical_batch_size.value / row["average"])


def test_noise_runs_in_halves_measure_the_same(serial, tmp_path, monkeypatch):
    """Where four processes have two runs to make, each is made twice, half of its rows in each."""
    out = tmp_path / "out"
    shutil.copytree(serial.out, out)
    shutil.rmtree(out / "noise-100")
    monkeypatch.setattr(Tasks, "num_at_once", 4)
    halves = run_critical_batch(TRACKED, out, executor=Here())
    pd.testing.assert_frame_equal(halves.predicted, serial.result.predicted)
    paths = finished_runs(out / "noise-100")
    assert {path.relative_to(out).parts[1] for path in paths} == {"part-1-of-2", "part-2-of-2"}
    rows = [len(read_noise(path)) for path in paths]
    (whole, _) = (len(read_noise(path)) for path in finished_runs(serial.out / "noise-100"))
    assert all(0.3 * whole < number < 0.8 * whole for number in rows)
    # and they stay as they are where another number of processes goes on
    monkeypatch.setattr(Tasks, "num_at_once", 1)
    monkeypatch.setattr(Here, "submit", lambda *args, **kwargs: pytest.fail("made again"))
    again = run_critical_batch(TRACKED, out, executor=Here())
    pd.testing.assert_frame_equal(again.predicted, serial.result.predicted)


def test_each_seed_measures_noise_on_examples_of_its_own(serial):
    out, _, _ = serial
    first, second = (pd.DataFrame(read_noise(path)) for path in finished_runs(out / "noise-100"))
    assert first["simple"][0] != second["simple"][0]
    assert (first["num_examples"] == 100).all()


def test_a_longer_run_of_an_earlier_release_stands_for_a_shorter_one(serial, tmp_path, monkeypatch):
    """Whatever the budgets of a release, a finished folder is read and no run is made."""
    out = tmp_path / "out"
    shutil.copytree(serial[0], out)
    for path in finished_runs(out / "cells"):
        path.rename(path.with_name(path.name + "-longer"))
    monkeypatch.setattr(
        "noisescale.studies.critical_batch.run.run_to_goal", lambda cell: pytest.fail("run again")
    )
    again = run_critical_batch(CONFIG, out, executor=Here())
    pd.testing.assert_frame_equal(again.table, serial.result.table)


def test_tracking_leaves_the_run_as_it_was(tmp_path):
    training = TrainConfig(batch_size=8, learning_rate=0.25, epochs=100, max_steps=60)
    goals = (1.8, 1.2)
    plain = run_to_goal(
        GoalCell(cell=Cell(path=tmp_path / "a", problem=PROBLEM, training=training), goals=goals)
    )
    tracked = run_to_goal(
        GoalCell(
            cell=Cell(path=tmp_path / "b", problem=PROBLEM, training=training),
            goals=goals,
            noise=NoiseTracking(num_examples=50),
        )
    )
    pd.testing.assert_frame_equal(plain.losses, tracked.losses)


@pytest.mark.slow
def test_goals_of_the_test_loss(tmp_path):
    found = run_critical_batch(
        replace(CONFIG, split="test", num_seeds=1),
        tmp_path / "out",
        executor=Here(),
    )
    problem = build_problem(PROBLEM)
    start = json.loads((tmp_path / "out" / "start.json").read_text())["loss"]
    assert start == pytest.approx(mean_loss(problem.model, problem.loss, problem.test), rel=1e-6)
    assert (found.table["censored"] == 0).any()


@pytest.mark.slow
def test_adam_is_tuned_without_the_curvature(tmp_path):
    config = replace(CONFIG, training=TrainConfig(optimizer="adam"), num_seeds=1)
    found = run_critical_batch(config, tmp_path / "out", executor=Here())
    assert "max_rate" not in json.loads((tmp_path / "out" / "start.json").read_text())
    assert (fastest_runs(found.table)["censored"] == 0).all()


def test_a_problem_of_ones_own(tmp_path):
    config = CriticalBatchConfig(
        problem=factory_config(HERE),
        batch_sizes=(1, 4, 16, 64),
        goals=(0.5, 0.3),
        num_seeds=2,
        noise_examples=None,
    )
    found = run_critical_batch(config, tmp_path / "out", executor=Here())
    assert set(found.table["batch_size"]) == {1, 4, 16, 64}
    stored = json.loads((tmp_path / "out" / "critical_batch.json").read_text())
    assert stored["problem"]["factory"].endswith(":make_problem")
    with pytest.raises(RunFolderError, match=r"problem\.source"):
        run_critical_batch(
            replace(config, problem=FactoryConfig(factory=HERE, source="older")),
            tmp_path / "out",
            executor=Here(),
        )


def test_its_data_are_the_same_for_every_seed_and_its_parameters_are_not():
    config = factory_config(f"{Path(__file__)}:make_network")
    first, second = (build_own_problem(config, seed=seed) for seed in (0, 1))
    assert torch.equal(first.train.inputs, second.train.inputs)
    assert not torch.equal(first.model.weight, second.model.weight)
    state = torch.random.get_rng_state()
    again = build_own_problem(config, seed=0)
    assert torch.equal(again.model.weight, first.model.weight)
    assert torch.equal(torch.random.get_rng_state(), state)
    with torch.no_grad():
        again.model.weight.zero_()
    assert build_own_problem(config, seed=0).model.weight.any()


def make_network():
    from noisescale import Examples, Problem

    return Problem(
        model=torch.nn.Linear(4, 2),
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        train=Examples(torch.randn(20, 4), torch.randint(0, 2, (20,))),
    )


@pytest.mark.processes
@pytest.mark.slow
def test_processes_give_the_same_and_a_killed_measurement_goes_on(serial, tmp_path):
    """Killed twice, then begun by two at once: finished runs stay, tables as in one thread."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tests.helpers.critical_batch", str(out)]
    for wanted in (3, 12):
        process = subprocess.Popen(command, env=environment(), start_new_session=True)
        deadline = time.monotonic() + 120
        while len(list(out.rglob("summary.json"))) < wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = {one: one.stat().st_mtime_ns for one in out.rglob("summary.json")}
    assert len(kept) >= 12
    both = [subprocess.Popen(command, env=environment()) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert all(one.stat().st_mtime_ns == at for one, at in kept.items())
    pd.testing.assert_frame_equal(
        pd.read_csv(out / "steps_to_goal.csv"), serial.result.table, check_dtype=False
    )


def test_a_damaged_run_is_named(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "summary.json").write_text("{}")
    with pytest.raises(RunFolderError, match="no run to a goal"):
        read_goal_run(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": (1, 2, 4)}, "3 batch sizes"),
        ({"batch_sizes": (1, 2, 4, "full")}, "'full': give a whole number"),
        ({"batch_sizes": (1, 2, 4, 4)}, "each once"),
        ({"batch_sizes": (1, 2, 4, -8)}, "batch size -8"),
        ({"goals": ()}, "no goals"),
        ({"goals": (math.nan,)}, "goal nan"),
        ({"goals": (1.0, 1.0)}, "each once"),
        ({"num_seeds": 0}, "num seeds 0"),
        ({"epochs": 1.5}, "epochs 1.5"),
        ({"factor": 1.0}, "factor 1"),
        ({"max_rate": -1.0}, "learning rate"),
        ({"rate_bend": -1.0}, "rate bend"),
        ({"noise_examples": 3}, "noise examples 3"),
        ({"split": "validation"}, "split 'validation'"),
        ({"problem": replace(PROBLEM, norm="batch"), "batch_sizes": (1, 2, 4, 8)}, "batch norm"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(SettingError, match=message):
        replace(CONFIG, **changes)


def test_a_batch_larger_than_the_data_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(SettingError, match="batch size 512: there are 200"):
        run_critical_batch(
            replace(CONFIG, batch_sizes=(2, 8, 32, 512)), tmp_path / "out", executor=Here()
        )
    assert not (tmp_path / "out").exists()


def test_a_problem_is_all_that_a_measurement_takes(tmp_path):
    """Its batch sizes are then the default ones, as far as a quarter of the examples goes."""
    config = CriticalBatchConfig(problem=PROBLEM)
    assert config.resolved(num_examples=200).batch_sizes == (1, 2, 4, 8, 16, 32)
    assert replace(config, batch_sizes=()).resolved(num_examples=20).batch_sizes == (1, 2, 4, 8)
    given = replace(config, batch_sizes=(1, 2, 4, 200))
    assert given.resolved(num_examples=20) == given
    small = CriticalBatchConfig(
        problem=replace(PROBLEM, num_train=40), goals=(2.1,), num_seeds=1, noise_examples=None
    )
    found = run_critical_batch(small, tmp_path / "out", executor=Here())
    assert set(found.table["batch_size"]) == {1, 2, 4, 8}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (SweepOptions(predict=False), "predict of SweepOptions"),
        (SweepOptions(start=Path("checkpoint.pt"), predict=False), "predict, start|start, predict"),
    ],
)
def test_options_of_a_sweep_are_not_ignored(tmp_path, options, named):
    with pytest.raises(SettingError, match=named):
        run_critical_batch(CONFIG, tmp_path / "out", executor=Here(), options=options)
    assert not (tmp_path / "out").exists()


def test_options_of_a_sweep_that_are_left_alone_will_do():
    assert common_options(None) == StudyOptions()
    options = SweepOptions(notes=("a note",))
    assert common_options(options) is options


def test_the_pictures_are_drawn_from_the_folder(serial, tmp_path):
    out, _, _ = serial
    (picture,) = draw_pictures(out, out=tmp_path / "new")
    assert picture == tmp_path / "new" / "pareto.png"
    assert picture.read_bytes() == (out / "pareto.png").read_bytes()
    assert [path.name for path in draw_pictures(out, out=tmp_path, format="svg")] == ["pareto.svg"]
    assert draw_pictures(tmp_path / "empty") == []


def test_a_finished_measurement_is_shown_without_fits_or_pictures_made_anew(
    finished_critical_batch, tmp_path, monkeypatch
):
    out = tmp_path / "out"
    shutil.copytree(finished_critical_batch.out, out)
    read = []
    monkeypatch.setattr(tables, "read_noise", lambda path: read.append(path) or read_noise(path))
    monkeypatch.setattr(fits, "fit_goals", lambda table: pytest.fail("fitted again"))
    monkeypatch.setattr(
        pictures, "draw_pictures", lambda folder, **options: pytest.fail("drawn again")
    )
    again = run_critical_batch(TRACKED, out, executor=Here())
    assert again.to_dict() == finished_critical_batch.result.to_dict()
    assert len(read) == len(set(read)) == TRACKED.num_seeds

    # and what draws the folder has its fits too
    draw_pictures(out, out=tmp_path / "new")


def test_a_study_may_leave_its_pictures_out(serial, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(serial[0], out)
    (out / "pareto.png").unlink()
    run_critical_batch(CONFIG, out, executor=Here(), options=StudyOptions(pictures=False))
    assert (out / "summary.json").exists()
    assert not (out / "pareto.png").exists()


def test_defaults():
    assert CriticalBatchConfig(problem=PROBLEM).num_seeds == 3
    assert default_batch_sizes(60_000) == tuple(2**power for power in range(12))
    assert default_batch_sizes(1437)[-1] == 256
    assert default_batch_sizes(20) == (1, 2, 4, 8)
    assert default_batch_sizes(5) == (1, 2, 4)
    assert default_goals(2.3) == (0.92, 0.57, 0.34, 0.23, 0.16)
