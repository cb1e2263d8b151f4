"""The in-place update against torch.optim.SGD on stored gradients."""

import copy

import pytest
import torch
from torch import nn

from noisescale.problems.models import cnn, cross_entropy, mlp
from noisescale.training.updates.in_place.in_place_sgd import InPlaceSGD, covered_parameters


class Tied(nn.Module):
    """Uses one weight twice."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.head(self.layer(self.layer(inputs)))


class Sequence(nn.Module):
    """Linear layers over (B, T, F), pooled."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 5), nn.Linear(5, 3, bias=False)

    def forward(self, inputs):
        return self.head(self.layer(inputs).tanh().mean(1))


MODELS = {
    "mlp": (lambda: mlp((6,), 3, width=8), (6,)),
    "mlp with layer norm": (lambda: mlp((6,), 3, width=8, norm="layer"), (6,)),
    "mlp with batch norm": (lambda: mlp((6,), 3, width=8, norm="batch"), (6,)),
    "mlp with ghost norm": (lambda: mlp((6,), 3, width=8, norm="ghost", ghost_size=3), (6,)),
    "cnn": (lambda: cnn((1, 8, 8), 3, width=2), (1, 8, 8)),
    "sequence": (Sequence, (4, 6)),
    "tied": (Tied, (6,)),
}


def step(model, mode, optimizer, inputs, targets):
    with mode:
        outputs = model(inputs)
    cross_entropy(outputs, targets).mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "batch_size"),
    # batch norm is undefined on one example
    [
        (name, size)
        for name in MODELS
        for size in (1, 8)
        if size > 1 or name not in ("mlp with batch norm", "mlp with ghost norm")
    ],
)
def test_parameters_equal_those_of_sgd_on_stored_gradients(name, batch_size, weight_decay):
    make, shape = MODELS[name]
    plain = make().double()
    ours = copy.deepcopy(plain)
    inputs, targets = (
        torch.randn(batch_size, *shape, dtype=torch.float64),
        torch.randint(3, (batch_size,)),
    )
    trial = torch.randn(2, *shape, dtype=torch.float64)
    mode = InPlaceSGD(ours, trial, learning_rate=0.1, weight_decay=weight_decay)
    for model, context in ((plain, torch.enable_grad()), (ours, mode)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=weight_decay)
        for _ in range(5):
            step(model, context, optimizer, inputs, targets)
    for name, expected in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name), expected, rtol=1e-9, atol=1e-11)


def test_what_is_covered():
    def covered(model, shape):
        return covered_parameters(model, torch.randn(2, *shape))

    assert covered(mlp((6,), 3, width=8), (6,)) == {
        "1.weight",
        "1.bias",
        "3.weight",
        "3.bias",
        "5.weight",
        "5.bias",
    }
    assert covered(cnn((1, 8, 8), 3, width=2), (1, 8, 8)) == {"7.weight", "7.bias"}
    assert covered(Tied(), (6,)) == {"head.weight", "head.bias"}
    frozen = mlp((6,), 3, width=8)
    frozen[1].weight.requires_grad_(False)
    assert covered(frozen, (6,)) == {"3.weight", "3.bias", "5.weight", "5.bias"}


def test_no_gradient_of_a_covered_parameter_is_stored():
    model = mlp((6,), 3, width=8, norm="layer")
    mode = InPlaceSGD(model, torch.randn(2, 6), learning_rate=0.1)
    with mode:
        outputs = model(torch.randn(4, 6))
    outputs.sum().backward()
    for name, param in model.named_parameters():
        assert (param.grad is None) == (name in mode.covered)
    assert mode.covered
    assert not mode.covers_all


def test_the_trial_disturbs_nothing():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    InPlaceSGD(model, torch.randn(2, 6, generator=torch.Generator()), learning_rate=0.1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_weight_used_twice_after_all_is_an_error_and_never_a_wrong_gradient():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 6)
            self.twice = False

        def forward(self, inputs):
            return self.layer(self.layer(inputs)) if self.twice else self.layer(inputs)

    model = Sometimes()
    mode = InPlaceSGD(model, torch.randn(2, 6), learning_rate=0.1)
    model.twice = True
    with mode:
        outputs = model(torch.randn(4, 6))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        outputs.sum().backward()
