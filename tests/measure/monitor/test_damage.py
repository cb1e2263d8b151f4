"""Updates that are broken off, states of something else, and gradients of every kind."""

import copy
import math

import pytest
import torch
from torch import nn

from noisescale.errors import SettingError
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.statistics.running_noise import RunningNoise, two_batch
from tests.helpers.closed_forms import regression

BROKEN_OFF = pytest.mark.filterwarnings("ignore:an update was broken off:UserWarning")


def accumulate(monitor, model, inputs, targets, *parts):
    """Micro-batches of rows, added to what the gradient holds."""
    for part in parts:
        losses = 0.5 * (model(inputs[part])[:, 0] - targets[part]) ** 2
        (losses.mean() / 2).backward()
        monitor.micro_batch(len(losses))


def values_of(monitor):
    noise = monitor.noise()
    return noise.squared_gradient_norm.value, noise.gradient_variance.value


@pytest.mark.parametrize("pending", [1, 2, 3])
def test_a_batch_that_is_tried_again_begins_a_new_update(pending):
    """As after an out-of-memory error: what was pending would count for too much of the update."""
    model, inputs, targets, _ = regression()
    plain, retried = NoiseScaleMonitor(model), NoiseScaleMonitor(model)
    first, second = slice(0, 2), slice(2, 4)
    accumulate(plain, model, inputs, targets, first, second)
    plain.update()
    model.zero_grad()
    accumulate(retried, model, inputs, targets, *[slice(3, 5)] * pending)
    model.zero_grad()  # to None
    with pytest.warns(UserWarning, match="an update was broken off"):
        accumulate(retried, model, inputs, targets, first)
    accumulate(retried, model, inputs, targets, second)
    assert retried.pending == (2, 2)
    assert retried.update()
    assert values_of(retried) == values_of(plain)
    assert (retried.num_updates, retried.num_skipped) == (1, 1)
    model.zero_grad()  # and once more, without a word
    accumulate(retried, model, inputs, targets, first)
    model.zero_grad()
    accumulate(retried, model, inputs, targets, first, second)
    assert retried.update()


@BROKEN_OFF
def test_a_batch_given_up_in_the_middle_of_a_backward_pass():
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, gradient):
            raise torch.OutOfMemoryError

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    monitor, plain = NoiseScaleMonitor(model), NoiseScaleMonitor(model)
    for part in x.split(2):
        (model(part).square().mean() / 2).backward()
        plain.micro_batch(2)
    plain.update()
    model.zero_grad()
    (model(x[:2]).square().mean() / 2).backward()
    monitor.micro_batch(2)
    with pytest.raises(torch.OutOfMemoryError):
        model[1](Failing.apply(model[0](x[2:]))).square().mean().backward()
    model.zero_grad()
    for part in x.split(2):
        (model(part).square().mean() / 2).backward()
        monitor.micro_batch(2)
    assert monitor.update()
    assert values_of(monitor) == values_of(plain)


@BROKEN_OFF
@pytest.mark.parametrize("change", ["freeze", "unfreeze", "zero one"])
def test_a_model_that_changes_within_an_update_is_left_out(change):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    model[0].bias.requires_grad_(change != "unfreeze")
    monitor = NoiseScaleMonitor(model)
    for number in range(2):
        model(torch.randn(2, 3)).mean().backward()
        monitor.micro_batch(2)
        if number == 0:
            if change == "zero one":
                model[1].zero_grad()
            else:
                model[0].bias.requires_grad_(change == "unfreeze")
    assert not monitor.update()
    model.zero_grad()
    for _ in range(2):  # and the next update is a clean one
        model(torch.randn(2, 3)).mean().backward()
        monitor.micro_batch(2)
    assert monitor.update()
    assert (monitor.num_updates, monitor.num_skipped) == (1, 1)


@pytest.mark.parametrize("change", ["replace", "add", "remove"])
def test_a_model_of_other_parameters_needs_another_monitor(change):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    monitor = NoiseScaleMonitor(model)

    def train():
        model.zero_grad()
        for _ in range(2):
            (model(torch.randn(2, 3)).square().mean() / 2).backward()
            monitor.micro_batch(2)
        return monitor.update()

    assert train()
    if change == "replace":
        model[1] = nn.Linear(4, 4)
    elif change == "add":
        model.append(nn.Linear(4, 4))
    else:
        del model[1]
    with pytest.raises(SettingError, match="make a new monitor"):
        train()
    averages = monitor.state_dict()
    monitor = NoiseScaleMonitor(model)
    monitor.load_state_dict(averages)
    assert train()
    assert monitor.num_updates == 2


def test_a_frozen_parameters_old_gradient_does_not_count_and_an_unfrozen_ones_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1)).double()
    model[1].bias.requires_grad_(False)
    monitor = NoiseScaleMonitor(model, memory=1e9)
    x = torch.randn(4, 3, dtype=torch.float64)
    model(x).sum().backward()  # a gradient to be left behind
    model[0].requires_grad_(False)
    model[1].requires_grad_(True)
    model[1].zero_grad()
    sums = []
    for part in x.split(2):
        (model(part).square().mean() / 2).backward()
        monitor.micro_batch(2)
        sums.append(sum(float(p.grad.square().sum()) for p in model[1].parameters()))
    monitor.update()
    expected = two_batch(4 * sums[0], 2, sums[1], 4)
    assert values_of(monitor) == pytest.approx(expected, rel=1e-12)


class Experts(nn.Module):
    """Which of two experts sees a micro-batch depends on it."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Linear(3, 1, bias=False, dtype=torch.float64) for _ in range(2)
        )

    def forward(self, x, which):
        return self.experts[which](x)


@pytest.mark.parametrize("order", [(0, 1, 1), (0, 0, 1), (1, 0, 0)])
def test_a_gradient_in_some_micro_batches_alone_is_zero_in_the_others(order):
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(6, 3, dtype=torch.float64)
    monitor = NoiseScaleMonitor(model)
    means = torch.zeros(3, 6, dtype=torch.float64)
    for number, (part, which) in enumerate(zip(x.split(2), order, strict=True)):
        (model(part, which).sum() / 2 / 3).backward()
        monitor.micro_batch(2)
        means[number, 3 * which : 3 * which + 3] = part.mean(0)
    assert monitor.update()
    whole = means.mean(0)
    expected = two_batch(float(means[0] @ means[0]), 2, float(whole @ whole), 6)
    assert values_of(monitor) == pytest.approx(expected, rel=1e-12)


def test_a_micro_batch_that_adds_nothing_is_no_break():
    model, x = Experts(), torch.ones(2, 3, dtype=torch.float64)
    monitor = NoiseScaleMonitor(model.experts[0])
    for which in (0, 1):
        (model(x, which).mean() / 2).backward()
        monitor.micro_batch(2)
    assert monitor.update()
    assert values_of(monitor) == pytest.approx(two_batch(3.0, 2, 0.75, 4))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_parameters_are_worth_their_two_real_ones(dtype):
    """Against the same function of real parameters; the gradient scaled, too."""
    torch.manual_seed(0)
    weight = torch.randn(5, 3, dtype=dtype)
    real = nn.Parameter(torch.view_as_real(weight).clone())
    whole = nn.Parameter(weight.clone())
    x = torch.randn(4, 5).to(weight.real.dtype)
    found = []
    for parameter, scale in ((whole, 1.0), (whole, 64.0), (real, 1.0)):
        monitor = NoiseScaleMonitor([parameter])
        parameter.grad = None
        for part in x.split(2):
            w = parameter if parameter is whole else torch.view_as_complex(parameter)
            (scale * (part.to(dtype) @ w).abs().square().sum(1).mean() / 2).backward()
            monitor.micro_batch(2, scale=scale)
        assert monitor.update()
        found.append(values_of(monitor))
    assert found[0] == pytest.approx(found[2], rel=1e-5)
    assert found[1] == pytest.approx(found[2], rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_sparse_gradients_alone_may_be_scaled(scale):
    """No copy of one is taken, of which torch can compare no two."""
    dense = nn.Embedding(10, 4, dtype=torch.float64)
    sparse = nn.Embedding(10, 4, sparse=True, dtype=torch.float64)
    sparse.load_state_dict(dense.state_dict())
    found = []
    for model in (dense, sparse):
        monitor = NoiseScaleMonitor(model)
        for words in (torch.tensor([1, 1]), torch.tensor([3, 1])):
            (scale * model(words).square().sum(1).mean() / 2).backward()
            monitor.micro_batch(2, scale=scale)
        assert monitor.update()
        found.append(values_of(monitor))
    assert found[0] == pytest.approx(found[1], rel=1e-12)


FOREIGN = [
    {},
    {"weight": torch.ones(2)},
    nn.Linear(2, 2).state_dict(),
    torch.optim.SGD([torch.ones(1)], lr=0.1).state_dict(),
    {"running": 3, "num_skipped": 0},
    {"running": {"memory": None}, "num_skipped": 0},
    {"running": RunningNoise().state_dict() | {"sums": [1.0]}, "num_skipped": 0},
    {"running": RunningNoise().state_dict() | {"memory": -1}, "num_skipped": 0},
    {"running": RunningNoise().state_dict() | {"weight": "much"}, "num_skipped": 0},
    {"running": RunningNoise().state_dict(), "num_skipped": "few"},
    {"running": RunningNoise().state_dict(), "groups": [1]},
    [1, 2],
    None,
]


@pytest.mark.parametrize("state", FOREIGN, ids=range(len(FOREIGN)))
def test_the_state_of_something_else_is_refused_and_changes_nothing(state):
    model, inputs, targets, _ = regression()
    monitor = NoiseScaleMonitor(model)
    accumulate(monitor, model, inputs, targets, slice(0, 2), slice(2, 4))
    monitor.update()
    before = copy.deepcopy(monitor.state_dict())
    with pytest.raises(SettingError, match="give"):
        monitor.load_state_dict(state)
    assert monitor.state_dict() == before
    assert math.isfinite(monitor.noise().gradient_variance.value)
