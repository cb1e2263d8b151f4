"""The noise experiments: their grids, their tables, and the pictures drawn from them."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from analysis.__main__ import main as analysis
from analysis.adaptive_batch import (
    _passage,
    comparison_table,
    front_table,
    reached_table,
    tuned_table,
)
from experiments import adaptive_batch, noise_growth
from noisescale.problems.config import ProblemConfig
from noisescale.training.config import TrainConfig
from noisescale.training.records.folder import record_experiment
from noisescale.training.records.names import run_name
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.noise import NoiseTracking
from paper_figures.__main__ import main as paper_figures
from paper_figures.style import read_table
from tests.helpers.paths import ROOT

MIN_STEPS, CRITICAL, GAIN = 100.0, 300.0, 0.6


def test_the_grids():
    growth = noise_growth.cases("full")
    assert len({folder for folder, *_ in growth}) == len(growth) == 6
    assert {training.batch_size for _, _, training, _ in growth} == {128, 32}
    assert {training.seed for _, _, training, _ in growth} == {0, 1, 2}
    assert all(
        problem.pixel_scale == "unit" and options.noise.hessian for _, problem, _, options in growth
    )
    adaptive = adaptive_batch.cases("full")
    assert len({folder for folder, *_ in adaptive}) == len(adaptive)
    for batch_size in {training.batch_size for _, _, training, _ in adaptive}:
        own = [training for _, _, training, _ in adaptive if training.batch_size == batch_size]
        assert {training.seed for training in own} == {0, 1, 2, 3, 4}
        assert len({training.learning_rate for training in own}) >= 3


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """The growth of the noise scale in small: digits, two batch sizes, two seeds."""
    root = tmp_path_factory.mktemp("grown")
    record_experiment(root, command="python -m experiments noise_growth --scale small")
    tracking = NoiseTracking(every=20, num_examples=400, hessian=True, num_probes=4, per_layer=True)
    for seed in (0, 1):
        for batch_size in (128, 32):
            problem = ProblemConfig(dataset="digits", width=8)
            training = TrainConfig(batch_size=batch_size, learning_rate=0.1, epochs=2, seed=seed)
            run_training(
                problem, training, root / run_name(problem, training), RunOptions(noise=tracking)
            )
    return root


@pytest.mark.slow
def test_noise_along_training_becomes_tables_and_a_picture(grown, tmp_path):
    data = tmp_path / "data"
    result = CliRunner().invoke(
        analysis, ["noise_growth", str(grown), "--out", str(data / "noise_growth")]
    )
    assert result.exit_code == 0, result.output
    curves, layers, growth = (
        read_table(data / "noise_growth" / f"{name}.csv") for name in ("curves", "layers", "growth")
    )
    starts = curves[curves["step"] == 0].groupby("batch_size")["simple"].mean()
    row = growth.set_index("batch_size").loc["32"]
    assert row["start"] == pytest.approx(starts["32"], rel=1e-4)
    assert row["num_seeds"] == 2
    assert layers.groupby(["batch_size", "step"])["share"].sum().to_numpy() == pytest.approx(
        1, rel=1e-4
    )
    of_start = layers[(layers["step"] == 0) & (layers["parameter"] == "1.weight")]
    assert set(of_start["num_seeds"]) == {2}
    (data / "published.csv").write_bytes(
        (ROOT / "paper_figures" / "data" / "published.csv").read_bytes()
    )
    arguments = ["noise_growth", "--data", str(data), "--out", str(tmp_path)]
    result = CliRunner().invoke(paper_figures, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "noise_growth.png").stat().st_size > 10_000


def test_a_passage_is_interpolated_in_logarithms():
    table = pd.DataFrame({"step": [0, 10, 40, 160], "loss": [4.0, 2.0, 1.0, 0.5]})
    assert _passage(table, "step", 1.0) == pytest.approx(40)
    assert _passage(table, "step", 2**-0.5) == pytest.approx(80)  # half of the way in log loss
    assert np.isnan(_passage(table, "step", 3.0))  # before the first step there is no logarithm
    assert np.isnan(_passage(table, "step", 0.1))


def hyperbola(*, noise=0.0):
    """Runs as `reached_table` gives them: fixed ones on a hyperbola, adaptive ones GAIN off it."""
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(5):
        for rate, penalty in ((0.1, 1.0), (0.2, 1.5)):
            for size in (32, 64, 128, 256, 512, 1024, 2048):
                steps = (
                    penalty * MIN_STEPS * (1 + CRITICAL / size) * np.exp(noise * generator.normal())
                )
                rows.append(
                    (str(size), 1000.0, "none", rate, seed, 0.2, steps, size * steps, np.nan)
                )
            excess = np.sqrt(GAIN)  # S/S_min = 1 + √γ at r = E_min/S_min
            steps = penalty * MIN_STEPS * (1 + excess) * np.exp(noise * generator.normal())
            rows.append(
                (
                    "adaptive",
                    CRITICAL,
                    "noise",
                    rate,
                    seed,
                    0.2,
                    steps,
                    CRITICAL * steps,
                    GAIN + 0.01 * seed,
                )
            )
    names = (
        "batch_size exchange_rate lr_scaling learning_rate seed goal steps examples predicted_gain"
    )
    return pd.DataFrame(rows, columns=names.split())


def test_savings_are_those_of_the_closed_form():
    tuned = tuned_table(hyperbola())
    assert set(tuned["learning_rate"]) == {0.1}
    row = comparison_table(tuned).iloc[0]
    excess = np.sqrt(GAIN)
    assert row["measured_gain"] == pytest.approx(GAIN, rel=1e-3)
    # the fixed one of as many examples takes S_min(1 + 1/√γ); interpolated between batch sizes in
    # log–log
    assert row["steps_saved"] == pytest.approx(1 - (1 + excess) / (1 + 1 / excess), abs=0.01)
    assert row["examples_saved"] == pytest.approx(1 - (1 + excess) / (1 + 1 / excess), abs=0.01)
    sizes = np.array([256, 512])
    costs = (sizes + CRITICAL) * MIN_STEPS * (1 + CRITICAL / sizes)
    assert row["cost_saved"] == pytest.approx(
        1 - 2 * CRITICAL * MIN_STEPS * (1 + excess) / min(costs), rel=1e-6
    )
    assert row["predicted_gain"] == pytest.approx(GAIN + 0.02)
    assert row["steps_saved_stderr"] == pytest.approx(0, abs=1e-9)


def test_the_comparison_is_drawn(tmp_path):
    tuned = tuned_table(pd.concat([hyperbola(noise=0.05).assign(goal=goal) for goal in (0.3, 0.2)]))
    folder = tmp_path / "data" / "adaptive_batch"
    folder.mkdir(parents=True)
    front_table(tuned).to_csv(folder / "front.csv", index=False)
    arguments = ["adaptive_batch", "--data", str(tmp_path / "data"), "--out", str(tmp_path)]
    result = CliRunner().invoke(paper_figures, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "adaptive_batch.png").stat().st_size > 10_000


def test_savings_have_the_error_of_the_seeds():
    row = comparison_table(tuned_table(hyperbola(noise=0.05))).iloc[0]
    assert 0.01 < row["steps_saved_stderr"] < 0.1
    assert row["steps_saved_low"] < row["steps_saved"] < row["steps_saved_high"]


def test_beyond_all_fixed_batch_sizes_there_is_nothing_to_compare():
    reached = hyperbola()
    reached.loc[reached["batch_size"] == "adaptive", "examples"] /= 100
    row = comparison_table(tuned_table(reached)).iloc[0]
    assert np.isnan(row["steps_saved"])
    assert row["cost_saved"] > 0


def test_a_rate_at_which_one_seed_does_not_arrive_is_not_the_best():
    reached = hyperbola()
    reached.loc[
        (reached["learning_rate"] == 0.1) & (reached["seed"] == 3), ["steps", "examples"]
    ] = np.nan
    tuned = tuned_table(reached)
    assert set(tuned["learning_rate"]) == {0.2}
    assert set(front_table(tuned)["num_seeds"]) == {5}


def test_runs_become_passages(tmp_path):
    problem = ProblemConfig(dataset="digits", width=8)
    found = []
    for settings in ({"batch_size": 16}, {"batch_size": "adaptive", "noise_memory": 500}):
        training = TrainConfig.from_dict({"learning_rate": 0.2, "epochs": 5, **settings})
        path = tmp_path / run_name(problem, training)
        run_training(
            problem, training, path, RunOptions(noise=NoiseTracking(every="log", num_examples=200))
        )
        summary = {**problem.to_dict(), **training.to_dict(), "predicted": {"gain": 0.5}}
        found.append((path, summary))
    table = reached_table(found)
    fixed = table[table["batch_size"] == "16"].set_index("goal")
    assert fixed["examples"][0.3] == pytest.approx(
        16 * fixed["steps"][0.3], rel=0.02
    )  # ragged last batches
    assert fixed["steps"][0.3] < fixed["steps"][0.2]
    assert set(table[table["batch_size"] == "adaptive"]["predicted_gain"]) == {0.5}
