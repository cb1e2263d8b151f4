"""Small networks of each kind in float64, and the gradients of their examples by plain loops."""

import torch

from noisescale import Examples, Problem, ProblemConfig, build_problem, mlp
from noisescale.problems.models import cnn, cross_entropy
from tests.helpers.datasets import single_gradients


def network(kind):
    torch.manual_seed(0)
    if kind == "gpt":
        config = ProblemConfig(
            dataset="markov", model="gpt", width=8, depth=1, heads=2, context=6, num_train=40
        )
        problem = build_problem(config)
        problem.model.double()
        return problem
    make = {"mlp": mlp, "cnn": cnn}[kind]
    model = make((1, 8, 8), 5, width=6, norm="layer").double()
    examples = Examples(torch.randn(40, 1, 8, 8, dtype=torch.float64), torch.randint(0, 5, (40,)))
    return Problem(model=model, loss=cross_entropy, train=examples)


def gradients_of(problem, indices):
    losses = (
        problem.loss(problem.model(example.inputs), example.targets)[0]
        for example in (problem.train.part(slice(index, index + 1)) for index in indices)
    )
    return single_gradients(problem.model, losses)
