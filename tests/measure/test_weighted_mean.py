"""Measurements of a loss that is a mean over all tokens, against torch's own of whole batches."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from noisescale.errors import SettingError
from noisescale.measure.curvature.batch_sharpness import batch_sharpness
from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
from noisescale.measure.gradients.moments import gradient_moments
from noisescale.measure.noise import measure_noise
from noisescale.measure.objective import Objective
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.problems.problem import Examples, Problem
from tests.helpers.weighted import count, language_problem, token_mean


def batch_loss(problem, rows):
    inputs, labels = problem.train
    return token_mean(problem.model(inputs[rows]), labels[rows])


def batch_gradient(problem, rows):
    parts = torch.autograd.grad(batch_loss(problem, rows), list(problem.model.parameters()))
    return parameters_to_vector(parts)


def definitions(problem):
    """G, and the covariance's d_i = (w_i/w̄)(g_i − G) (N, P), by a backward pass each."""
    size = problem.train.num_examples
    mean = batch_gradient(problem, range(size))
    weights = count(problem.train.targets).double()
    relative = weights / weights.mean()
    gradients = []
    for row in range(size):
        gradient = torch.zeros_like(mean)
        if weights[row]:
            gradient = batch_gradient(problem, [row])
        gradients.append(gradient)
    return mean, relative[:, None] * (torch.stack(gradients) - mean)


def dense_hessian(problem):
    """Of the token mean over all examples, by differentiating its gradient along each axis."""
    params = list(problem.model.parameters())
    gradient = torch.autograd.grad(
        batch_loss(problem, range(problem.train.num_examples)), params, create_graph=True
    )
    flat = parameters_to_vector(gradient)
    rows = [torch.autograd.grad(part, params, retain_graph=True) for part in flat]
    return torch.stack([parameters_to_vector(row) for row in rows])


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("engine", ["hooks", "vmap", "loop"])
def test_the_noise_of_a_token_mean_is_that_of_its_influences(engine, empty):
    problem = language_problem(empty=empty)
    mean, deviations = definitions(problem)
    noise = measure_noise(problem, engine=engine, per_layer=True)
    trace = deviations.square().sum(1).mean()
    assert noise.engine == engine, noise.notes
    assert noise.loss.value == pytest.approx(float(batch_loss(problem, range(24)).detach()))
    assert noise.squared_gradient_norm.value == pytest.approx(float(mean.square().sum()))
    assert noise.gradient_variance.value == pytest.approx(float(trace))
    assert noise.per_layer["gradient_variance"].sum() == pytest.approx(float(trace))


def test_the_errors_of_a_subset_follow_from_the_same_influences():
    """Many subsets of one problem: the estimates scatter as their errors say."""
    problem = language_problem(400)
    found = [
        measure_noise(problem, num_examples=100, seed=seed, population="dataset")
        for seed in range(40)
    ]
    for name in ("squared_gradient_norm", "gradient_variance", "loss"):
        values = [getattr(each, name).value for each in found]
        errors = [getattr(each, name).stderr for each in found]
        assert np.mean(errors) == pytest.approx(np.std(values), rel=0.45)  # 1/√80, four times
        exact = getattr(measure_noise(problem), name).value
        assert abs(np.mean(values) - exact) < 4 * np.std(values) / 40**0.5


def test_examples_in_parts_count_as_in_the_whole():
    problem = language_problem()
    whole = gradient_moments(problem)
    parts = gradient_moments(problem, chunk_size=5)
    np.testing.assert_allclose(parts.squared_norms, whole.squared_norms)
    np.testing.assert_allclose(parts.weighting.on_examples, whole.weighting.on_examples)
    assert whole.weighting.relative.mean() == pytest.approx(1)


def test_curvature_is_that_of_the_token_mean():
    problem = language_problem()
    hessian = dense_hessian(problem)
    vector = torch.randn(len(hessian), generator=torch.Generator().manual_seed(0)).double()
    for chunk_size in (None, 7):
        product = hessian_matvec(problem, chunk_size=chunk_size)
        torch.testing.assert_close(product(vector), hessian @ vector)
        _, forms, shares = product.with_forms(vector)
        assert float(forms @ shares) == pytest.approx(float(vector @ hessian @ vector))
        assert shares.sum() == pytest.approx(1)
    sharpness = measure_sharpness(problem, options=SharpnessOptions(top=1))
    largest = torch.linalg.eigvalsh(hessian)[-1]
    assert sharpness.largest.value.value == pytest.approx(float(largest), rel=1e-3)
    assert sharpness.loss == pytest.approx(float(batch_loss(problem, range(24)).detach()))


def test_the_gauss_newton_matrix_is_that_of_the_token_mean():
    """Of a linear model and squared errors it is the Hessian."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    targets = torch.rand(10, generator=generator, dtype=torch.float64)
    problem = Problem(
        model=torch.nn.Linear(3, 1, bias=False).double(),
        loss=lambda outputs, targets: (outputs[:, 0] - targets) ** 2 / 2,
        weights=lambda targets: targets,
        train=Examples(inputs, targets),
    )
    expected = (inputs * targets[:, None]).T @ inputs / targets.sum()
    vector = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(ggn_matvec(problem)(vector), expected @ vector)


def test_batches_are_weighted_by_themselves():
    """Batch sharpness of batches of two, over all that the generator draws."""
    problem = language_problem(8)
    objective = Objective(problem)
    found = batch_sharpness(objective, batch_size=2, num_batches=6)
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(6):
        rows = torch.randperm(8, generator=generator)[:2]
        part = dataclasses.replace(
            problem, train=Examples(problem.train.inputs[rows], problem.train.targets[rows])
        )
        gradient = batch_gradient(problem, rows)
        ratios.append(float(gradient @ dense_hessian(part) @ gradient / gradient.square().sum()))
    assert found.value == pytest.approx(np.mean(ratios))


def test_b_noise_is_that_of_the_influences():
    problem = language_problem(60)
    mean, deviations = definitions(problem)
    hessian = dense_hessian(problem)
    noise = measure_noise(problem, hessian=True, hessian_examples=60, num_probes=30)
    trace = float((deviations @ hessian * deviations).sum(1).mean())
    curvature = noise.curvature
    assert curvature.gradient_curvature.value == pytest.approx(float(mean @ hessian @ mean))
    assert abs(curvature.covariance_trace.value - trace) < 4 * curvature.covariance_trace.stderr
    assert curvature.covariance_trace.stderr < abs(trace)


def test_weights_that_are_none_are_refused():
    problem = language_problem()

    def weighed(weights):
        return dataclasses.replace(problem, weights=weights)

    cases = [
        (lambda labels: labels * 0.0, r"give shape \(.*, 6\) for"),
        (lambda labels: 1, "give an int for"),
        (lambda labels: labels["mask"], "fail on targets of shape"),
        (lambda labels: count(labels) * 0, "are zero for all of 24 examples"),
        (lambda labels: -count(labels), "below zero or not finite"),
    ]
    for weights, message in cases:
        with pytest.raises(SettingError, match=message):
            measure_noise(weighed(weights))
    with pytest.raises(SettingError, match="its weights must be a function of the targets"):
        weighed(3)


def test_equal_weights_change_nothing():
    problem = language_problem()
    plain = dataclasses.replace(problem, weights=None)
    alike = dataclasses.replace(problem, weights=lambda labels: torch.full((len(labels),), 3))
    one, other = (measure_noise(each, per_layer=True) for each in (plain, alike))
    for name in ("squared_gradient_norm", "gradient_variance", "simple", "loss"):
        assert getattr(other, name).value == pytest.approx(getattr(one, name).value)


def test_examples_without_weight_leave_no_group_class_or_batch_undefined():
    """What they leave is measured as if they were not there."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    targets = torch.arange(60) % 3
    weights = (targets != 2).double()
    weights[:20] = 0.0
    numbered = torch.stack([targets.double(), weights], 1)  # the weight goes with the target
    problem = Problem(
        model=torch.nn.Linear(3, 2).double(),
        loss=lambda outputs, pairs: torch.nn.functional.cross_entropy(
            outputs, pairs[:, 0].long().clamp(max=1), reduction="none"
        ),
        train=Examples(inputs, numbered),
        weights=lambda pairs: pairs[:, 1],
    )
    part = measure_sharpness(problem, options=SharpnessOptions(num_examples=40, batch_size=2))
    assert part.largest.value.stderr > 0
    assert part.batch_sharpness.value > 0
    classes = dataclasses.replace(
        problem,
        train=Examples(inputs, targets),
        loss=lambda outputs, classes: torch.nn.functional.cross_entropy(
            outputs, classes.clamp(max=1), reduction="none"
        ),
        weights=lambda classes: (classes != 2).double(),
    )
    noise = measure_noise(classes, per_class=True)
    assert noise.per_class["class"].tolist() == [0, 1]
    assert "classes with fewer than 2 examples or no weight are left out: 2" in noise.notes
