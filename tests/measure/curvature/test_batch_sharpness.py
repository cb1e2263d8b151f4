"""Batch sharpness and gradient–noise interaction against closed forms and plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.batch_sharpness import (
    batch_sharpness,
    gradient_noise_interaction,
)
from noisescale.measure.curvature.products import hessian_matvec
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Problem
from tests.helpers.problems import classification, quadratic, regression


def all_batches(num_examples, batch_size):
    return [torch.tensor(rows) for rows in itertools.combinations(range(num_examples), batch_size)]


def curvature_along(problem, examples, rows):
    """g_BᵀH_Bg_B and |g_B|² of one batch of a linear regression at θ = 0, in closed form."""
    inputs, targets = examples.part(rows)
    gradient = -inputs.T @ targets / len(rows)
    return (gradient @ inputs.T @ inputs @ gradient / len(rows)).item(), (
        gradient @ gradient
    ).item()


def test_batch_sharpness_is_the_mean_over_all_batches():
    problem = regression(num_examples=8).problem
    ratios = [
        top / bottom
        for top, bottom in (
            curvature_along(problem, problem.train, rows) for rows in all_batches(8, 3)
        )
    ]
    found = batch_sharpness(Objective(problem), batch_size=3, num_batches=400)
    assert abs(found.value - np.mean(ratios)) < 4 * found.stderr
    assert found.stderr == pytest.approx(np.std(ratios) / math.sqrt(400), rel=0.2)
    top, bottom = curvature_along(problem, problem.train, torch.arange(8))
    full = batch_sharpness(Objective(problem), batch_size=8)
    assert (full.value, full.stderr) == (pytest.approx(top / bottom), 0)


def test_batches_without_a_gradient_are_left_out_and_counted():
    problem = regression(num_examples=8).problem
    problem.train.targets[:4] = 0  # at θ = 0 these have no gradient
    problem.train.inputs[:4] = 0
    found = batch_sharpness(Objective(problem), batch_size=1, num_batches=200)
    assert 60 < found.num_samples < 140
    problem.train.targets[:] = 0
    with pytest.raises(MeasurementError, match="every batch of 1 has a gradient of exactly zero"):
        batch_sharpness(Objective(problem), batch_size=1)


def test_tiny_gradients_do_not_underflow():
    """|g|² of a fitted example is below float32's range long before g is."""
    problem = regression(num_examples=8).problem
    tiny = Examples(problem.train.inputs.float(), problem.train.targets.float() * 1e-30)
    single = Problem(model=problem.model.float(), loss=problem.loss, train=tiny)
    found = batch_sharpness(Objective(single), batch_size=1, num_batches=50)
    norms = tiny.inputs.square().sum(1)  # the only nonzero curvature of one example
    assert norms.min() * 0.999 < found.value < norms.max() * 1.001
    assert found.num_samples == 50


def test_gradient_noise_interaction_has_its_closed_form():
    synthetic = quadratic(num_examples=20)
    problem = synthetic.problem
    theta = next(problem.model.parameters()).detach()
    moments = synthetic.moments(theta, "dataset")
    batch_size, total = 4, 20
    noise = (total - batch_size) / (
        batch_size * (total - 1)
    )  # of a batch without replacement, Σ with 1/N
    gradient, hessian = moments.gradient, moments.hessian
    expected = gradient @ hessian @ gradient + noise * (hessian @ moments.covariance).trace()
    expected = (expected / (gradient @ gradient)).item()
    found = gradient_noise_interaction(
        Objective(problem), hessian_matvec(problem), batch_size=batch_size, num_batches=1000
    )
    assert abs(found.value - expected) < 4 * found.stderr
    assert found.stderr < 0.1 * expected


def test_impossible_batches_are_refused():
    objective = Objective(classification())
    with pytest.raises(SettingError, match="batch size 51: there are 50 examples"):
        batch_sharpness(objective, batch_size=51)
    with pytest.raises(SettingError, match="num batches 1"):
        batch_sharpness(objective, batch_size=5, num_batches=1)
