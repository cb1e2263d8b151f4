"""A noisy quadratic, known in closed form, trained and measured as any problem is."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from noisescale.problems.factory import factory_config
from noisescale.problems.problem import Examples
from noisescale.problems.synthetic import noisy_quadratic
from noisescale.statistics.critical_batch.curves.steps_to_goal import steps_to_goal
from noisescale.statistics.critical_batch.fit import fit_critical_batch
from noisescale.statistics.critical_batch.goal_table import fastest_runs
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.critical_batch.run import run_critical_batch
from noisescale.studies.critical_batch.runs.goal_run import GoalCell, run_to_goal
from noisescale.studies.jobs.cell import Cell
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import Training
from tests.helpers.executors import Here

NUM_EXAMPLES, DIM = 50_000, 100
CURVATURES = 1 / np.arange(1, DIM + 1)
VARIANCES = 0.8 * np.sqrt(CURVATURES)  # of the gradient, in the Hessian's eigenvectors
START = np.full(DIM, 0.8)  # a loss of 1.66
FACTORY = f"{Path(__file__)}:make_problem"


def synthetic():
    """½θᵀHθ + ζᵀθ with ζ whose mean over the examples is zero: the minimum, of loss 0, is at 0."""
    made = noisy_quadratic(
        hessian=torch.diag(torch.tensor(CURVATURES)),
        covariance=torch.diag(torch.tensor(VARIANCES)),
        start=torch.tensor(START),
        num_examples=NUM_EXAMPLES,
        generator=torch.Generator().manual_seed(0),
    )
    noise = made.problem.train.inputs
    noise -= noise.mean(0)  # in place, since the exact moments are of the same tensor
    return made


def make_problem():
    """With a test example of no noise, whose loss is the expected one."""
    nothing = torch.zeros(1, DIM, dtype=torch.float64)
    return replace(synthetic().problem, test=Examples(nothing, nothing[:, 0]))


def exact_loss(theta):
    return 0.5 * float(CURVATURES @ theta**2)


def expected_losses(batch_size, rate, num_steps, variances):
    """E L after each step of the first epoch, by the exact second moments of θ.

    θ_t = aᵗθ_0 − ε Σ_s a^(t−1−s) e_s, where the errors e of batches drawn without replacement have
    variance Σ(N − B)/(B(N − 1)) and, two of them, the covariance −Σ/(N − 1).
    """
    own = (NUM_EXAMPLES - batch_size) / (batch_size * (NUM_EXAMPLES - 1))
    shared = -1 / (NUM_EXAMPLES - 1)
    decay = 1 - rate * CURVATURES
    losses, sums, squares = [], np.zeros(DIM), np.zeros(DIM)
    for step in range(num_steps + 1):
        variance = rate**2 * variances * ((own - shared) * squares + shared * sums**2)
        losses.append(0.5 * float(CURVATURES @ (decay ** (2 * step) * START**2 + variance)))
        sums, squares = 1 + decay * sums, 1 + decay**2 * squares
    return np.array(losses)


@pytest.fixture(scope="module")
def moments():
    return synthetic().moments(torch.tensor(START), "dataset")


@pytest.mark.parametrize("batch_size", [2, 16, 128])
def test_the_best_single_step_is_that_of_the_law(moments, batch_size):
    """(2.6) and (2.7): one update at two rates, the parabola through the losses, over 200 seeds."""
    problem = make_problem()
    before, rates = exact_loss(START), (0.5, 1.0)
    coefficients = []
    for seed in range(200):
        drops = []
        for rate in rates:
            training = Training(
                problem,
                TrainConfig(
                    batch_size=batch_size, learning_rate=rate, epochs=1, max_steps=1, seed=seed
                ),
            )
            next(iter(training))
            theta = next(training.model.parameters()).detach().numpy()
            drops.append(before - exact_loss(theta))
        # drop = aε − bε²
        coefficients.append(np.linalg.solve([[rate, -(rate**2)] for rate in rates], drops))
    (a, b), covariance = (
        np.mean(coefficients, 0),
        np.cov(np.transpose(coefficients)) / len(coefficients),
    )
    gradient, hessian = moments.gradient.numpy(), moments.hessian.numpy()
    curvature = gradient @ hessian @ gradient
    noise_size = float(np.trace(hessian @ moments.covariance.numpy())) / curvature
    max_rate = gradient @ gradient / curvature
    # batches of distinct examples: B_noise/B is p·B_noise
    shrinking = 1 + noise_size * (NUM_EXAMPLES - batch_size) / (batch_size * (NUM_EXAMPLES - 1))
    for measured, slope, expected in (
        (a / (2 * b), np.array([1 / (2 * b), -a / (2 * b**2)]), max_rate / shrinking),
        (
            a**2 / (4 * b),
            np.array([a / (2 * b), -((a / (2 * b)) ** 2)]),
            0.5 * max_rate * gradient @ gradient / shrinking,
        ),
    ):
        assert abs(measured - expected) < 4 * math.sqrt(slope @ covariance @ slope)
        assert measured == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "rate"), [(4, 0.1), (32, 0.4), (256, 1.0)])
def test_steps_to_a_goal_are_those_of_the_second_moments(moments, tmp_path, batch_size, rate):
    """The mean loss of 16 seeds passes the goal where the exact one does: 3 jackknife errors."""
    training = TrainConfig(batch_size=batch_size, learning_rate=rate, epochs=1, max_steps=60)
    config = factory_config(FACTORY)
    losses = []
    for seed in range(16):
        run = run_to_goal(
            GoalCell(
                cell=Cell(
                    path=tmp_path / str(seed),
                    problem=config,
                    training=TrainConfig(**{**vars(training), "seed": seed}),
                ),
                goals=(),
                split="test",
            )
        )
        losses.append(run.losses["loss"].to_numpy())
    steps = run.losses["step"].to_numpy()
    expected = expected_losses(batch_size, rate, 60, moments.covariance.diagonal().numpy())
    goal = expected[30]
    exact = steps_to_goal(steps, expected[steps], goal)
    measured = steps_to_goal(steps, np.mean(losses, 0), goal)
    left_out = [
        steps_to_goal(steps, np.mean(np.delete(losses, seed, 0), 0), goal) for seed in range(16)
    ]
    stderr = math.sqrt(15 / 16 * np.sum(np.square(left_out - np.mean(left_out))))
    assert abs(measured - exact) < 3 * stderr
    assert stderr < 3


@pytest.mark.slow
def test_the_critical_batch_size_is_that_of_the_exact_curve(moments, tmp_path):
    """The fit of S(B) of the exact mean loss, at the best rate tried, lies in the interval.

    The ratio to B_noise is whatever it is: here it is held against the exact B_noise at the start.
    """
    config = CriticalBatchConfig(
        problem=factory_config(FACTORY),
        batch_sizes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        goals=(0.6, 0.3),
        split="test",
        num_seeds=4,
        factor=math.sqrt(2),
        noise_examples=2000,
    )
    found = run_critical_batch(config, tmp_path / "out", executor=Here())
    variances = moments.covariance.diagonal().numpy()
    grid = sorted(found.table["learning_rate"].unique())
    for goal, fit in found.fits.items():
        exact = []
        for size in config.batch_sizes:
            longest = (
                int(
                    2
                    * fastest_runs(found.table)
                    .query("goal == @goal and batch_size == @size")["steps"]
                    .max()
                )
                + 2
            )
            passages = [
                steps_to_goal(
                    range(longest + 1), expected_losses(size, rate, longest, variances), goal
                )
                for rate in grid
                if rate < 2
            ]
            exact.append(min(passage for passage in passages if passage is not None))
        expected = fit_critical_batch(config.batch_sizes, exact)
        assert fit.resolved
        assert (
            fit.critical_batch_size.low
            < expected.critical_batch_size.value
            < fit.critical_batch_size.high
        )
        assert fit.critical_batch_size.value == pytest.approx(
            expected.critical_batch_size.value, rel=0.25
        )
        row = found.predicted.query("goal == @goal and quantity == 'full'").iloc[0]
        gradient, hessian = moments.gradient.numpy(), moments.hessian.numpy()
        noise_size = float(np.trace(hessian @ moments.covariance.numpy())) / (
            gradient @ hessian @ gradient
        )
        assert row["start"] == pytest.approx(noise_size, rel=0.2)
        assert 0.1 < row["ratio_by_progress"] < 3


def test_the_examples_are_what_the_moments_are_of(moments):
    train = make_problem().train
    assert isinstance(train, Examples)
    assert train.inputs.mean(0).abs().max() < 1e-12
    assert np.diag(moments.covariance) == pytest.approx(VARIANCES, rel=0.05)
