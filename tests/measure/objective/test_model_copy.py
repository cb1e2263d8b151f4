"""Copies of models that note things, hook into themselves, or are held together by closures."""

import pytest
import torch
from torch import nn

from noisescale.measure.curvature.products import hessian_matvec
from noisescale.measure.gradients.moments import gradient_moments
from noisescale.measure.objective import Objective
from tests.helpers.dense import dense_hessian, matrix_of
from tests.helpers.problems import classification


class Noting(nn.Module):
    """Counts its calls, keeps activations in a list and a dict, and one as an attribute."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.calls, self.kept, self.by_name, self.latest = 0, [], {}, None

    def forward(self, inputs):
        self.count += 1
        self.calls += 1
        self.latest = torch.tanh(self.first(inputs))
        self.kept.append(self.latest)
        self.by_name["latest"] = self.latest
        return self.last(self.kept[-1])


class ComputedOnce(nn.Module):
    """Makes a weight of its parameter at the first call and keeps it."""

    def __init__(self):
        super().__init__()
        self.raw, self.weight = nn.Parameter(torch.randn(3, 6)), None

    def forward(self, inputs):
        if self.weight is None:
            self.weight = torch.softmax(self.raw, 1)
        return inputs @ self.weight.T


class HookedIntoItself(nn.Module):
    """Takes a layer's output from a hook that is a closure over the model."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.outputs = {}

        def note(module, inputs, output, *, name="first"):
            self.outputs[name] = torch.tanh(output)

        self.first.register_forward_hook(note)

    def forward(self, inputs):
        self.first(inputs)
        return self.last(self.outputs["first"])


class Patched(nn.Module):
    """Runs by a function in an attribute, a closure over the model."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 3)
        self.forward = lambda inputs: self.last(torch.tanh(self.first(inputs)))


@pytest.fixture(params=[Noting, ComputedOnce, HookedIntoItself, Patched])
def problem(request):
    return classification(request.param(), num_examples=9)


def fresh(problem):
    """Another model with the same parameters, which has noted nothing."""
    model = type(problem.model)().double()
    model.load_state_dict(problem.model.state_dict())
    return model


@pytest.mark.parametrize("has_run", [False, True])
def test_gradients_and_curvature_are_those_of_a_fresh_model(problem, has_run):
    if has_run and not isinstance(problem.model, ComputedOnce):
        problem.model(problem.train.inputs)
    inputs, targets = problem.train
    expected = dense_hessian(
        fresh(problem), lambda model: problem.loss(model(inputs), targets).mean()
    )
    found = matrix_of(hessian_matvec(problem))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    for engine in ("auto", "vmap", "loop"):
        moments = gradient_moments(problem, engine=engine)
        for row in range(len(targets)):
            model = fresh(problem)
            loss = problem.loss(model(inputs[row : row + 1]), targets[row : row + 1]).sum()
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            norms = [part.square().sum().item() for part in gradients]
            assert moments.squared_norms[row] == pytest.approx(norms, rel=1e-9)


def test_what_a_model_notes_stays_out_of_it_and_of_its_copies():
    problem = classification(Noting(), num_examples=9)
    objective = Objective(problem)
    first, second = objective.value_and_gradient(), objective.value_and_gradient()
    assert first[0] == second[0]
    for model in (problem.model, objective.model):
        assert model.calls == 0
        assert model.kept == []
        assert model.by_name == {}
        assert model.latest is None
