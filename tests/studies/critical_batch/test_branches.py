"""Branches from a checkpoint: what follows from the file, and what must be given beside it."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from noisescale.errors import CheckpointError, SettingError
from noisescale.problems.build import build_problem
from noisescale.studies.critical_batch.branches import BranchConfig, run_branches
from noisescale.studies.critical_batch.pictures import draw_pictures
from noisescale.studies.jobs.options import StudyOptions
from noisescale.studies.stability_map.run import SweepOptions
from noisescale.training.config import TrainConfig
from noisescale.training.records.names import file_digest
from noisescale.training.run import run_training
from tests.helpers.critical_batch import PROBLEM
from tests.helpers.executors import Here


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of two epochs of 200 examples."""
    out = tmp_path_factory.mktemp("base") / "run"
    run_training(PROBLEM, TrainConfig(batch_size=4, learning_rate=0.1, epochs=2, seed=3), out)
    return out


def test_a_checkpoint_says_what_is_trained_and_how(run):
    config = BranchConfig.from_checkpoint(run)
    assert config.problem == PROBLEM
    assert config.training.learning_rate == 0.1
    assert config.start == file_digest(run / "checkpoint.pt")
    assert config.examples == 256 * 4
    assert config.batch_sizes == (4, 8, 16, 32)  # a quarter of 200 is no double of 32
    assert (config.scaling, config.num_seeds, config.tolerance) == ("linear", 5, 0.05)
    assert BranchConfig.from_checkpoint(run / "checkpoint.pt") == config
    assert config.run(8, 1, num_examples=200).seed == 5  # the checkpoint's own is 3


def test_what_is_given_beside_it_goes_before(run):
    config = BranchConfig.from_checkpoint(
        run, batch_sizes=(8, 16, 32, 8), learning_rate=0.3, examples=400, scaling="sqrt"
    )
    assert config.batch_sizes == (8, 16, 32)
    assert config.training == TrainConfig(batch_size=8, learning_rate=0.3, seed=3)
    assert (config.examples, config.scaling) == (400, "sqrt")
    with pytest.raises(SettingError, match="give --bs too"):
        BranchConfig.from_checkpoint(run, learning_rate=0.3)


def test_rates_may_follow_the_law_that_is_fitted_to_tuned_ones(run):
    """ε(B) ∝ 1/(1 + 6/B) through .1 at the checkpoint's B = 4, from B = 1 on in steps of √2."""
    config = BranchConfig.from_checkpoint(run, scaling="noise", rate_bend=6.0, examples=400)
    assert config.batch_sizes == (1, 2, 3, 4, 6, 8, 11, 16, 23, 32)
    rates = {
        size: config.run(size, 0, num_examples=200).learning_rate for size in config.batch_sizes
    }
    assert rates[4] == pytest.approx(0.1)
    assert rates[1] == pytest.approx(0.25 / 7, rel=1e-5)
    assert rates[32] == pytest.approx(0.25 / (1 + 6 / 32), rel=1e-5)
    assert config.identity()["rate_bend"] == 6.0
    assert "rate_bend" not in BranchConfig.from_checkpoint(run).identity()  # old folders go on
    with pytest.raises(SettingError, match="give --lr-bend"):
        BranchConfig.from_checkpoint(run, scaling="noise")
    with pytest.raises(SettingError, match="leave out --lr-bend"):
        BranchConfig.from_checkpoint(run, rate_bend=6.0)


def test_weights_alone_say_neither(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(build_problem(PROBLEM).model.state_dict(), path)
    with pytest.raises(SettingError, match="give --problem module:factory"):
        BranchConfig.from_checkpoint(path)
    with pytest.raises(SettingError, match="give --lr and --bs"):
        BranchConfig.from_checkpoint(path, problem=PROBLEM)
    config = BranchConfig.from_checkpoint(
        path, problem=PROBLEM, batch_sizes=(2, 4, 8), learning_rate=0.1
    )
    assert config.training.batch_size == 2
    with pytest.raises(CheckpointError, match="no such file"):
        BranchConfig.from_checkpoint(tmp_path / "none.pt")


def test_a_batch_size_that_cannot_be_scaled_is_named(run, tmp_path):
    run_training(PROBLEM, TrainConfig(batch_size="full", epochs=1), tmp_path / "full")
    with pytest.raises(SettingError, match="batch size is full"):
        BranchConfig.from_checkpoint(tmp_path / "full")


@pytest.mark.pictures
def test_branches_leave_tables_from_which_the_picture_is_drawn(run, tmp_path):
    config = BranchConfig.from_checkpoint(run, examples=100, batch_sizes=(4, 8, 12), num_seeds=2)
    quiet = StudyOptions(pictures=False)
    found = run_branches(config, run, tmp_path / "out", executor=Here(), options=quiet)
    assert not (tmp_path / "out" / "branches.png").exists()
    drawn = run_branches(config, run / "checkpoint.pt", tmp_path / "out", executor=Here())
    pd.testing.assert_frame_equal(drawn.table, found.table)
    first = (tmp_path / "out" / "branches.png").read_bytes()
    (again,) = draw_pictures(tmp_path / "out", out=tmp_path)
    assert again == tmp_path / "branches.png"
    assert again.read_bytes() == first


def test_another_checkpoint_and_foreign_options_are_refused(run, tmp_path):
    config = BranchConfig.from_checkpoint(run, examples=100, batch_sizes=(4, 8, 12))
    with pytest.raises(SettingError, match="has the digest"):
        run_branches(replace(config, start="0123"), run, tmp_path / "out", executor=Here())
    options = SweepOptions(predict=False)
    with pytest.raises(SettingError, match="predict of SweepOptions"):
        run_branches(config, run, tmp_path / "out", executor=Here(), options=options)
    assert not (tmp_path / "out").exists()
