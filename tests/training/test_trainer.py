import copy
import itertools
import math

import pytest
import torch
from torch import nn

from noisescale.errors import CheckpointError
from noisescale.problems.models import cross_entropy, mlp
from noisescale.problems.problem import Examples, Problem
from noisescale.problems.sampling import Batches
from noisescale.training import trainer as module
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import Training, train
from tests.helpers.problems import classification, quadratic

OPTIMIZERS = {
    "sgd": {"learning_rate": 0.1},
    "sgd with weight decay": {"learning_rate": 0.1, "weight_decay": 0.05},
    "sgd with momentum": {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.05},
    "adam": {"learning_rate": 0.01, "optimizer": "adam", "weight_decay": 0.05},
    "adamw": {"learning_rate": 0.01, "optimizer": "adamw", "weight_decay": 0.05},
}


def last(checkpoints):
    *_, checkpoint = checkpoints
    return checkpoint


def plain_loop(problem, config, **options):
    """The textbook loop: mean loss of each batch, torch.optim on stored gradients."""
    model = copy.deepcopy(problem.model)
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[
        config.optimizer
    ]
    momentum = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    optimizer = kind(
        model.parameters(),
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        **momentum,
        **options,
    )
    order = torch.Generator().manual_seed(config.seed)
    for _ in range(config.epochs):
        for batch in torch.randperm(problem.train.num_examples, generator=order).split(
            config.batch_size
        ):
            optimizer.zero_grad()
            outputs = model(problem.train.inputs[batch])
            nn.functional.cross_entropy(outputs, problem.train.targets[batch]).backward()
            optimizer.step()
    return dict(model.named_parameters())


def assert_same(actual, expected):
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 8, 50])  # 50 = 6·8 + 2: a ragged last batch
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_equals_the_textbook_loop(optimizer, batch_size):
    problem = classification()
    config = TrainConfig(batch_size=batch_size, epochs=2, seed=5, **OPTIMIZERS[optimizer])
    assert_same(last(train(problem, config)).params, plain_loop(problem, config))


@pytest.mark.parametrize("chunk", [1000, 7])
def test_the_full_batch_is_gradient_descent_in_closed_form(chunk, monkeypatch):
    monkeypatch.setattr(
        module, "CHUNK", chunk
    )  # 20 = 2·7 + 6: accumulated with a ragged last chunk
    synthetic = quadratic(num_examples=20)
    config = TrainConfig(batch_size="full", learning_rate=0.1, epochs=3)
    theta = synthetic.problem.model.theta.detach().clone()
    for _ in range(3):
        theta -= 0.1 * synthetic.moments(theta, "dataset").gradient
    checkpoint = last(train(synthetic.problem, config))
    assert (checkpoint.step, checkpoint.examples_seen) == (3, 60)
    torch.testing.assert_close(checkpoint.params["theta"], theta)


def test_a_batch_accumulated_in_chunks_is_the_same_step(monkeypatch):
    config = TrainConfig(batch_size=40, learning_rate=0.1, epochs=2)
    whole = last(train(classification(), config))
    monkeypatch.setattr(module, "CHUNK", 7)
    assert_same(last(train(classification(), config)).params, whole.params)


def test_no_more_than_a_chunk_of_examples_is_in_the_model_at_once(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 7)
    sizes = []

    class Recording(nn.Linear):
        def forward(self, inputs):
            sizes.append(len(inputs))
            return super().forward(inputs)

    last(train(classification(Recording(6, 3)), TrainConfig(batch_size="full", epochs=1)))
    assert max(sizes) == 7
    assert sum(sizes[1:]) == 50  # after the two examples of the trial pass


def test_checkpoints_come_after_each_epoch_at_the_steps_asked_for_and_at_the_end():
    config = TrainConfig(batch_size=20, epochs=3, max_steps=7)  # 3 steps an epoch
    steps = [
        checkpoint.step
        for checkpoint in train(classification(), config, checkpoint_steps=(0, 2, 6))
    ]
    assert steps == [0, 2, 3, 6, 7]


def test_the_problem_is_left_as_it_was():
    problem = classification(mlp((6,), 3, width=8, norm="batch"))
    before, state = copy.deepcopy(problem.model.state_dict()), torch.get_rng_state()
    last(train(problem, TrainConfig(batch_size=10, epochs=1)))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in problem.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(param.grad is None for param in problem.model.parameters())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_run_continued_from_any_checkpoint_ends_bit_for_bit_the_same(optimizer, norm):
    problem = classification(mlp((6,), 3, width=8, norm=norm))
    config = TrainConfig(batch_size=20, epochs=3, **OPTIMIZERS[optimizer])
    *earlier, end = train(problem, config, checkpoint_steps=range(9))
    assert len(earlier) == 9  # 0 … 8, mid-epoch ones included
    for start in earlier:
        resumed = last(train(problem, config, start=start))
        assert resumed.step == end.step
        for name, value in (end.params | end.buffers).items():
            assert torch.equal((resumed.params | resumed.buffers)[name], value)


def test_a_checkpoint_of_another_run_is_refused():
    config = TrainConfig(batch_size=10, epochs=1)
    start = next(train(classification(), config))
    with pytest.raises(CheckpointError, match="another configuration"):
        next(train(classification(), TrainConfig(batch_size=10, epochs=1, seed=1), start=start))
    with pytest.raises(CheckpointError, match="does not fit the model"):
        next(train(classification(mlp((6,), 3, width=5)), config, start=start))


def test_models_with_tied_weights_and_unsaved_buffers_can_be_continued():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
            self.second.weight = self.first.weight
            self.register_buffer("scale", torch.ones(()), persistent=False)

        def forward(self, inputs):
            return self.head(self.second(self.first(inputs))) * self.scale

    problem, config = classification(Tied()), TrainConfig(batch_size=10, epochs=2)
    start, end = train(problem, config)
    assert_same(last(train(problem, config, start=start)).params, end.params)


@pytest.mark.parametrize("position", [0, 45])
def test_a_loss_that_is_not_finite_in_any_chunk_is_seen(position, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 20)
    problem = classification()
    problem.train.inputs[position] = math.inf
    assert last(train(problem, TrainConfig(batch_size="full", epochs=3))).diverged_at_step == 1


def test_the_optimizer_is_spared_where_everything_is_updated_in_place(monkeypatch):
    training = Training(classification(), TrainConfig(batch_size=10, epochs=1))
    monkeypatch.setattr(training.optimizer, "step", lambda: pytest.fail("the optimizer was called"))
    assert list(training) == [1, 2, 3, 4, 5]


def test_a_checkpoint_is_a_copy():
    checkpoints = train(classification(), TrainConfig(batch_size=10, epochs=2))
    first = next(checkpoints)
    before = {name: value.clone() for name, value in first.params.items()}
    last(checkpoints)
    assert all(torch.equal(first.params[name], value) for name, value in before.items())


def test_divergence_is_noted_with_its_step_and_ends_the_run():
    synthetic = (
        quadratic()
    )  # |1 − 4η| = 3.9e3 per step: θ passes 1e154 and the loss overflows within 50 steps
    config = TrainConfig(batch_size="full", learning_rate=1e3, epochs=500)
    losses, theta = [], synthetic.problem.model.theta.detach().clone()
    while not losses or math.isfinite(losses[-1]):
        noise = synthetic.problem.train.inputs
        losses.append(
            (
                0.5 * theta @ (torch.diag(torch.tensor([1.0, 2.0, 4.0]).double()) @ theta)
                + (noise @ theta).mean()
            ).item()
        )
        theta = theta - 1e3 * synthetic.moments(theta, "dataset").gradient
    checkpoint = last(train(synthetic.problem, config))
    assert checkpoint.diverged_at_step == checkpoint.step == len(losses)
    assert 10 < len(losses) < 100


def test_a_diverged_run_has_nothing_left_to_continue():
    config = TrainConfig(batch_size="full", learning_rate=1e3, epochs=500)
    end = last(train(quadratic().problem, config))
    assert list(train(quadratic().problem, config, start=end)) == []


def test_losses_looked_at_in_blocks_give_the_same_first_step(monkeypatch):
    """As on a GPU, where each look waits for the device."""
    config = TrainConfig(batch_size="full", learning_rate=1e3, epochs=500)
    expected = last(train(quadratic().problem, config)).diverged_at_step
    training = Training(quadratic().problem, config)
    training.device = torch.device("meta")  # not "cpu": no look at every step
    monkeypatch.setattr(module, "UNCHECKED_LOSSES", 16)
    monkeypatch.setattr(Training, "epoch_ended", False)
    for _ in training:
        pass
    assert training.diverged_at_step == expected
    assert training.step >= expected


def test_the_batch_size_may_be_changed_between_steps():
    training = Training(classification(), TrainConfig(batch_size=10, epochs=1))
    sizes = [10, 25, 3, 50]
    seen = []
    for _, following in zip(training, [*sizes[1:], 1], strict=False):
        seen.append(training.examples_seen)
        training.batch_size = following
    assert seen == [10, 35, 38, 50]


def test_a_batch_larger_than_the_training_set_says_how_large_that_is():
    with pytest.raises(ValueError, match="batch size 51: there are 50 training examples"):
        next(train(classification(), TrainConfig(batch_size=51)))


def test_a_dataset_serves_as_well_as_tensors():
    problem = classification()
    dataset = torch.utils.data.TensorDataset(*problem.train)
    config = TrainConfig(batch_size=8, epochs=1)
    same = Problem(model=problem.model, loss=cross_entropy, train=dataset)
    state = torch.get_rng_state()
    assert_same(last(train(same, config)).params, last(train(problem, config)).params)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seeds", [{"seed": 4}, {"seed": 1, "order_seed": 4}])
def test_the_order_is_the_batches_own(seeds):
    """Each step uses the examples that Batches gives at the order's seed."""
    seen = []

    class Recording(nn.Linear):
        def forward(self, inputs):
            seen.append(inputs[:, 0].clone())
            return super().forward(inputs)

    inputs = torch.arange(50.0).repeat(6, 1).T
    problem = Problem(
        model=Recording(6, 3),
        loss=cross_entropy,
        train=Examples(inputs, torch.zeros(50, dtype=torch.int64)),
    )
    # with a momentum no update is made in place, nor tried on a copy
    config = TrainConfig(batch_size=8, learning_rate=1e-6, momentum=0.5, epochs=2, **seeds)
    last(train(problem, config))
    batches = Batches(50, seed=4)
    expected = list(itertools.chain.from_iterable(batches.take(8).tolist() for _ in range(14)))
    assert torch.cat(seen).tolist() == expected


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_captured_updates_on_a_gpu_equal_the_textbook_loop_and_resume_on_the_cpu(optimizer):
    problem = classification()
    examples = Examples(problem.train.inputs.cuda(), problem.train.targets.cuda())
    on_gpu = Problem(model=copy.deepcopy(problem.model).cuda(), loss=cross_entropy, train=examples)
    config = TrainConfig(
        batch_size=8, epochs=6, **OPTIMIZERS[optimizer]
    )  # 6 captured batches, a ragged one
    checkpoints = list(train(on_gpu, config))
    # an Adam that can be captured counts its steps, and corrects its means, in float32
    adaptive = config.optimizer != "sgd"
    expected = plain_loop(on_gpu, config, **({"capturable": True} if adaptive else {}))
    assert_same(checkpoints[-1].params, expected)
    on_cpu = last(train(problem, config, start=checkpoints[2])).params
    for name, value in plain_loop(problem, config).items():
        rtol = 1e-5 if adaptive else 1e-10
        torch.testing.assert_close(on_cpu[name], value.detach(), rtol=rtol, atol=0.1 * rtol)
