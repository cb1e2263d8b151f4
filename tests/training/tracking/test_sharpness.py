"""Sharpness along a run: recorded, resumable, and without influence on it."""

import math

import pandas as pd
import pytest
import torch

from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.folder import write_table
from noisescale.training.records.tables import METRICS, SHARPNESS, SHARPNESS_COLUMNS
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.sharpness import SharpnessTracker
from noisescale.training.trainer import Training

PROBLEM = ProblemConfig(dataset="digits", width=16)
TRAINING = TrainConfig(batch_size=100, learning_rate=0.1, epochs=2)
MEASURED = RunOptions(measure_sharpness_every=10, sharpness_examples=200)


def table(path):
    return pd.read_csv(path / SHARPNESS)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_measuring_leaves_the_trajectory_bit_identical(norm, tmp_path):
    problem = ProblemConfig(dataset="digits", width=16, norm=norm)
    for training in (
        TRAINING,
        TrainConfig(batch_size=100, optimizer="adam", learning_rate=0.01, epochs=2),
    ):
        plain, measured = (
            tmp_path / f"plain-{training.optimizer}",
            tmp_path / f"measured-{training.optimizer}",
        )
        torch.manual_seed(5)
        run_training(problem, training, plain)
        torch.manual_seed(5)
        run_training(problem, training, measured, MEASURED)
        assert torch.equal(torch.get_rng_state(), torch.manual_seed(5).get_state())
        one, other = load_checkpoint(plain), load_checkpoint(measured)
        for name, value in (one.params | one.buffers).items():
            assert torch.equal(value, (other.params | other.buffers)[name])


@pytest.mark.pictures
def test_rows_are_those_of_a_measurement_of_the_checkpoint(tmp_path):
    options = RunOptions(measure_sharpness_every=10, sharpness_examples=250, checkpoint_every=10)
    run_training(PROBLEM, TRAINING, tmp_path / "run", options)
    rows = table(tmp_path / "run")
    assert list(rows.columns) == list(SHARPNESS_COLUMNS)
    assert rows["step"].tolist() == [0, 10, 20, 26]
    assert rows["stable_sharpness"].tolist() == [20] * 4
    assert (rows["residual"] <= 1e-3 * rows["largest_eigenvalue"]).all()
    assert (rows["batch_sharpness_stderr"] > 0).all()
    assert (tmp_path / "run" / "sharpness.png").stat().st_size > 5000
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-20.pt")
    found = measure_sharpness(
        build_problem(PROBLEM),
        checkpoint.params,
        SharpnessOptions(num_examples=250, batch_size=100),
    )
    assert rows["largest_eigenvalue"][2] == pytest.approx(found.largest.value.value, rel=1e-4)
    assert rows["largest_eigenvalue_stderr"][2] == pytest.approx(
        found.largest.value.stderr, rel=1e-2
    )
    assert rows["batch_sharpness"][2] == pytest.approx(found.batch_sharpness.value, rel=1e-4)


def test_a_resumed_run_has_every_row_once(tmp_path, monkeypatch):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_training(PROBLEM, TRAINING, whole, MEASURED)
    measure = SharpnessTracker.measure

    def killed(tracker):
        if tracker._training.step == 20:
            raise KeyboardInterrupt
        return measure(tracker)

    with monkeypatch.context() as patch:
        patch.setattr(SharpnessTracker, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run_training(PROBLEM, TRAINING, broken, MEASURED)
    rows = table(broken)
    assert rows["step"].tolist() == [0, 10]
    # a row after the newest checkpoint, which is of step 13, will come again
    write_table(broken / SHARPNESS, pd.concat([rows, rows.tail(1).assign(step=20)]))
    run_training(PROBLEM, TRAINING, broken, MEASURED)
    # byte for byte but for the time it took: the search goes on from the eigenvectors of step 10
    columns = [name for name in table(whole) if name != "seconds"]
    texts = [table(path)[columns].to_csv() for path in (broken, whole)]
    assert texts[0] == texts[1]
    counts = pd.read_csv(broken / SHARPNESS, dtype=str)["num_matvecs"]
    assert counts.str.fullmatch(r"\d+").all()


def test_divergence_is_a_row_with_its_reason(tmp_path):
    training = TrainConfig(batch_size=100, learning_rate=1e30, epochs=1)
    options = RunOptions(measure_sharpness_every=1, sharpness_examples=200)
    summary = run_training(PROBLEM, training, tmp_path / "run", options)
    last = table(tmp_path / "run").iloc[-1]
    assert summary["diverged_at_step"] is not None
    assert math.isnan(last["largest_eigenvalue"])
    assert "not finite" in last["reason"]


def test_a_full_batch_has_its_own_sharpness_without_error(tmp_path):
    training = TrainConfig(batch_size="full", learning_rate=0.1, epochs=4)
    options = RunOptions(measure_sharpness_every=2, evaluate_every=3)
    run_training(PROBLEM, training, tmp_path / "run", options)
    rows = table(tmp_path / "run")
    assert rows["step"].tolist() == [0, 2, 4]
    assert rows["batch_sharpness_stderr"].tolist() == [0, 0, 0]
    assert (rows["batch_sharpness"] <= rows["largest_eigenvalue"] * (1 + 1e-3)).all()
    assert rows["largest_eigenvalue_stderr"].tolist() == [0, 0, 0]
    metrics = pd.read_csv(tmp_path / "run" / METRICS)
    assert sorted(set(metrics["step"])) == [0, 3, 4]


def test_another_number_of_examples_begins_the_table_anew(tmp_path, monkeypatch):
    stop = iter([False] * 15)
    calls = Training.calls

    def interrupted(self, stops):
        for made in calls(self, stops):
            yield made
            if next(stop, True):
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "calls", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_training(PROBLEM, TRAINING, tmp_path / "run", MEASURED)
    other = RunOptions(measure_sharpness_every=10, sharpness_examples=50)
    run_training(PROBLEM, TRAINING, tmp_path / "run", other)
    rows = table(tmp_path / "run")
    assert set(rows["num_examples"]) == {50}
    assert set(rows["reason"]) == {"batch sharpness takes a subset of at least a batch"}


def test_force_removes_the_old_measurements(tmp_path):
    run_training(PROBLEM, TRAINING, tmp_path / "run", MEASURED)
    run_training(PROBLEM, TRAINING, tmp_path / "run", RunOptions(force=True))
    assert not (tmp_path / "run" / SHARPNESS).exists()
