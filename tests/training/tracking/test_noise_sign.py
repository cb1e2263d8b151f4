"""The noise of sign descent along a run."""

import pandas as pd
import pytest

from noisescale.measure.noise import measure_noise
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.statistics.gradient_noise import SIGN_QUANTITIES, of_sign
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.tables import NOISE, SIGN_COLUMNS, read_noise
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.noise import NoiseTracking
from tests.helpers.command_line import run

PROBLEM = ProblemConfig(dataset="digits", width=16, num_train=60)
TRAINING = TrainConfig(batch_size=20, optimizer="adam", learning_rate=0.01, max_steps=4)


def tracked(path, **settings):
    noise = NoiseTracking(every=2, **settings)
    run_training(PROBLEM, TRAINING, path, RunOptions(noise=noise, checkpoint_every=2))
    return pd.DataFrame(read_noise(path)).set_index("step")


def test_rows_have_what_a_measurement_of_their_step_has(tmp_path):
    rows = tracked(tmp_path, sign=True)
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "step-2.pt")
    problem = build_problem(PROBLEM)
    problem.model.eval()
    found = measure_noise(problem, checkpoint.params, sign=True)
    for column, name in zip(of_sign(*SIGN_QUANTITIES), SIGN_QUANTITIES, strict=True):
        estimate = getattr(found.sign, name)
        # which example is in which fold is drawn anew
        assert rows.loc[2, column] == pytest.approx(estimate.value, rel=0.02), name
    # of all examples there are the norm is exact, and no estimate by folds
    assert rows.loc[2, "sign_gradient_norm"] == pytest.approx(
        found.sign.gradient_norm.value, rel=1e-5
    )
    assert rows.loc[2, "sign_simple"] == pytest.approx(
        (rows.loc[2, "sign_noise_norm"] / rows.loc[2, "sign_gradient_norm"]) ** 2
    )
    assert rows.loc[4, "sign_simple"] != rows.loc[2, "sign_simple"]


def test_a_table_without_them_has_none_of_their_columns(tmp_path):
    assert tracked(tmp_path)["sign_simple"].isna().all()
    assert not set(SIGN_COLUMNS) & set((tmp_path / NOISE).read_text().splitlines()[0].split(","))


def test_the_command_keeps_them(tmp_path):
    run(
        *("train", "--dataset", "digits", "--bs", "200", "--width", "8", "--max-steps", "2"),
        *("--measure-noise-every", "1", "--noise-sign", "--out", tmp_path / "run"),
    )
    assert pd.DataFrame(read_noise(tmp_path / "run"))["sign_simple"].gt(0).all()
