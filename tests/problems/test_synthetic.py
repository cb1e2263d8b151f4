"""The closed forms against gradients taken one example at a time."""

import pytest
import torch

from tests.helpers.problems import quadratic, regression

PROBLEMS = {"quadratic": quadratic, "regression": regression}
THETA = {"quadratic": [0.3, -0.2, 0.9], "regression": [0.1, 0.4, -0.3, 1.0]}


def per_example_gradients(problem, theta):
    (param,) = problem.model.parameters()
    with torch.no_grad():
        param.copy_(theta.reshape(param.shape))
    rows = []
    for inputs, targets in zip(
        problem.train.inputs.split(1), problem.train.targets.split(1), strict=True
    ):
        (gradient,) = torch.autograd.grad(problem.loss(problem.model(inputs), targets).sum(), param)
        rows.append(gradient.flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("name", PROBLEMS)
def test_dataset_moments_are_exact(name):
    synthetic = PROBLEMS[name]()
    theta = torch.tensor(THETA[name], dtype=torch.float64)
    moments = synthetic.moments(theta, "dataset")
    gradients = per_example_gradients(synthetic.problem, theta)
    torch.testing.assert_close(moments.gradient, gradients.mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(gradients.T, correction=0))

    def mean_loss(flat):
        (key,) = dict(synthetic.problem.model.named_parameters())
        params = {key: flat.reshape(synthetic.problem.model.get_parameter(key).shape)}
        outputs = torch.func.functional_call(
            synthetic.problem.model, params, synthetic.problem.train.inputs
        )
        return synthetic.problem.loss(outputs, synthetic.problem.train.targets).mean()

    torch.testing.assert_close(moments.hessian, torch.func.hessian(mean_loss)(theta))


@pytest.mark.parametrize("name", PROBLEMS)
def test_distribution_moments_are_the_limit_of_many_examples(name):
    num_examples = 4000
    synthetic = PROBLEMS[name](num_examples=num_examples)
    theta = torch.tensor(THETA[name], dtype=torch.float64)
    moments = synthetic.moments(theta, "distribution")
    gradients = per_example_gradients(synthetic.problem, theta)
    stderr = gradients.std(0) / num_examples**0.5
    assert ((gradients.mean(0) - moments.gradient).abs() < 4 * stderr).all()
    squared = (gradients - moments.gradient).square().sum(1)
    trace_stderr = squared.std() / num_examples**0.5
    assert (squared.mean() - moments.covariance.trace()).abs() < 4 * trace_stderr
    assert trace_stderr / moments.covariance.trace() < 0.05  # tight enough to tell a wrong formula
