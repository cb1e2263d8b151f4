"""Ghost batch norm against a loop of torch's own batch norm over the parts of the batch."""

import copy

import pytest
import torch
from torch import nn

from noisescale import ProblemConfig, TrainConfig, build_problem, train
from noisescale.errors import SettingError
from noisescale.measure.gradients.moments import gradient_moments
from noisescale.problems.models import GhostBatchNorm, cnn, mlp
from noisescale.training.trainer import Training

SHAPES = {"vectors": ((), nn.BatchNorm1d), "images": ((5, 4), nn.BatchNorm2d)}


def pair(of_torch, ghost_size, seed=0):
    """Ours and torch's with the same weights, float64."""
    generator = torch.Generator().manual_seed(seed)
    theirs = of_torch(3).double()
    with torch.no_grad():
        for tensor in (*theirs.parameters(), theirs.running_mean, theirs.running_var):
            tensor.copy_(torch.rand(3, generator=generator, dtype=torch.float64) + 0.5)
    ours = GhostBatchNorm(3, ghost_size).double()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("batch", "ghost_size"), [(12, 4), (12, 12), (11, 4), (6, 8), (10, 2)])
def test_outputs_gradients_and_running_statistics_are_a_loop_over_parts(shape, batch, ghost_size):
    beyond, of_torch = SHAPES[shape]
    ours, theirs = pair(of_torch, ghost_size)
    torch.manual_seed(1)
    inputs = torch.randn(batch, 3, *beyond, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(batch, 3, *beyond, dtype=torch.float64)
    mirror = inputs.detach().clone().requires_grad_()
    found = ours(inputs)
    expected = torch.cat([theirs(part) for part in mirror.split(ghost_size)])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(inputs.grad, mirror.grad, rtol=1e-10, atol=1e-12)
    for name, param in theirs.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, param.grad, rtol=1e-10, atol=0)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-12, atol=0)


def test_in_evaluation_mode_it_is_batch_norm_by_the_running_statistics():
    ours, theirs = pair(nn.BatchNorm1d, 4)
    inputs = torch.randn(7, 3, dtype=torch.float64)
    before = ours.running_mean.clone()
    torch.testing.assert_close(ours.eval()(inputs), theirs.eval()(inputs))
    assert torch.equal(ours.running_mean, before)


def test_no_example_touches_those_of_another_part():
    model = mlp((1, 8, 8), 3, width=6, norm="ghost", ghost_size=4)
    inputs = torch.randn(8, 1, 8, 8)
    moved = inputs.clone()
    moved[5] += 1
    assert torch.equal(model(inputs)[:4], model(moved)[:4])
    assert not torch.allclose(model(inputs)[4], model(moved)[4])


@pytest.mark.parametrize("make", [mlp, cnn])
def test_the_models_have_one_before_each_activation(make):
    model = make((1, 8, 8), 3, width=6, norm="ghost", ghost_size=4)
    assert [layer.ghost_size for layer in model if isinstance(layer, GhostBatchNorm)] == [4, 4]
    with pytest.raises(SettingError, match="norm ghost without a ghost size"):
        make((1, 8, 8), 3, norm="ghost")


def test_training_is_the_plain_loop():
    """Over batches of 25 of 100, in parts of 10, 10 and 5."""
    config = ProblemConfig(dataset="digits", num_train=100, width=8, norm="ghost", ghost_size=10)
    problem = build_problem(config)
    plain = copy.deepcopy(problem.model)
    for place, layer in enumerate(plain):
        if isinstance(layer, GhostBatchNorm):
            plain[place] = nn.BatchNorm1d(8)
            plain[place].load_state_dict(layer.state_dict())

    def parts(model, inputs):
        for layer in model:
            by_parts = isinstance(layer, nn.BatchNorm1d)
            inputs = torch.cat([layer(x) for x in inputs.split(10)]) if by_parts else layer(inputs)
        return inputs

    training = Training(problem, TrainConfig(batch_size=25, epochs=1, learning_rate=0.1))
    batches = copy.deepcopy(training.batches)
    for _ in training:
        pass
    for _ in range(4):
        indices = batches.take(25)
        examples = problem.train.subset(indices)
        loss = problem.loss(parts(plain, examples.inputs), examples.targets).mean()
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for param, gradient in zip(plain.parameters(), gradients, strict=True):
                param.sub_(0.1 * gradient)
    expected = plain.state_dict()
    for name, value in training.model.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_measurements_take_it_as_batch_norm():
    problem = build_problem(
        ProblemConfig(dataset="digits", num_train=40, width=4, norm="ghost", ghost_size=4)
    )
    problem.model.train()
    with pytest.raises(SettingError, match=r"GhostBatchNorm\) normalises over the batch"):
        gradient_moments(problem)
    problem.model.eval()
    found = gradient_moments(problem).mean  # float64
    problem.loss(problem.model(problem.train.inputs), problem.train.targets).mean().backward()
    for name, param in problem.model.named_parameters():
        torch.testing.assert_close(found[name].float(), param.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("num_train", "batch_size", "message"),
    [(100, 33, "leave a batch.* of one"), (96, 25, "a part .ghost size 4. of one")],
)
def test_a_part_of_one_example_is_refused_before_training(num_train, batch_size, message):
    problem = build_problem(
        ProblemConfig(dataset="digits", num_train=num_train, width=4, norm="ghost", ghost_size=4)
    )
    with pytest.raises(SettingError, match=message):
        next(iter(train(problem, TrainConfig(batch_size=batch_size))))


def test_a_part_of_one_example_in_a_loop_of_ones_own_is_one_message():
    with pytest.raises(SettingError, match="a part of one example"):
        GhostBatchNorm(3, 4)(torch.randn(9, 3))
    with pytest.raises(SettingError, match=r"inputs of shape \(9,\)"):
        GhostBatchNorm(3, 4)(torch.randn(9))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "ghost"}, "norm ghost without a ghost size"),
        ({"norm": "batch", "ghost_size": 4}, "ghost size 4 with norm batch"),
        ({"norm": "ghost", "ghost_size": 1}, "one example has no variance"),
        ({"norm": "ghost", "ghost_size": 0}, "ghost size 0: give a whole number of 1 or more"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(SettingError, match=message):
        ProblemConfig(**fields)
