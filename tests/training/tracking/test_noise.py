"""Gradient noise along a run: recorded, resumable, and without influence on it."""

import math
import pickle
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from noisescale.errors import SettingError
from noisescale.measure.noise import measure_noise
from noisescale.measure.noise_parts.options import NoiseOptions
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.tables import NOISE, NOISE_COLUMNS, NOISE_LAYERS
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking import rows
from noisescale.training.tracking.noise import NoiseTracker, NoiseTracking
from noisescale.training.tracking.rows import is_due
from noisescale.training.trainer import Training

PROBLEM = ProblemConfig(dataset="digits", width=16)
TRAINING = TrainConfig(batch_size=100, learning_rate=0.1, epochs=2)
MEASURED = RunOptions(noise=NoiseTracking(every=10, num_examples=200, per_layer=True))


def table(path, name=NOISE):
    return pd.read_csv(path / name)


def test_log_spaced_steps_are_eight_in_each_decade():
    due = [step for step in range(2000) if is_due(step, "log")]
    rounded = {round(10 ** (k / 8)) for k in range(27)}  # 10^(26/8) = 1778
    assert due == [0, *sorted(rounded)]
    assert due[:10] == [0, 1, 2, 3, 4, 6, 7, 10, 13, 18]
    assert len([step for step in due if 100 <= step < 1000]) == 8
    assert [step for step in range(10) if is_due(step, 4)] == [0, 4, 8]


def test_too_few_examples_are_refused_before_there_is_a_folder(tmp_path):
    few = replace(PROBLEM, num_train=3)
    with pytest.raises(SettingError, match="3 training examples: the noise of their gradients"):
        run_training(few, replace(TRAINING, batch_size=3), tmp_path / "run", MEASURED)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_measuring_leaves_the_trajectory_bit_identical(norm, optimizer, tmp_path):
    problem = ProblemConfig(dataset="digits", width=16, norm=norm)
    training = TrainConfig(batch_size=100, optimizer=optimizer, learning_rate=0.01, epochs=1)
    torch.manual_seed(5)
    run_training(problem, training, tmp_path / "plain")
    torch.manual_seed(5)
    options = RunOptions(noise=NoiseTracking(every=6, num_examples=100, hessian=True, num_probes=2))
    run_training(problem, training, tmp_path / "measured", options)
    assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())
    one, other = load_checkpoint(tmp_path / "plain"), load_checkpoint(tmp_path / "measured")
    for name, value in (one.params | one.buffers).items():
        assert torch.equal(value, (other.params | other.buffers)[name])
    assert (table(tmp_path / "measured")["hessian_covariance_trace_stderr"] > 0).all()


@pytest.mark.pictures
def test_rows_are_those_of_a_measurement_of_the_checkpoint(tmp_path):
    tracking = NoiseTracking(every=10, num_examples=200, per_layer=True, hessian=True, num_probes=4)
    run_training(
        PROBLEM, TRAINING, tmp_path / "run", RunOptions(noise=tracking, checkpoint_every=10)
    )
    rows = table(tmp_path / "run")
    assert list(rows.columns) == list(NOISE_COLUMNS)
    assert rows["step"].tolist() == [0, 10, 20, 26]
    assert set(rows["batch_size"]) == {100}
    assert (rows["hessian_examples"] == rows["population_size"] // 2).all()
    assert (tmp_path / "run" / "noise.png").stat().st_size > 5000
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-20.pt")
    problem = build_problem(PROBLEM)
    problem.model.eval()
    found = measure_noise(
        problem, checkpoint.params, num_examples=200, per_layer=True, hessian=True, num_probes=4
    )
    row = rows.iloc[2]
    for name in ("loss", "squared_gradient_norm", "gradient_variance", "simple", "full"):
        estimate = getattr(found, name)
        for part, value in zip(
            ("", "_stderr", "_low", "_high"), vars(estimate).values(), strict=False
        ):
            assert row[f"{name}{part}"] == pytest.approx(value, rel=1e-4, nan_ok=True), (name, part)
    layers = table(tmp_path / "run", NOISE_LAYERS)
    assert len(layers) == 4 * 6
    of_step = layers[layers["step"] == 20].reset_index(drop=True)
    expected = found.per_layer["gradient_variance"]
    pd.testing.assert_series_equal(of_step["gradient_variance"], expected, rtol=1e-4)


@pytest.mark.parametrize("killed_after", ["the layers", "both"])
def test_a_resumed_run_has_every_row_once(killed_after, tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    options = RunOptions(noise=MEASURED.noise, checkpoint_every=10)
    run_training(PROBLEM, TRAINING, whole, options)
    measure = NoiseTracker.measure

    def killed(tracker):
        # step 10 is measured before it is saved, so that both its rows come again
        if tracker._training.step == 10 and killed_after == "the layers":
            monkeypatch.setattr(tracker._rows, "add", lambda *rows: 1 / 0)
        row = measure(tracker)
        if tracker._training.step == 20:
            raise ZeroDivisionError
        return row

    with monkeypatch.context() as patch:
        patch.setattr(NoiseTracker, "measure", killed)
        with pytest.raises(ZeroDivisionError):
            run_training(PROBLEM, TRAINING, broken, options)
    run_training(PROBLEM, TRAINING, broken, options)
    for name in (NOISE, NOISE_LAYERS):
        one, other = (
            table(path, name).drop(columns="seconds", errors="ignore") for path in (whole, broken)
        )
        pd.testing.assert_frame_equal(one, other, rtol=1e-6, check_dtype=False)


@pytest.mark.parametrize(
    "other",
    [
        NoiseTracking(every=10, num_examples=100),
        NoiseTracking(every=10, num_examples=200, hessian=True, num_probes=2),
        NoiseTracking(every=10, num_examples=200, per_layer=True),
        NoiseTracking(every=10, num_examples=200, seed=5),
        NoiseTracking(every=10, num_examples=200, param_filter=("5.*",)),
        NoiseTracking(every=10, num_examples=200, sign=True),
    ],
)
def test_another_measurement_begins_the_table_anew(other, tmp_path, monkeypatch):
    first = NoiseTracking(every=10, num_examples=200)
    measure = NoiseTracker.measure

    def killed(tracker):
        if tracker._training.step == 20:
            raise ZeroDivisionError
        return measure(tracker)

    with monkeypatch.context() as patch:
        patch.setattr(NoiseTracker, "measure", killed)
        with pytest.raises(ZeroDivisionError):
            run_training(PROBLEM, TRAINING, tmp_path, RunOptions(noise=first))
    assert table(tmp_path)["step"].tolist() == [0, 10]
    run_training(PROBLEM, TRAINING, tmp_path, RunOptions(noise=other))
    assert table(tmp_path)["step"].tolist() == [20, 26]  # from the checkpoint of step 13 on
    assert set(table(tmp_path)["num_examples"]) == {other.num_examples}


def test_divergence_is_a_row_with_its_reason(tmp_path):
    training = TrainConfig(batch_size=100, learning_rate=1e30, epochs=1)
    run_training(
        PROBLEM, training, tmp_path, RunOptions(noise=NoiseTracking(every=1, num_examples=50))
    )
    last = table(tmp_path).iloc[-1]
    assert math.isnan(last["simple"])
    assert "not finite" in last["reason"]


def test_force_removes_the_old_measurements(tmp_path):
    run_training(PROBLEM, TRAINING, tmp_path, MEASURED)
    run_training(PROBLEM, TRAINING, tmp_path, RunOptions(force=True))
    assert not (tmp_path / NOISE).exists()
    assert not (tmp_path / NOISE_LAYERS).exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"every": 2.5},
        {"every": "often"},
        {"num_examples": 2},
        {"split": "test"},
        {"per_class": True},
        {"anatomy": True},
        {"options": NoiseOptions(population="distribution")},
        {"options": NoiseOptions(num_examples=5), "num_examples": 7},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(SettingError, match=r"give|take|leave"):
        NoiseTracking(**wrong)


def test_settings_one_by_one_are_those_of_the_options():
    options = NoiseOptions(num_examples=50, hessian=True)
    tracking = NoiseTracking(every=5, num_examples=50, hessian=True, seed=3)
    assert tracking == NoiseTracking(every=5, options=options, seed=3)
    assert replace(tracking, seed=4) == NoiseTracking(every=5, options=options, seed=4)
    assert pickle.loads(pickle.dumps(tracking)) == tracking  # as workers are sent it
    assert NoiseTracking().num_examples == NoiseTracking().options.num_examples == 10_000
    read = (tracking.hessian, tracking.num_probes, tracking.hessian_examples, tracking.per_layer)
    assert read == (True, 32, None, False)


def test_a_long_table_is_written_now_and_then_and_whole_at_the_end(tmp_path, monkeypatch):
    """Each writing takes as long as the table is; at every row they would take quadratic time."""
    written = []
    monkeypatch.setattr(rows, "SHORT", 3)
    write = rows.write_table

    def slowly(path, content):
        time.sleep(0.05)
        written.append(len(content))
        write(path, content)

    monkeypatch.setattr(rows, "write_table", slowly)
    training = Training(build_problem(PROBLEM), TRAINING)
    kept = rows.Rows(training, tmp_path / "table.csv", columns=("step", "value"), rows=[])
    for step in range(40):
        kept.add({"step": step, "value": 0.5})
    assert written[:3] == [1, 2, 3]
    assert len(written) < 10
    kept.flush()
    assert len(pd.read_csv(tmp_path / "table.csv")) == 40
