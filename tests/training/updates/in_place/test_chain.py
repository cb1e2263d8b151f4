"""Chains of layers, updated without autograd's graph, against autograd and torch.optim.SGD."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from noisescale.problems import models
from noisescale.problems.problem import Examples, Problem
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import Training
from noisescale.training.updates.in_place import compiled
from noisescale.training.updates.in_place.chain import ELEMENTWISE, Chain
from noisescale.training.updates.in_place.proved import PROVED_UPDATES

FEATURES, CLASSES, NUM_EXAMPLES = 6, 3, 30


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    """All batches are above those that compiled code is for, see test_compiled.py."""
    monkeypatch.setattr(compiled, "MOST_EXAMPLES", 0)


def linear(*, inputs=FEATURES, outputs=5, bias=True):
    return nn.Linear(inputs, outputs, bias=bias)


def head(*, inputs=5):
    return nn.Linear(inputs, CLASSES)


def frozen(*layers):
    for layer in layers:
        layer.requires_grad_(False)
    return layers


CHAINS = {
    "a lone layer": lambda: nn.Linear(FEATURES, CLASSES),
    "a sequential of one": lambda: nn.Sequential(nn.Linear(FEATURES, CLASSES)),
    "no bias": lambda: nn.Sequential(linear(bias=False), nn.ReLU(), head()),
    "one in another": lambda: nn.Sequential(
        nn.Sequential(linear(), nn.Tanh(), nn.Sequential()), nn.Sequential(head())
    ),
    "the lowest frozen": lambda: nn.Sequential(
        *frozen(linear()), nn.ReLU(), linear(inputs=5), head()
    ),
    "one between frozen": lambda: nn.Sequential(
        linear(), *frozen(linear(inputs=5)), nn.ReLU(), head()
    ),
    "the highest frozen": lambda: nn.Sequential(linear(), nn.ReLU(), *frozen(head())),
    "exact GELU and its tanh form": lambda: nn.Sequential(
        linear(), nn.GELU(), linear(inputs=5), nn.GELU(approximate="tanh"), head()
    ),
    "in place": lambda: nn.Sequential(nn.Flatten(), linear(), nn.ReLU(inplace=True), head()),
    **{
        layer.__name__: lambda layer=layer: nn.Sequential(linear(), layer(), head())
        for layer in ELEMENTWISE
    },
}
NO_CHAINS = {
    "dropout": lambda: nn.Sequential(linear(), nn.Dropout(), head()),
    "a module of one's own": lambda: nn.Sequential(linear(), type("Own", (nn.ReLU,), {})(), head()),
    "a layer twice": lambda: nn.Sequential(*[linear(outputs=FEATURES)] * 2, nn.Linear(FEATURES, 3)),
    "a weight of two layers": lambda: tied(),
    "a frozen bias": lambda: nn.Sequential(with_frozen_bias(), head()),
    "a parametrisation": lambda: nn.Sequential(parametrizations.weight_norm(linear()), head()),
    "a forward pass of its own": lambda: with_own_forward(),
    "nothing to train": lambda: nn.Sequential(*frozen(linear(), head())),
    "a hook": lambda: hooked(nn.Sequential(linear(), head()), "register_forward_hook"),
}


def tied():
    model = nn.Sequential(nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES))
    model[1].weight = model[0].weight
    return model


def with_frozen_bias():
    layer = linear()
    layer.bias.requires_grad_(False)
    return layer


def with_own_forward():
    model = nn.Sequential(linear(), head())
    model[0].forward = lambda inputs: F.linear(inputs, model[0].weight) * 2
    return model


def hooked(model, register, *, calls=None):
    calls = [] if calls is None else calls
    getattr(model[-1], register)(lambda *args: calls.append(register))
    return model


def cross_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def hooked_loss():
    loss = nn.CrossEntropyLoss(reduction="none")
    loss.register_forward_hook(lambda *args: None)
    return loss


class UnhashableLoss:
    __hash__ = None

    def __call__(self, outputs, targets):
        return cross_entropy(outputs, targets)


def problem_of(make, *, shape=(FEATURES,), loss=cross_entropy):
    torch.manual_seed(0)
    inputs = torch.randn(NUM_EXAMPLES, *shape, dtype=torch.float64)
    targets = torch.randint(CLASSES, (NUM_EXAMPLES,))
    return Problem(model=make().double(), loss=loss, train=Examples(inputs, targets))


def by_autograd(problem, config, *, alter=None):
    """The model after plain training with stored gradients, altered after six updates."""
    model = copy.deepcopy(problem.model)
    order = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    step = 0
    for _ in range(config.epochs):
        for batch in torch.randperm(NUM_EXAMPLES, generator=order).split(config.batch_size):
            optimizer.zero_grad()
            outputs = model(problem.train.inputs[batch])
            problem.loss(outputs, problem.train.targets[batch]).mean().backward()
            optimizer.step()
            step += 1
            if alter is not None and step == 6:
                alter(model)
    return model


def assert_same(model, expected):
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("batch_size", "weight_decay"), [(1, 0.0), (4, 0.0), (1, 0.1), (4, 0.1)])
@pytest.mark.parametrize("kind", CHAINS)
def test_a_chain_is_trained_as_by_autograd(kind, batch_size, weight_decay, monkeypatch):
    problem = problem_of(CHAINS[kind])
    config = TrainConfig(
        batch_size=batch_size, learning_rate=0.1, weight_decay=weight_decay, epochs=2, seed=3
    )
    expected = by_autograd(problem, config)
    training = Training(problem, config)
    steps = iter(training)
    for _ in range(PROVED_UPDATES):
        next(steps)
    # from here on neither the model runs nor a gradient is stored
    monkeypatch.setattr(nn.Linear, "forward", lambda *args: pytest.fail("the model was run"))
    monkeypatch.setattr(torch.optim.SGD, "step", lambda *args: pytest.fail("a gradient was stored"))
    assert len(list(steps)) == training.step - PROVED_UPDATES
    assert_same(training.model, expected)
    assert training.notes == ()


def test_examples_may_have_several_dimensions():
    def loss(outputs, targets):
        return cross_entropy(outputs.mean(1), targets)

    def make():
        return nn.Sequential(linear(), nn.Tanh(), head())

    problem = problem_of(make, shape=(4, FEATURES), loss=loss)
    for batch_size in (1, 4):
        config = TrainConfig(batch_size=batch_size, learning_rate=0.1, epochs=2, seed=3)
        training = Training(problem, config)
        list(training)
        assert_same(training.model, by_autograd(problem, config))


def test_a_loss_that_does_not_depend_on_the_outputs_changes_nothing():
    problem = problem_of(
        CHAINS["ReLU"], loss=lambda outputs, targets: 0 * outputs.detach().sum(1) + targets
    )
    chain = Chain.of(problem.model)
    before = copy.deepcopy(problem.model)
    chain(problem.train.inputs)
    chain.descend(chain.gradient, 0.1, 0.1)
    assert_same(problem.model, before)


@pytest.mark.parametrize("weights", [None, lambda targets: 1.0 + targets])
@pytest.mark.parametrize(
    "loss",
    [models.cross_entropy, models.squared_error, nn.CrossEntropyLoss(reduction="none")],
    ids=["cross-entropy", "squared error", "torch's module"],
)
def test_of_a_known_loss_no_graph_is_made(loss, weights, monkeypatch):
    problem = replace(problem_of(CHAINS["ReLU"], loss=loss), weights=weights)
    config = TrainConfig(batch_size=4, learning_rate=0.1, weight_decay=0.1, epochs=2, seed=3)
    plain = Training(replace(problem, loss=lambda *args: loss(*args)), config)
    training = Training(problem, config)
    steps = iter(training)
    for _ in range(PROVED_UPDATES):
        next(steps)
    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "backward", lambda *args: pytest.fail("a graph was made"))
        assert len(list(steps)) == training.step - PROVED_UPDATES
    for _ in plain:
        pass
    for name, value in plain.model.state_dict().items():  # bit for bit
        assert torch.equal(training.model.state_dict()[name], value)
    assert [row.loss for row in training.losses.rows] == [row.loss for row in plain.losses.rows]


@pytest.mark.parametrize("loss", [models.cross_entropy, models.squared_error])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_known_gradient_is_that_of_autograd_bit_for_bit(loss, dtype):
    torch.manual_seed(0)
    outputs = (5 * torch.randn(7, 10)).to(dtype).requires_grad_()
    targets, weights = torch.randint(10, (7,)), torch.rand(7).to(dtype)
    losses, gradient = models.gradient_of(loss)(outputs.detach(), targets, weights)
    expected = loss(outputs, targets)
    (expected * weights).sum().backward()
    assert torch.equal(losses, expected.detach())
    assert torch.equal(gradient, outputs.grad)


OTHER_LOSSES = {
    "the user's own, whatever it does": cross_entropy,
    "of the mean": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1),
    "a class left out": nn.CrossEntropyLoss(reduction="none", ignore_index=0),
    "weighted": nn.CrossEntropyLoss(reduction="none", weight=torch.ones(3)),
    "hooked": hooked_loss(),
    "a subclass": type("Own", (nn.CrossEntropyLoss,), {})(reduction="none"),
    "unhashable": UnhashableLoss(),
}


@pytest.mark.parametrize("name", OTHER_LOSSES)
def test_of_other_losses_no_gradient_is_known(name):
    assert models.gradient_of(OTHER_LOSSES[name]) is None


@pytest.mark.parametrize("kind", NO_CHAINS)
def test_what_is_no_chain(kind):
    assert Chain.of(NO_CHAINS[kind]()) is None


def append(model):
    model.append(nn.Tanh())


def freeze(model):
    model[0].requires_grad_(False)


def parametrise(model):
    parametrizations.weight_norm(model[0])


def exchange(model):
    model[1] = nn.Tanh()


def exchange_bias(model):
    """Not the optimizer's parameter any more."""
    model[2].bias = nn.Parameter(model[2].bias.detach() + 1)


def add_hook(model):
    model[2].bias.register_hook(lambda grad: 2 * grad)


ALTERATIONS = [append, freeze, parametrise, exchange, exchange_bias, add_hook]


@pytest.mark.parametrize("loss", [cross_entropy, models.cross_entropy])
@pytest.mark.parametrize("alter", ALTERATIONS)
def test_a_model_altered_under_way_is_run_as_it_has_become(alter, loss):
    problem = problem_of(CHAINS["ReLU"], loss=loss)
    config = TrainConfig(batch_size=4, learning_rate=0.1, epochs=2, seed=3)
    training = Training(problem, config)
    for step in training:
        if step == 6:
            alter(training.model)
    assert_same(training.model, by_autograd(problem, config, alter=alter))
    assert "its layers could not be run one by one" in training.notes[0]


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_set_under_way_are_called(register):
    problem = problem_of(CHAINS["ReLU"])
    config = TrainConfig(batch_size=4, learning_rate=0.1, epochs=2, seed=3)
    training, calls = Training(problem, config), []
    for step in training:
        if step == 6:
            hooked(training.model, register, calls=calls)
    assert calls == [register] * (training.step - 6)
    assert_same(training.model, by_autograd(problem, config))


def test_hooks_on_a_parameter_and_of_all_modules_are_called():
    problem = problem_of(CHAINS["ReLU"])
    config = TrainConfig(batch_size=4, learning_rate=0.1, epochs=2, seed=3)
    training, calls = Training(problem, config), []
    for step in training:
        if step == 6:
            handle = training.model[0].weight.register_hook(lambda grad: calls.append("weight"))
        if step == 8:
            handle.remove()
            handle = torch.nn.modules.module.register_module_forward_hook(
                lambda *args: calls.append("any")
            )
        if step == 9:
            handle.remove()
    assert calls == ["weight"] * 2 + ["any"] * 4  # three layers and the model
    assert_same(training.model, by_autograd(problem, config))


def test_autocast_around_a_run_is_left_to_torch():
    problem = problem_of(CHAINS["ReLU"])
    chain = Chain.of(problem.model.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert chain(problem.train.inputs.float()).dtype == torch.bfloat16
    assert not chain.ran
    assert chain(problem.train.inputs.float()).dtype == torch.float32
    assert chain.ran
