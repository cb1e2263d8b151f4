"""The fronts of many tasks: what they are, and those in closed form against their known B_crit."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.noise import fronts as analysis
from analysis.tables import read_runs
from experiments.noise import front_problems, fronts
from experiments.noise.front_tasks import TASKS
from noisescale.errors import MeasurementError
from noisescale.problems.config import ProblemConfig
from noisescale.statistics.critical_batch.curves.steps_to_goal import steps_to_goal
from noisescale.statistics.critical_batch.fit import fit_critical_batch
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.studies.critical_batch.branches import run_branches
from noisescale.studies.critical_batch.goal_runs.goal_run import run_to_goal
from noisescale.studies.critical_batch.goal_runs.start import examples_for
from noisescale.studies.critical_batch.run import run_critical_batch
from noisescale.studies.jobs.options import StudyOptions
from noisescale.training.trainer import Training
from tests.helpers.executors import Here

ORDINALS = np.arange(1, front_problems.DIM + 1)
STEEP = 1 / ORDINALS
# curvatures, and the variances of the gradient along them; of the regression they depend on θ
CLOSED = {
    "quadratic-steep": (STEEP, 0.8 / np.sqrt(ORDINALS)),
    "quadratic-white": (1 / np.sqrt(ORDINALS), 0.5 * np.ones(front_problems.DIM)),
    "quadratic-curved": (STEEP, 2 / ORDINALS),
    "regression": (STEEP, None),
}


def expected_losses(name, batch_size, rate, num_steps):
    """E L after each step, by the second moments m of θ less its minimum, independent batches.

    Of normal inputs with a covariance A, E[ĤMĤ] = AMA + (AMA + tr(AM)A)/B for a batch's Ĥ.
    """
    curvatures, variances = CLOSED[name]
    moments = np.full(len(curvatures), front_problems.START**2)
    losses = []
    for _ in range(num_steps + 1):
        losses.append(0.5 * float(curvatures @ moments))
        if variances is None:
            residual = curvatures @ moments + 1.0
            noise = (curvatures**2 * moments + curvatures * residual) / batch_size
        else:
            noise = variances / batch_size
        moments = (1 - rate * curvatures) ** 2 * moments + rate**2 * noise
    return losses


def exact_steps(name, batch_size, goal, rates, num_steps):
    """The fewest steps at any of these rates."""
    passages = [
        steps_to_goal(
            range(num_steps + 1), expected_losses(name, batch_size, rate, num_steps), goal
        )
        for rate in rates
    ]
    return min(passage for passage in passages if passage is not None)


def test_the_tasks_are_those_wanted_and_fit_in_an_afternoon():
    assert len(TASKS) >= 24
    configs = {name: task.config("full") for name, task in TASKS.items()}
    for name, config in configs.items():
        assert 8 <= len(config.batch_sizes) <= 12, name
        assert 3 <= len(config.goals) <= 5, name
        assert 3 <= config.num_seeds <= 5, name
        assert list(config.goals) == sorted(config.goals, reverse=True), name
        quick = TASKS[name].config("quick")
        assert set(quick.batch_sizes) <= set(config.batch_sizes), name
        assert len(quick.batch_sizes) >= 4, name
    optimizers = {
        (config.training.optimizer, config.training.momentum) for config in configs.values()
    }
    assert optimizers == {("sgd", 0.0), ("sgd", 0.9), ("adam", 0.0), ("adamw", 0.0)}
    assert sum(task.minutes for task in TASKS.values()) <= 2.5 * 60 * 2  # core minutes
    problems = [config.problem for config in configs.values()]
    ours = [problem for problem in problems if isinstance(problem, ProblemConfig)]
    assert {problem.dataset for problem in ours} == {"mnist", "digits", "shakespeare", "markov"}
    assert {problem.model for problem in ours} == {"mlp", "cnn", "gpt"}
    assert any(problem.label_noise for problem in ours)
    assert any(problem.loss == "mse" for problem in ours)


@pytest.mark.parametrize("name", CLOSED)
def test_a_closed_form_is_what_training_does(name):
    """The mean loss of twelve runs after 15 steps, within four standard errors of the exact one."""
    problem = getattr(front_problems, name.replace("-", "_"))()
    config = TASKS[name].config("quick")
    weights, expected = [], expected_losses(name, 8, 0.2, 15)
    minimum = front_problems.START if name == "regression" else 0.0
    for seed in range(12):
        training = Training(problem, config.run(8, 0.2, seed, max_steps=15))
        for _ in training:
            pass
        weights.append(next(training.model.parameters()).detach().numpy().ravel() - minimum)
    losses = 0.5 * np.square(weights) @ CLOSED[name][0]
    stderr = losses.std(ddof=1) / math.sqrt(len(losses))
    assert abs(losses.mean() - expected[15]) < 4 * stderr
    assert stderr < 0.1 * expected[15]


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOSED)
def test_a_front_in_closed_form_has_the_known_critical_batch_size(name, tmp_path):
    """Within 30 % of the fit to the exact steps at the best rate tried.

    Goals are reached in few steps and rates are a factor of two apart, so that even the exact
    steps' own fit has an error of some 12 %, and that of two seeds as much again.
    """
    goals = TASKS[name].goals[2:4]
    config = replace(
        TASKS[name].config("full"), batch_sizes=(2, 8, 32, 128, 512), goals=goals, num_seeds=2
    )
    found = run_critical_batch(config, tmp_path / "front", executor=Here())
    for goal, fit in found.fits.items():
        exact = []
        for size in config.batch_sizes:
            own = found.table.query("goal == @goal and batch_size == @size and censored == 0")
            exact.append(
                exact_steps(
                    name, size, goal, own["learning_rate"].unique(), 2 * int(own["steps"].max()) + 2
                )
            )
        known = fit_critical_batch(config.batch_sizes, exact).critical_batch_size.value
        assert fit.critical_batch_size.value == pytest.approx(known, rel=0.3)


def test_every_task_s_examples_are_a_multiple_of_its_batch_sizes():
    for task in TASKS.values():
        total = examples_for(task.config("full").problem, task.split)
        assert not [size for size in task.batch_sizes if total % size], task.name


@pytest.mark.slow
def test_runs_beside_a_front_are_at_three_sizes_and_rates(tmp_path):
    """And end at the lowest goal, with the noise along them."""
    task = replace(
        TASKS["digits-logistic"], goals=(1.6, 1.2), batch_sizes=(8, 32, 128, 512), sign=True
    )
    config = replace(task.config("full"), num_seeds=2)
    options = StudyOptions(pictures=False)
    out = tmp_path / "task"
    front = run_critical_batch(config, out / "front", executor=Here(), options=options)
    runs = fronts.beside(config, front)
    assert len(runs) == 9
    assert len({(run.batch_size, run.learning_rate, run.order_seed) for run in runs}) == 9
    for seed in range(3):
        own = [run for run in runs if run.seed == seed]
        rates = sorted(run.learning_rate for run in own)
        assert rates[1] / rates[0] == pytest.approx(4, rel=0.02)
        assert rates[2] / rates[1] == pytest.approx(2, rel=0.02)
        assert len({run.batch_size for run in own}) == 1
    cell = fronts.goal_cell(task, config, runs[1], out / "beside", options)
    run = run_to_goal(cell)
    assert math.isfinite(run.steps(1.2))
    assert run.noise["simple"].iloc[0] > 0
    assert run.noise["gradient_curvature"].notna().all()
    # branches begin where this run reached the goal, at the rates of the front's law
    *_, (start, branches, goal) = fronts.branches_of(config, front, run)
    law = next(law for law in front.laws[goal] if law.name == "noise")
    assert goal == 1.2
    assert branches.run(64, 0, num_examples=1024).learning_rate == pytest.approx(law.rate(64))
    folder = out / "branches" / "goal1.2"
    run_branches(branches, start, folder, executor=Here(), options=options)
    made = analysis.tables(read_runs(tmp_path))
    of_one = {"steps_to_goal", "beside", "branch_losses", "fits", "predictions", "branches"}
    assert set(made) == of_one  # of one task no model
    assert set(made["branch_losses"]["batch_size"]) == set(branches.batch_sizes)
    assert made["branches"]["goal"].unique() == [1.2]
    row = made["predictions"].query("goal == 1.2 and quantity == 'simple' and geometry == 'plain'")
    until = run.noise[: (run.noise["step"] < run.steps(1.2)).sum() + 1]  # and the first one beyond
    said = recommend(until, quantity="simple", learning_rate=runs[1].learning_rate)
    assert row["noise_scale"].item() == said.by_progress.value
    assert row["relative_decrease"].item() == said.relative_decrease
    assert row["critical_batch_size"].item() == front.fits[1.2].critical_batch_size.value
    assert row["rate_over_best"].item() == pytest.approx(1, rel=0.02)
    assert row["two_batch"].item() == pytest.approx(
        np.trapezoid(until["gradient_variance"], until["step"])
        / np.trapezoid(until["squared_gradient_norm"], until["step"])
    )
    along = until["sign_simple"]
    assert along.min() < row["sign"].item() < along.max()
    assert row["sign"].item() != pytest.approx(along.mean(), rel=1e-3)  # of 1/B_ℓ1, by progress
    unresolved = {goal: replace(fit, resolved=False) for goal, fit in front.fits.items()}
    with pytest.raises(MeasurementError, match="no goal has both"):
        fronts.beside(config, replace(front, fits=unresolved))
