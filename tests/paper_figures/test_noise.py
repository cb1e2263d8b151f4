"""The noise experiments: their grids, their tables, and the pictures drawn from them."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats

from analysis.__main__ import main as analysis
from analysis.batches.intervals import holm
from analysis.noise.adaptive_batch import (
    comparison_table,
    control_table,
    front_table,
    pooled_table,
    reached_table,
    tuned_table,
)
from analysis.noise.noise_growth import equal_loss_table, growth_table
from experiments.noise import adaptive_batch, noise_growth
from noisescale.problems.config import ProblemConfig
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.studies.critical_batch.goal_runs.goal_run import GoalCell, run_to_goal
from noisescale.studies.jobs.cell import Cell
from noisescale.training.config import TrainConfig
from noisescale.training.records.folder import record_experiment
from noisescale.training.records.names import run_name
from noisescale.training.records.tables import read_noise
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
    adaptive = adaptive_batch.grid(**adaptive_batch.SCALES["full"])
    assert len({run_name(adaptive_batch.PROBLEM, training) for training in adaptive}) == len(
        adaptive
    )
    orders = {}
    for training in adaptive:
        setting = (training.batch_size, training.adaptive)
        orders.setdefault(setting, {}).setdefault(training.seed, set()).add(training.order_seed)
        own = {other.learning_rate for other in adaptive if _setting(other) == setting}
        assert len(own) == 3
    assert {tuple(sorted(seeds)) for seeds in orders.values()} == {(0, 1, 2, 3, 4)}
    every = [order for seeds in orders.values() for found in seeds.values() for order in found]
    # one for each seed and setting, whatever the rate: 7 sizes and 8 ways to adapt
    assert len(set(every)) == len(every) == 15 * 5


def _setting(training):
    return training.batch_size, training.adaptive


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


def power_law(*, exponents=(1.0, 1.5)):
    """Curves on B_simple = 100·loss^−exponent, at B = 32 and 128; the seeds' factors 1 and 2."""
    losses = np.exp(np.linspace(np.log(2.3), np.log(0.3), 30))
    steps = np.arange(30)
    runs = []
    for size, exponent in zip((32, 128), exponents, strict=True):
        for seed, factor in enumerate((1.0, 2.0)):
            run = pd.DataFrame({"step": steps, "loss": losses})
            run["simple"] = factor * 100 * losses**-exponent
            for part in ("simple_low", "simple_high"):
                run[part] = run["simple"]
            run["simple_stderr"] = 0.1 * run["simple"]
            run = run.assign(full=np.nan, gradient_curvature=1.0, gradient_curvature_stderr=0.1)
            runs.append(
                run.assign(batch_size=size, seed=seed, num_examples=500, population_size=2000)
            )
    return pd.concat(runs, ignore_index=True)


def test_growth_is_the_slope_in_the_logarithm_of_the_loss():
    growth = growth_table(power_law()).set_index("batch_size")
    assert growth["exponent"].to_dict() == pytest.approx({32: 1.0, 128: 1.5})
    assert growth["exponent_std"].to_numpy() == pytest.approx(0, abs=1e-9)
    assert growth["end_subset"].to_dict() == pytest.approx((0.1 * growth["end"]).to_dict())


def test_equal_losses_are_compared_seed_by_seed():
    """Seeds that differ by a factor of two have one ratio: loss^−½."""
    table = equal_loss_table(power_law()).set_index("loss")
    for loss, row in table.iterrows():
        assert row["ratio"] == pytest.approx(loss**-0.5, rel=1e-6)
        assert row["ratio_stderr"] == pytest.approx(0, abs=1e-9)
        assert row["simple_32"] == pytest.approx(2**0.5 * 100 / loss, rel=1e-6)
        assert row["simple_32_stderr"] > 10
    short = power_law()
    short = short[(short["batch_size"] == 32) | (short["loss"] > 0.9)]
    cut = equal_loss_table(short).set_index("loss")["ratio"]
    assert cut.isna().tolist() == [False, True, True, True, True, True, True]


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
    reached = pd.concat([hyperbola(noise=0.05).assign(goal=goal) for goal in (0.3, 0.2)])
    tuned = tuned_table(reached)
    folder = tmp_path / "data" / "adaptive_batch"
    folder.mkdir(parents=True)
    front_table(tuned).to_csv(folder / "front.csv", index=False)
    comparison_table(tuned).to_csv(folder / "comparison.csv", index=False)
    pooled_table(reached).to_csv(folder / "pooled.csv", index=False)
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


def test_a_fixed_batch_size_scores_one():
    control = control_table(tuned_table(hyperbola()))
    assert len(control) == 7
    assert control["measured_gain"].to_numpy() == pytest.approx(1, rel=1e-3)
    row = comparison_table(tuned_table(hyperbola())).iloc[0]
    assert row["fixed_gain"] == pytest.approx(1, rel=1e-3)
    assert row["gain_over_fixed"] == pytest.approx(GAIN, rel=1e-3)


def test_what_is_pooled_is_the_mean_of_the_logarithms():
    """One adaptive setting, whose seeds differ: by hand, the worse rate never chosen."""
    reached = hyperbola(noise=0.05)
    row = pooled_table(reached).set_index("rule").loc["all"]
    single = comparison_table(tuned_table(reached)).iloc[0]
    assert row["cost_saved"] == pytest.approx(single["cost_saved"])
    best = reached[reached["learning_rate"] == 0.1]
    fixed = best[best["batch_size"] != "adaptive"].pivot_table(
        index="seed", columns="batch_size", values=["steps", "examples"]
    )
    adaptive = best[best["batch_size"] == "adaptive"].set_index("seed")

    def cost(table, seeds):
        means = [np.exp(np.log(table[name].loc[seeds]).mean()) for name in ("steps", "examples")]
        return means[1] + CRITICAL * means[0]

    held_out, without = [], []
    for seed in range(5):
        others = [other for other in range(5) if other != seed]
        chosen = cost(fixed, others).idxmin()
        held_out.append(np.log(cost(adaptive, [seed]) / cost(fixed, [seed])[chosen]))
        without.append(np.log(cost(adaptive, others) / cost(fixed, others).min()))
    assert row["held_out_saved"] == pytest.approx(1 - np.exp(np.mean(held_out)))
    assert row["held_out_p"] == pytest.approx(stats.ttest_1samp(held_out, 0).pvalue)
    spread = np.sqrt(4 / 5 * np.sum((np.array(without) - np.mean(without)) ** 2))
    assert row["cost_saved_stderr"] == pytest.approx((1 - row["cost_saved"]) * spread)
    assert (row["cost_saved_low"] < row["cost_saved"]) & (
        row["cost_saved"] < row["cost_saved_high"]
    )


def test_many_tests_are_corrected():
    """Holm's by hand: .01·3, then .02·2 = .04, then the larger of .03 and that."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_runs_become_passages(tmp_path):
    """γ is of the stretch up to each goal: the same as of a run that ended there."""
    problem = ProblemConfig(dataset="digits", width=32)
    runs, goals = [], (0.3, 0.2, 0.15)  # those of reached_table
    for settings in ({"batch_size": 16}, {"batch_size": "adaptive", "exchange_rate": 10}):
        training = TrainConfig.from_dict({"learning_rate": 0.3, "epochs": 15, **settings})
        path = tmp_path / run_name(problem, training)
        tracking = NoiseTracking(every="log", num_examples=200)
        cell = Cell(path=path, problem=problem, training=training)
        run = run_to_goal(GoalCell(cell=cell, goals=goals, noise=tracking))
        runs.append((path, {**problem.to_dict(), **training.to_dict()}))
        table = reached_table(runs[-1:]).set_index("goal")
        noise = pd.DataFrame(read_noise(path))
        reached = [goal for goal in goals if np.isfinite(run.steps(goal))]
        assert len(reached) >= 2
        assert table["steps"].isna().sum() == len(goals) - len(reached)
        for goal in reached:
            steps = run.steps(goal)
            assert table["steps"][goal] == pytest.approx(steps)
            until = noise[noise["step"] <= steps]
            assert table["predicted_gain"][goal] == recommend(until, quantity="simple").course.gain
        table = table.loc[reached]
        assert table["steps"].is_monotonic_increasing
        assert len(set(table["predicted_gain"])) > 1
        sizes = noise["batch_size"]
        assert (
            table["examples"]
            .between(sizes.min() * table["steps"] * 0.98, sizes.max() * table["steps"])
            .all()
        )  # ragged last batches
