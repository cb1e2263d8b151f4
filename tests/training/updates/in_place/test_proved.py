"""Training of models of every kind against the textbook loop, and what is said of them."""

import random
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from noisescale.errors import SettingError
from noisescale.problems.problem import Examples, Problem
from noisescale.training.config import AdaptiveConfig, TrainConfig
from noisescale.training.trainer import Training, train
from noisescale.training.updates.in_place import in_place_sgd
from noisescale.training.updates.in_place.proved import PROVED_UPDATES

FEATURES, CLASSES, NUM_EXAMPLES = 6, 3, 30


def cross_entropy(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def layers(*, width=5):
    return nn.Linear(FEATURES, width), nn.Linear(width, width), nn.Linear(width, CLASSES)


class Net(nn.Module):
    """Three linear layers, used as a subclass says."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = layers()

    def hidden(self, inputs):
        return self.second(self.first(inputs).tanh()).tanh()

    def forward(self, inputs):
        return self.head(self.hidden(inputs))


class GradientInForward(Net):
    """As of a physics-informed network: outputs hold the derivative by the inputs."""

    def forward(self, inputs):
        inputs = inputs.detach().requires_grad_()
        outputs = super().forward(inputs)
        (slope,) = torch.autograd.grad(outputs.square().sum(), inputs, create_graph=True)
        return outputs + slope.square().sum(1, keepdim=True)


class SlopeInLoss(Net):
    """Outputs and inputs, for a loss that penalises the gradient."""

    def forward(self, inputs):
        inputs = inputs.detach().requires_grad_()
        return super().forward(inputs), inputs


def penalised(outputs, targets):
    outputs, inputs = outputs
    losses = cross_entropy(outputs, targets)
    (slope,) = torch.autograd.grad(losses.sum(), inputs, create_graph=True)
    return losses + slope.square().sum(1)


class ForcesOfDetached(Net):
    """A gradient in forward that nothing is differentiated through."""

    def forward(self, inputs):
        inputs = inputs.detach().requires_grad_()
        outputs = super().forward(inputs)
        (slope,) = torch.autograd.grad(outputs.sum(), inputs, retain_graph=True)
        return outputs * slope.norm()


class Checkpointed(Net):
    def __init__(self, *, use_reentrant):
        super().__init__()
        self.use_reentrant = use_reentrant

    def forward(self, inputs):
        hidden = self.first(inputs).tanh()
        return self.head(checkpoint(self.block, hidden, use_reentrant=self.use_reentrant))

    def block(self, hidden):
        return self.second(hidden).tanh()


class HeadTwice(Net):
    def forward(self, inputs):
        return F.linear(self.head(self.hidden(inputs)) @ self.head.weight, self.head.weight)


class DetachedToo(Net):
    """The weight again, as a constant that autograd does not watch."""

    def forward(self, inputs):
        hidden = self.hidden(inputs)
        return self.head(hidden) + hidden @ self.head.weight.data.T


class Teacher(Net):
    """Layers called under no_grad as well."""

    def forward(self, inputs):
        with torch.no_grad():
            target = self.second(self.first(inputs).tanh())
        return self.head(self.hidden(inputs) - target)


class ReachableTwice(Net):
    def __init__(self):
        super().__init__()
        self.again = self.second

    def forward(self, inputs):
        return self.head(self.again(self.second(self.first(inputs)).tanh()))


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.mix = nn.Embedding(CLASSES, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, inputs):
        tokens = (inputs[:, :2] > 0).long()
        return self.head(self.mix(self.tokens(tokens).mean(1)))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, 4, dtype=torch.complex128))
        self.linear = nn.Linear(4, 4, dtype=torch.complex128)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs):
        return self.head(self.linear(inputs.to(torch.complex128) @ self.weight).abs())


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(4, 4, sparse=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, inputs):
        return self.head(self.tokens((inputs[:, :2] > 0).long()).mean(1))


class RareExpert(Net):
    """A layer that a few examples reach, and no trial pass."""

    def forward(self, inputs):
        hidden = self.first(inputs).tanh()
        rare = inputs[:, 0] > 1
        if rare.any():
            hidden = torch.where(rare[:, None], self.second(hidden), hidden)
        return self.head(hidden)


class SometimesTwice(Net):
    def forward(self, inputs):
        hidden = self.second(self.first(inputs).tanh())
        if (inputs[:, 0] > 1).any():
            hidden = self.second(hidden.tanh())
        return self.head(hidden)


class StateOfItsOwn(Net):
    """Behaves by the number of its calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return super().forward(inputs) * self.calls


class Closure(Net):
    """Holds a function that speaks of the model, which copying leaves alone."""

    def __init__(self):
        super().__init__()
        self.hidden = lambda inputs: self.second(self.first(inputs).tanh()).tanh()


class FunctionalTransform(Net):
    def forward(self, inputs):
        return torch.func.vmap(super().forward)(inputs)


class JacobianInside(Net):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        slopes = torch.func.vmap(torch.func.jacrev(lambda row: Net.forward(self, row)))(inputs)
        return outputs + slopes.square().sum((1, 2))[:, None]


class ForwardMode(Net):
    def forward(self, inputs):
        outputs, slopes = torch.func.jvp(super().forward, (inputs,), (torch.ones_like(inputs),))
        return outputs + slopes.square()


class Autocast(Net):
    def forward(self, inputs):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(inputs).double()


class HookedParameter(Net):
    """A hook that changes a gradient; set anew on each copy."""

    def forward(self, inputs):
        if not self.second.weight._backward_hooks:
            self.second.weight.register_hook(lambda grad: 0.5 * grad)
        return super().forward(inputs)


class HookedTensor(Net):
    """A hook that uses a weight in the backward pass."""

    def forward(self, inputs):
        hidden = self.first(inputs).tanh()
        hidden.register_hook(lambda grad: grad * self.head.weight.detach().norm())
        return self.head(self.second(hidden).tanh())


class PythonFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, weight):
        ctx.save_for_backward(inputs)
        ctx.weight = weight.data
        return inputs @ weight.data.T

    @staticmethod
    def backward(ctx, grad):
        (inputs,) = ctx.saved_tensors
        return grad @ ctx.weight, grad.T @ inputs


class OwnFunction(Net):
    def forward(self, inputs):
        return self.head(PythonFunction.apply(self.first(inputs).tanh(), self.second.weight).tanh())


class Randomness(Net):
    """Numbers of torch's and Python's own."""

    def forward(self, inputs):
        return F.dropout(super().forward(inputs), 0.3) * random.random()


class PackedWeights(Net):
    """Saved tensors that hooks copy, as offloading does."""

    def forward(self, inputs):
        with torch.autograd.graph.save_on_cpu():
            return super().forward(inputs)


class BackwardInForward(Net):
    def forward(self, inputs):
        outputs = super().forward(inputs)
        with torch.enable_grad():
            outputs.sum().backward(retain_graph=True)
        self.zero_grad()
        return outputs


def sequential(*parts):
    return lambda: nn.Sequential(*(part() for part in parts))


def linear(fan_in=FEATURES, fan_out=CLASSES):
    return lambda: nn.Linear(fan_in, fan_out)


def frozen():
    model = Net()
    model.second.requires_grad_(False)
    return model


def zero_head():
    model = Net()
    nn.init.zeros_(model.head.weight)
    return model


KINDS = {
    "linear layers": Net,
    "gradient in forward": GradientInForward,
    "gradient in the loss": SlopeInLoss,
    "gradient in forward, detached": ForcesOfDetached,
    "checkpointing": lambda: Checkpointed(use_reentrant=False),
    "reentrant checkpointing": lambda: Checkpointed(use_reentrant=True),
    "weight used by other functions": HeadTwice,
    "weight used as a constant": DetachedToo,
    "layers under no_grad as well": Teacher,
    "module under two names": ReachableTwice,
    "tied embedding": TiedHead,
    "complex": Complex,
    "sparse": Sparse,
    "rare expert": RareExpert,
    "a layer sometimes used twice": SometimesTwice,
    "counter": StateOfItsOwn,
    "closure": Closure,
    "vmap inside": FunctionalTransform,
    "jacobian inside": JacobianInside,
    "forward mode": ForwardMode,
    "autocast": Autocast,
    "parameter hook": HookedParameter,
    "tensor hook": HookedTensor,
    "autograd function": OwnFunction,
    "random numbers": Randomness,
    "packed by hooks": PackedWeights,
    "backward in forward": BackwardInForward,
    "frozen layer": frozen,
    "zero head": zero_head,
    "weight norm": sequential(lambda: parametrizations.weight_norm(nn.Linear(6, 5)), linear(5)),
    "spectral norm": sequential(lambda: parametrizations.spectral_norm(nn.Linear(6, 5)), linear(5)),
    "batch norm": sequential(linear(6, 5), lambda: nn.BatchNorm1d(5), nn.Tanh, linear(5)),
    "bilinear and others": sequential(linear(6, 5), lambda: nn.LayerNorm(5), nn.GELU, linear(5)),
}


def problem_of(kind):
    torch.manual_seed(0)
    model = KINDS[kind]().double()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_EXAMPLES, FEATURES, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (NUM_EXAMPLES,), generator=generator)
    loss = penalised if kind == "gradient in the loss" else cross_entropy
    return Problem(model=model, loss=loss, train=Examples(inputs, targets))


def textbook(problem, config):
    """The model after plain training with stored gradients."""
    model = problem.model.train()
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    order = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        for batch in torch.randperm(NUM_EXAMPLES, generator=order).split(config.batch_size):
            optimizer.zero_grad()
            outputs = model(problem.train.inputs[batch])
            problem.loss(outputs, problem.train.targets[batch]).mean().backward()
            for param in model.parameters():
                if param.grad is not None and param.grad.is_sparse:
                    param.grad = param.grad.to_dense()
            optimizer.step()
    return model


def trained(problem, config):
    training = Training(problem, config)
    assert list(training)[-1] == -(-NUM_EXAMPLES // config.batch_size) * config.epochs
    return training


def from_the_same_random_state(work, *arguments):
    random.seed(7)
    torch.manual_seed(7)
    return work(*arguments)


def assert_same(model, expected):
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-11)


SETTINGS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9, "weight_decay": 0.1},
}


@pytest.mark.parametrize(
    ("kind", "setting", "batch_size"),
    [
        (kind, setting, batch_size)
        for kind in KINDS
        for setting, batch_size in (
            ("plain", 1),
            ("plain", 4),
            ("weight decay", 4),
            ("momentum", 4),
        )
        if (kind, batch_size) != ("batch norm", 1)  # one example has no variance
    ],
)
def test_every_kind_of_model_is_trained_as_by_the_textbook(kind, setting, batch_size):
    config = TrainConfig(
        batch_size=batch_size, learning_rate=0.02, epochs=2, seed=3, **SETTINGS[setting]
    )
    expected = from_the_same_random_state(textbook, problem_of(kind), config)
    training = from_the_same_random_state(trained, problem_of(kind), config)
    assert_same(training.model, expected)


NOTES = {
    "linear layers": None,
    "gradient in forward": "a gradient is taken in the forward pass or in the loss",
    "gradient in the loss": "a gradient is taken in the forward pass or in the loss",
    "checkpointing": "the layer of second.bias has its saved tensors taken by hooks",
    "reentrant checkpointing": "CheckpointFunction has a backward pass of its own",
    "layers under no_grad as well": None,  # the trial pass has met them already
    "rare expert": None,
    "a layer sometimes used twice": "the layer of second.bias is used more than once",
    "vmap inside": "the layer of first.bias runs in a transform of torch.func",
    "forward mode": "the layer of first.bias runs in a transform of torch.func",
    "autocast": "the layer of first.bias runs under autocast",
    "tensor hook": "a hook is set on a tensor",
    "autograd function": "PythonFunction has a backward pass of its own",
    "random numbers": None,
    "zero head": None,
    "batch norm": None,
}


@pytest.mark.parametrize("kind", NOTES)
def test_it_is_said_once_what_is_not_updated_in_place_and_why(kind):
    training = trained(problem_of(kind), TrainConfig(batch_size=4, learning_rate=0.02, epochs=2))
    if NOTES[kind] is None:
        assert training.notes == ()
    else:
        (note,) = training.notes
        assert note.startswith("linear layers are updated from stored gradients, which is slower")
        assert NOTES[kind] in note


@pytest.mark.parametrize(
    "kind", ["linear layers", "random numbers", "frozen layer", "counter", "closure"]
)
def test_what_is_fit_for_it_is_updated_in_place_after_the_first_steps(kind, monkeypatch):
    training = Training(problem_of(kind), TrainConfig(batch_size=4, learning_rate=0.02, epochs=2))
    steps = iter(training)
    for _ in range(PROVED_UPDATES):
        next(steps)
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: pytest.fail("a gradient was stored"))
    assert list(steps)[-1] == 16


def test_an_update_in_place_that_is_another_one_is_not_used(monkeypatch):
    right = in_place_sgd.update_linear
    monkeypatch.setattr(
        in_place_sgd, "update_linear", lambda *args: (right(*args), args[0].mul_(1 + 1e-9))
    )
    config = TrainConfig(batch_size=4, learning_rate=0.02, epochs=2, seed=3)
    training = trained(problem_of("linear layers"), config)
    assert "updated in place, first.weight takes another step" in training.notes[0]
    assert_same(training.model, textbook(problem_of("linear layers"), config))


def test_an_update_in_place_that_fails_is_not_used(monkeypatch):
    def fail(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(in_place_sgd, "update_linear", fail)
    config = TrainConfig(batch_size=4, learning_rate=0.02, epochs=2, seed=3)
    training = trained(problem_of("linear layers"), config)
    assert "an update in place fails (no such kernel)" in training.notes[0]
    assert_same(training.model, textbook(problem_of("linear layers"), config))


def test_a_run_that_departs_now_and_then_is_continued_bit_for_bit():
    config = TrainConfig(batch_size=4, learning_rate=0.02, epochs=2)
    problem = problem_of("a layer sometimes used twice")
    *earlier, end = train(problem, config, checkpoint_steps=range(16))
    for start in earlier:
        *_, resumed = train(problem, config, start=start)
        assert all(torch.equal(resumed.params[name], end.params[name]) for name in end.params)


@pytest.mark.parametrize("wrap", ["weight_norm", "spectral_norm"])
def test_models_that_keep_computed_weights_are_trained_as_by_the_textbook(wrap):
    def problem():
        torch.manual_seed(0)
        with warnings.catch_warnings(action="ignore"):  # deprecated, and in use
            layer = getattr(torch.nn.utils, wrap)(nn.Linear(FEATURES, 5))
        model = nn.Sequential(layer, nn.Tanh(), nn.Linear(5, CLASSES)).double()
        model(torch.ones(2, FEATURES, dtype=torch.float64))
        return replace(problem_of("linear layers"), model=model)

    config = TrainConfig(batch_size=4, learning_rate=0.02, epochs=2, seed=3)
    assert_same(trained(problem(), config).model, textbook(problem(), config))


def test_a_scripted_model_is_trained_as_by_the_textbook():
    with warnings.catch_warnings(action="ignore"):  # deprecated, and in use
        scripted = torch.jit.script(problem_of("linear layers").model)
    config = TrainConfig(batch_size=4, learning_rate=0.02, epochs=2, seed=3)
    training = trained(replace(problem_of("linear layers"), model=scripted), config)
    assert_same(training.model, textbook(problem_of("linear layers"), config))


def test_gradients_left_in_the_model_take_no_part():
    problem = problem_of("linear layers")
    for param in problem.model.parameters():
        param.grad = torch.ones_like(param)
    config = TrainConfig(batch_size=4, learning_rate=0.02, epochs=2, seed=3)
    training = trained(problem, config)
    assert_same(training.model, textbook(problem_of("linear layers"), config))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_adam_takes_sparse_and_complex_gradients(kind, optimizer):
    config = TrainConfig(batch_size=4, learning_rate=0.02, epochs=1, optimizer=optimizer)
    training = trained(problem_of(kind), config)
    before = problem_of(kind).model.state_dict()
    for name, value in training.model.state_dict().items():
        assert value.isfinite().all()
        assert not torch.equal(value, before[name])


@pytest.mark.parametrize("kind", ["sparse", "complex", "gradient in forward", "checkpointing"])
def test_an_adaptive_batch_size_takes_models_of_these_kinds(kind):
    adaptive = AdaptiveConfig(initial_batch_size=4, min_batch_size=2, max_batch_size=8)
    config = TrainConfig(batch_size="adaptive", learning_rate=0.02, epochs=2, adaptive=adaptive)
    training = Training(problem_of(kind), config)
    assert list(training)
    assert training.schedule.noise is not None


UNFIT = {
    "no parameter that requires": lambda: Net().requires_grad_(False),
    "has lazy parameters": lambda: nn.LazyLinear(CLASSES),
    r"step 1 fails with RuntimeError: mat1 and mat2": lambda: nn.Linear(FEATURES + 1, CLASSES),
    r"step 1 fails with IndexError: Target \d is out of bounds": lambda: nn.Linear(FEATURES, 1),
}


@pytest.mark.parametrize("message", UNFIT)
def test_what_cannot_be_trained_is_one_sentence(message):
    torch.manual_seed(0)
    problem = replace(problem_of("linear layers"), model=UNFIT[message]())
    problem.model.double()
    with pytest.raises(SettingError, match=message):
        trained(problem, TrainConfig(batch_size=4, epochs=1))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda outputs, targets: outputs.mean(), r"gives shape \(\) for 4 examples: return one"),
        (lambda outputs, targets: outputs[:, 0] * 1j, "gives complex numbers"),
        (lambda outputs, targets: outputs[:, 0].detach(), "fails with RuntimeError: element 0 of"),
    ],
)
def test_a_loss_that_cannot_be_minimised_is_one_sentence(loss, message):
    with pytest.raises(SettingError, match=message):
        trained(replace(problem_of("linear layers"), loss=loss), TrainConfig(batch_size=4))
