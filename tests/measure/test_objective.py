"""The mean loss as a function of one vector: values, chunks, memory, and what it refuses."""

import copy
import gc

import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.objective import CHUNK_BYTES, Objective
from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem
from tests.helpers.problems import classification, regression


def dense_gradient(problem, theta):
    """XᵀXθ/N − Xᵀy/N of a linear regression."""
    inputs, targets = problem.train
    return inputs.T @ (inputs @ theta - targets) / len(targets)


@pytest.mark.parametrize("chunk_size", [1, 7, 30, 1000, None])
def test_value_and_gradient_are_those_of_the_mean_whatever_the_chunks(chunk_size):
    problem = regression().problem
    theta = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    value, gradient = Objective(problem, chunk_size=chunk_size).value_and_gradient(theta)
    inputs, targets = problem.train
    assert value == pytest.approx(
        0.5 * (inputs @ theta - targets).square().mean().item(), rel=1e-12
    )
    torch.testing.assert_close(gradient, dense_gradient(problem, theta), rtol=1e-12, atol=1e-14)


def test_the_model_is_only_read():
    problem = classification(
        nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    )
    problem.model.train()
    before = copy.deepcopy(problem.model.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Objective(problem).value_and_gradient()
    assert torch.equal(torch.rand(1), expected)
    assert problem.model.training
    assert all(param.grad is None for param in problem.model.parameters())
    for name, tensor in problem.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_batch_norm_uses_its_running_statistics():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    problem = classification(model)
    model(problem.train.inputs)  # moves the running statistics
    value, _ = Objective(problem, chunk_size=3).value_and_gradient()
    model.eval()
    assert value == pytest.approx(
        problem.loss(model(problem.train.inputs), problem.train.targets).mean().item()
    )


def test_frozen_parameters_are_constants_and_tied_ones_count_once():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[2].weight = model[0].weight
    model[4].weight.requires_grad_(False)
    objective = Objective(classification(model))
    assert objective.dim == 36 + 6 + 6 + 3
    value, gradient = objective.value_and_gradient()
    loss = objective.losses(model(objective.examples.inputs), objective.examples.targets).mean()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    assert value == pytest.approx(loss.item())
    torch.testing.assert_close(gradient, expected)


def test_float64_can_be_asked_of_a_float32_problem():
    problem = classification()
    single = Problem(
        model=copy.deepcopy(problem.model).float(),
        loss=problem.loss,
        train=Examples(problem.train.inputs.float(), problem.train.targets),
    )
    value, gradient = Objective(single, dtype=torch.float64).value_and_gradient()
    assert gradient.dtype == torch.float64
    rounded = {name: param.detach().double() for name, param in single.model.named_parameters()}
    double = Problem(
        model=problem.model,
        loss=problem.loss,
        train=Examples(single.train.inputs.double(), problem.train.targets),
    )
    assert value == pytest.approx(Objective(double, rounded).value_and_gradient()[0], rel=1e-14)


def test_the_chunk_follows_the_memory_an_example_takes():
    wide = classification(nn.Sequential(nn.Linear(6, 20_000), nn.Tanh(), nn.Linear(20_000, 3)))
    objective = Objective(wide)
    # activations and their gradients, each 20,000 numbers of 8 bytes
    assert 2 * 160_000 <= objective.bytes_per_example <= 8 * 160_000
    assert objective.chunk_size == CHUNK_BYTES // objective.bytes_per_example


def test_measuring_memory_keeps_none_of_it():
    """What an operation saves of its own output through a hook would hold itself for ever."""

    def num_tensors():
        gc.collect()
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    problem = classification()
    Objective(problem)  # what torch makes once
    before = num_tensors()
    for _ in range(3):
        assert Objective(problem).bytes_per_example > 0
    assert num_tensors() == before


class Hungry(nn.Linear):
    """A layer whose memory holds four examples."""

    def forward(self, inputs):
        if len(inputs) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return super().forward(inputs)


def test_out_of_memory_makes_the_chunks_smaller_for_good():
    problem = classification(Hungry(6, 3))
    objective = Objective(problem, chunk_size=50)
    value, gradient = objective.value_and_gradient()
    assert objective.chunk_size == 3  # 50, 25, 12, 6, 3
    plain = Objective(classification(nn.Linear(6, 3)), dict(problem.model.named_parameters()))
    assert value == pytest.approx(plain.value_and_gradient()[0], rel=1e-12)
    torch.testing.assert_close(gradient, plain.value_and_gradient()[1])


def test_memory_for_less_than_one_example_is_an_error():
    class Starving(nn.Linear):
        def forward(self, inputs):
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."
            )

    with pytest.raises(MeasurementError, match="does not hold a single example"):
        Objective(classification(Starving(6, 3)), chunk_size=50).value_and_gradient()


def test_other_failures_of_the_model_are_not_mistaken_for_memory():
    class Broken(nn.Linear):
        def forward(self, inputs):
            raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        Objective(classification(Broken(6, 3)), chunk_size=50).value_and_gradient()


def test_what_cannot_be_measured_is_refused_with_its_reason():
    problem = classification()
    params = {name: param.detach().clone() for name, param in problem.model.named_parameters()}
    broken = params | {"2.bias": torch.full((3,), torch.nan)}
    with pytest.raises(MeasurementError, match=r"parameters 2\.bias are not finite"):
        Objective(problem, broken)
    with pytest.raises(SettingError, match=r"2\.bias \(4,\) instead of \(3,\)"):
        Objective(problem, params | {"2.bias": torch.zeros(4)})
    with pytest.raises(SettingError, match="do not fit the model: other"):
        Objective(problem, params | {"other": torch.zeros(4)})
    with pytest.raises(SettingError, match="chunk size 0"):
        Objective(problem, chunk_size=0)
    frozen = classification(nn.Linear(6, 3).requires_grad_(False))
    with pytest.raises(SettingError, match="no parameter that requires a gradient"):
        Objective(frozen)

    def mean(outputs, targets):
        return cross_entropy(outputs, targets).mean()

    with pytest.raises(
        MeasurementError, match=r"with the loss mean gives shape \(\).*reduction=\"none\""
    ):
        Objective(Problem(model=problem.model, loss=mean, train=problem.train)).value_and_gradient()
