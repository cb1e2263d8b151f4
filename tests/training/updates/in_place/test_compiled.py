"""Compiled steps of a chain, against autograd and torch.optim.SGD."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from noisescale.errors import SettingError
from noisescale.problems.models import cross_entropy, squared_error
from noisescale.problems.problem import Examples, Problem
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import Training, train
from noisescale.training.updates.in_place import compiled
from noisescale.training.updates.in_place.proved import PROVED_UPDATES

FEATURES, CLASSES, NUM_EXAMPLES = 11, 3, 70

built = pytest.mark.skipif(compiled.sgd is None, reason="the compiled steps were not built")

# widths that are no multiples of the rows taken at once, and one that is
MODELS = {
    "a lone layer": lambda: nn.Linear(FEATURES, CLASSES),
    "ReLU": lambda: nn.Sequential(
        nn.Linear(FEATURES, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, CLASSES)
    ),
    "Tanh, and one at the outputs": lambda: nn.Sequential(
        nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, CLASSES), nn.Tanh()
    ),
    "without biases": lambda: nn.Sequential(
        nn.Linear(FEATURES, 5, bias=False), nn.ReLU(), nn.Linear(5, CLASSES, bias=False)
    ),
    "no activation between": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(FEATURES, 5), nn.Identity(), nn.Linear(5, CLASSES), nn.Identity()
    ),
}
OTHERS = {
    "another activation": lambda: nn.Sequential(
        nn.Linear(FEATURES, 5), nn.Sigmoid(), nn.Linear(5, CLASSES)
    ),
    "two activations": lambda: nn.Sequential(
        nn.Linear(FEATURES, 5), nn.ReLU(), nn.Tanh(), nn.Linear(5, CLASSES)
    ),
    "an activation of the inputs": lambda: nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, CLASSES)),
    "float64": lambda: nn.Linear(FEATURES, CLASSES).double(),
    "a frozen layer": lambda: nn.Sequential(
        nn.Linear(FEATURES, 5).requires_grad_(False), nn.Linear(5, CLASSES)
    ),
    "a transposed weight": lambda: with_transposed_weight(),
}


@built
@pytest.mark.parametrize("way", ["compiled", "chain", "mode"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_small_weight_decay_is_not_rounded_away(way, batch_size, monkeypatch):
    """η·λ below half of float32's precision, of which 1 − η·λ keeps nothing."""
    if way != "compiled":
        monkeypatch.setattr(compiled, "MOST_EXAMPLES", 0)
    if way == "mode":
        monkeypatch.setattr("noisescale.training.updates.in_place.proved._chain_of", lambda _: None)
    rate, decay, steps = 1e-3, 2e-5, 2000

    def change(decay):
        torch.manual_seed(0)
        model = nn.Linear(64, CLASSES)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(400, 64, generator=generator)
        targets = torch.randint(CLASSES, (400,), generator=generator)
        problem = Problem(model=model, loss=cross_entropy, train=Examples(inputs, targets))
        config = TrainConfig(
            batch_size=batch_size,
            learning_rate=rate,
            weight_decay=decay,
            epochs=steps,
            max_steps=steps,
        )
        training = Training(problem, config)
        in_calls(training)
        return model.weight.detach().double(), training.model.weight.detach().double()

    start, decayed = change(decay)
    _, plain = change(0.0)
    found = float(((plain - decayed) * start).sum() / start.square().sum())
    assert found == pytest.approx(rate * decay * steps, rel=0.5)


def with_transposed_weight():
    layer = nn.Linear(FEATURES, CLASSES)
    layer.weight = nn.Parameter(torch.randn(FEATURES, CLASSES).T)
    return layer


def problem_of(model, *, loss=cross_entropy, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(NUM_EXAMPLES, FEATURES, generator=generator, dtype=dtype)
    targets = torch.randint(CLASSES, (NUM_EXAMPLES,), generator=generator)
    return Problem(model=model, loss=loss, train=Examples(inputs, targets))


def seeded(make):
    torch.manual_seed(0)
    return make()


def by_the_textbook(problem, config, num_steps):
    """The model and the losses by autograd and torch.optim.SGD, in float64."""
    model = copy.deepcopy(problem.model).double()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    batches, losses = Training(problem, config).batches, []
    for _ in range(num_steps):
        part = problem.train.part(batches.take(config.batch_size))
        loss = problem.loss(model(part.inputs.double()), part.targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def in_calls(training, stops=lambda step: False):
    """The steps at which calls end."""
    return list(training.calls(stops))


def no_chain(monkeypatch):
    """Fails where torch's operations would make a step that is not to be proved."""

    def fail(*args):
        raise AssertionError("a step was made by torch's operations")

    monkeypatch.setattr("noisescale.training.updates.in_place.chain.Chain.descend", fail)


@built
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("loss", [cross_entropy, squared_error], ids=["ce", "mse"])
def test_steps_are_those_of_the_textbook(kind, batch_size, weight_decay, loss, monkeypatch):
    no_chain(monkeypatch)
    problem = problem_of(seeded(MODELS[kind]), loss=loss)
    config = TrainConfig(
        batch_size=batch_size, learning_rate=0.05, weight_decay=weight_decay, epochs=2
    )
    training = Training(problem, config)
    assert in_calls(training)[-1] == training.num_steps
    model, losses = by_the_textbook(problem, config, training.num_steps)
    for ours, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=2e-4, atol=2e-5)
    kept = [row.loss for row in training.losses.rows]
    assert kept == pytest.approx(losses[-len(kept) :], rel=2e-4)


@built
def test_examples_may_have_several_dimensions(monkeypatch):
    no_chain(monkeypatch)
    flat = problem_of(seeded(MODELS["ReLU"]))
    images = Examples(flat.train.inputs.reshape(NUM_EXAMPLES, 1, FEATURES), flat.train.targets)
    deep = replace(flat, model=nn.Sequential(nn.Flatten(), flat.model), train=images)
    runs = [Training(problem, TrainConfig(batch_size=2, epochs=1)) for problem in (flat, deep)]
    for training in runs:
        in_calls(training)
    assert runs[0].losses.rows == runs[1].losses.rows


@built
@pytest.mark.parametrize("batch_size", [1, 5, 8])
def test_steps_are_the_same_numbers_however_many_a_call_makes(batch_size):
    problem = problem_of(seeded(MODELS["ReLU"]))
    config = TrainConfig(batch_size=batch_size, learning_rate=0.1, weight_decay=0.01, epochs=3)
    single, several, mixed = (Training(problem, config) for _ in range(3))
    steps = list(single)
    assert len(in_calls(several)) < len(steps)
    in_calls(mixed, lambda step: step % 7 == 0)
    for other in (several, mixed):
        assert other.losses.rows == single.losses.rows
        for ours, theirs in zip(other.model.parameters(), single.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


@built
def test_calls_end_where_they_are_to_and_with_each_epoch():
    problem = problem_of(seeded(MODELS["ReLU"]))
    training = Training(problem, TrainConfig(batch_size=4, epochs=3, max_steps=40))
    ended = []
    for step in training.calls(lambda step: step in (9, 10, 30)):
        if training.epoch_ended:
            ended.append(step)
    training = Training(problem, TrainConfig(batch_size=4, epochs=3, max_steps=40))
    stops = in_calls(training, lambda step: step in (9, 10, 30))
    assert {9, 10, 30, 40} <= set(stops)
    assert stops == sorted(set(stops))
    assert ended == [18, 36]  # of 17 full batches and one of 2
    assert len(stops) < 20


@built
def test_a_run_is_continued_bit_for_bit_from_the_midst_of_a_call():
    problem = problem_of(seeded(MODELS["ReLU"]))
    config = TrainConfig(batch_size=1, learning_rate=0.1, epochs=2)
    *_, whole = train(problem, config)
    middle = next(iter(train(problem, config, checkpoint_steps=[37])))
    *_, resumed = train(problem, config, start=middle)
    assert middle.step == 37
    for name, param in whole.params.items():
        assert torch.equal(param, resumed.params[name])


@built
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_call_ends_with_the_step_that_diverges(batch_size):
    problem = problem_of(seeded(MODELS["ReLU"]), loss=squared_error)
    config = TrainConfig(batch_size=batch_size, learning_rate=30.0, epochs=20)
    single, several = Training(problem, config), Training(problem, config)
    steps = list(single)
    in_calls(several)
    assert single.diverged_at_step == steps[-1] > PROVED_UPDATES
    assert (several.step, several.diverged_at_step) == (steps[-1], steps[-1])
    assert several.examples_seen == single.examples_seen
    *finite, last = [row.loss for row in several.losses.rows]
    assert all(map(math.isfinite, finite))
    assert not math.isfinite(last)


@built
def test_what_is_no_number_stays_so():
    """ReLU(nan) is nan, as torch has it, and no zero that hides it."""
    problem = problem_of(seeded(MODELS["ReLU"]))
    with torch.no_grad():
        problem.model[0].weight[2, 3] = math.nan
    training = Training(problem, TrainConfig(batch_size=1, epochs=1))
    assert in_calls(training) == [1]
    assert training.diverged_at_step == 1


@pytest.mark.parametrize("kind", OTHERS)
def test_other_models_are_left_to_torch(kind):
    dtype = torch.float64 if kind == "float64" else torch.float32
    problem = problem_of(seeded(OTHERS[kind]), dtype=dtype)
    config = TrainConfig(batch_size=2, learning_rate=0.1, epochs=1)
    training = Training(problem, config)
    in_calls(training)
    model, _ = by_the_textbook(problem, config, training.num_steps)
    for ours, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_a_run_that_torch_makes_ends_where_it_diverges():
    """As of a class that the outputs lack, for which no call is made."""
    problem = problem_of(seeded(MODELS["ReLU"]), loss=squared_error)
    targets = problem.train.targets.clone()
    targets[40] = CLASSES  # of no output: one-hot it is all zeros
    problem = replace(problem, train=Examples(problem.train.inputs, targets))
    config = TrainConfig(batch_size=1, learning_rate=30.0, epochs=20)
    single, several = Training(problem, config), Training(problem, config)
    list(single)
    in_calls(several)
    assert single.diverged_at_step is not None
    for name in ("step", "diverged_at_step", "examples_seen"):
        assert getattr(several, name) == getattr(single, name)


@built
def test_a_class_that_the_outputs_lack_is_refused_at_its_step():
    problem = problem_of(seeded(MODELS["ReLU"]))
    problem.train.targets[:] = CLASSES
    training = Training(problem, TrainConfig(batch_size=1, epochs=1))
    with pytest.raises(SettingError, match="step 1 fails with"):
        in_calls(training)
    assert training.step == 0


@built
def test_hooks_set_under_way_are_called():
    problem = problem_of(seeded(MODELS["ReLU"]))
    training = Training(problem, TrainConfig(batch_size=1, epochs=1))
    called = []
    for step in training.calls(lambda step: step == 20):
        if step == 20:
            training.model[1].register_forward_hook(lambda *args: called.append(1))
    assert len(called) == NUM_EXAMPLES - 20


def test_without_a_compiler_runs_are_the_same_and_say_why_they_take_longer(monkeypatch):
    problem = problem_of(seeded(MODELS["ReLU"]))
    config = TrainConfig(batch_size=2, learning_rate=0.1, epochs=2)
    usual = Training(problem, config)
    in_calls(usual)
    monkeypatch.setattr(compiled, "sgd", None)
    slower = Training(problem, config)
    in_calls(slower)
    for ours, theirs in zip(slower.model.parameters(), usual.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert slower.notes == (compiled.NOT_BUILT,)
    larger = Training(problem, replace(config, batch_size=NUM_EXAMPLES // 2))
    in_calls(larger)
    assert larger.notes == ()  # nothing is lost there
