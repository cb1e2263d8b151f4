"""The critical batch size in small: from runs to tables to the picture, and the experiment."""

import math
import shutil

import pandas as pd
import pytest
from click.testing import CliRunner

from analysis.__main__ import main as analysis
from analysis.tables import DATA
from experiments.noise import critical_batch
from noisescale.statistics.critical_batch.learning_rate_law import LearningRateLaw
from noisescale.studies.critical_batch.branches import BranchConfig, run_branches
from noisescale.studies.critical_batch.runs.goal_run import GoalCell, run_to_goal
from noisescale.studies.jobs.cell import Cell
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.folder import record_experiment
from noisescale.training.records.names import file_digest
from noisescale.training.tracking.noise import NoiseTracking
from paper_figures.noise.critical_batch import figure
from tests.helpers.critical_batch import PROBLEM
from tests.helpers.executors import Here

GOALS = (1.8, 1.2)


@pytest.fixture(scope="module")
def runs(finished_critical_batch, tmp_path_factory):
    """Digits instead of MNIST and of the quadratic, and branches from one run's checkpoints."""
    root = tmp_path_factory.mktemp("critical")
    record_experiment(root, command="python -m experiments critical_batch --scale small")
    for name in ("mnist", "quadratic"):
        shutil.copytree(finished_critical_batch.out, root / name)
    training = TrainConfig(batch_size=4, learning_rate=0.1, epochs=20)
    cell = Cell(path=root / "base-0", problem=PROBLEM, training=training)
    run = run_to_goal(
        GoalCell(cell=cell, goals=GOALS, noise=NoiseTracking(num_examples=100, hessian=True))
    )
    for goal in GOALS:
        step = run.losses["step"][run.losses["loss"] <= goal].iloc[0]
        start = run.path / "checkpoints" / f"step-{step}.pt"
        config = BranchConfig(
            problem=PROBLEM,
            training=load_checkpoint(start).training,
            start=file_digest(start),
            examples=200,
            batch_sizes=(4, 8, 16, 32),
            num_seeds=3,
        )
        run_branches(config, start, root / "branches" / f"goal{goal:g}-seed0", executor=Here())
    return root


@pytest.mark.slow
def test_runs_become_tables_and_the_tables_a_picture(runs, tmp_path):
    data = tmp_path / "data" / "critical_batch"
    found = CliRunner().invoke(analysis, ["critical_batch", str(runs), "--out", str(data)])
    assert found.exit_code == 0, found.output
    tables = {path.stem: pd.read_csv(path, comment="#") for path in data.glob("*.csv")}
    assert set(tables) == {
        *("steps_to_goal", "fastest", "fits", "learning_rates", "laws", "predicted"),
        *("branches", "branch_losses"),
    }
    assert tables["fits"]["problem"].unique().tolist() == ["mnist", "quadratic"]
    own = pd.read_csv(runs / "mnist" / "steps_to_goal.csv")
    committed = tables["steps_to_goal"].query("problem == 'mnist'").reset_index(drop=True)
    pd.testing.assert_frame_equal(committed[own.columns], own, rtol=1e-5, check_dtype=False)
    of_tolerances = tables["branches"].groupby("tolerance")["goal"].apply(list).to_dict()
    assert of_tolerances == {share: [1.8, 1.2] for share in (0.01, 0.02, 0.05, 0.1)}
    assert (tables["branches"]["start_loss"] <= tables["branches"]["goal"]).all()
    known = tables["branches"][tables["branches"]["ratio"].notna()]
    assert known["ratio"].tolist() == pytest.approx(
        (known["critical_batch_size"] / known["branch"]).tolist(), rel=1e-4
    )
    assert len(tables["branch_losses"]) == 2 * 4 * 3
    (data.parent / "published.csv").write_bytes(
        (DATA.parent / "data" / "published.csv").read_bytes()
    )
    drawn = figure(tmp_path / "data")
    assert len(drawn.axes) == 8
    assert all(axes.has_data() for axes in drawn.axes)


def test_the_experiment_asks_for_what_the_preset_says():
    full = critical_batch.SCALES["full"]
    assert len(full["batch_sizes"]) == 24
    assert (full["batch_sizes"][0], full["batch_sizes"][-1]) == (1, 4096)
    assert len(full["goals"]) >= 4
    assert full["num_seeds"] >= 5
    made = critical_batch.quadratic()
    assert made.test.inputs.abs().sum() == 0


def test_branches_of_the_experiment_start_at_the_law_of_the_front(runs):
    """ε(B) = ε_max/(1 + B_c/B) at every size, from one example on."""
    start = next((runs / "base-0" / "checkpoints").glob("step-*.pt"))
    law = LearningRateLaw(
        name="noise", scale=0.4, bend=48.0, power=math.nan, batch_size=None, held_out_error=0.1
    )
    config = critical_batch.branch_config(start, law)
    assert config.batch_sizes[:6] == (1, 2, 3, 4, 6, 8)
    for size in (1, 16, 64):
        training = config.run(size, 0, num_examples=60_000)
        assert training.learning_rate == pytest.approx(0.4 / (1 + 48 / size), rel=1e-5)
    assert critical_batch.PROBLEM.width == 256
