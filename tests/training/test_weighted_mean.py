"""Training on a mean over all tokens, against a plain loop over torch's own loss."""

import copy
import dataclasses

import pytest
import torch

from noisescale.errors import SettingError
from noisescale.measure.monitor import averages
from noisescale.problems.problem import Examples
from noisescale.problems.sampling import Batches
from noisescale.statistics.running_noise import two_batch
from noisescale.training import trainer
from noisescale.training.config import AdaptiveConfig, TrainConfig
from noisescale.training.evaluation import evaluate, mean_loss
from noisescale.training.trainer import Training
from tests.helpers.weighted import language_problem, token_mean


def plain_loop(problem, config, *, steps):
    """The parameters after so many updates on the token mean of the same batches."""
    model = copy.deepcopy(problem.model)
    if config.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            model.parameters(), lr=config.learning_rate, momentum=config.momentum
        )
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    inputs, labels = problem.train
    batches = Batches(len(labels), seed=config.seed)
    for _ in range(steps):
        rows = batches.take(config.batch_size)
        optimizer.zero_grad()
        token_mean(model(inputs[rows]), labels[rows]).backward()
        optimizer.step()
    return dict(model.named_parameters())


def assert_same(training, expected):
    for name, param in training.model.named_parameters():
        torch.testing.assert_close(param, expected[name])


@pytest.mark.parametrize(
    "settings",
    [{}, {"momentum": 0.9}, {"optimizer": "adam"}],
    ids=["in place", "momentum", "adam"],
)
def test_an_update_is_that_of_the_token_mean(settings):
    problem = language_problem()
    config = TrainConfig(batch_size=7, learning_rate=0.1, max_steps=9, epochs=9, **settings)
    training = Training(problem, config)
    for _ in training:
        pass
    assert_same(training, plain_loop(problem, config, steps=9))


def test_a_batch_in_chunks_has_one_mean(monkeypatch):
    monkeypatch.setattr(trainer, "CHUNK", 5)
    problem = language_problem()
    config = TrainConfig(batch_size=12, learning_rate=0.1, momentum=0.5, max_steps=4)
    training = Training(problem, config)
    for _ in training:
        pass
    assert_same(training, plain_loop(problem, config, steps=4))


def test_a_batch_of_padding_alone_makes_no_step():
    problem = language_problem()
    padding = Examples(problem.train.inputs, torch.full_like(problem.train.targets, -100))
    training = Training(
        dataclasses.replace(problem, train=padding), TrainConfig(batch_size=4, epochs=1)
    )
    for _ in training:
        pass
    assert training.diverged_at_step is None
    assert_same(training, dict(problem.model.named_parameters()))


def test_an_adaptive_batch_weighs_its_parts_by_tokens(monkeypatch):
    """The two norms of an update: of the first fourth, which counts as a fourth, and of all."""
    compared = []

    def note(small, small_size, big, big_size):
        compared.append((small, big))
        return two_batch(small, small_size, big, big_size)

    monkeypatch.setattr(averages, "two_batch", note)
    problem = language_problem()
    adaptive = AdaptiveConfig(initial_batch_size=16, max_batch_size=24)
    config = TrainConfig(batch_size="adaptive", max_steps=1, adaptive=adaptive)
    for _ in Training(problem, config):
        pass
    rows = Batches(24, seed=0).take(16)
    squares = []
    tokens = (problem.train.targets[rows] != -100).sum(1)
    shares = 4 * float(tokens[:4].sum() / tokens.sum()), 1.0
    for part, share in zip((rows[:4], rows), shares, strict=True):
        targets = problem.train.targets[part]
        loss = share * token_mean(problem.model(problem.train.inputs[part]), targets)
        gradient = torch.autograd.grad(loss, list(problem.model.parameters()))
        squares.append(float(sum(each.square().sum() for each in gradient)))
    assert compared == [pytest.approx(squares)]


def test_the_scores_are_token_means():
    problem = language_problem(40)
    outputs = problem.model(problem.train.inputs).detach()
    expected = float(token_mean(outputs, problem.train.targets))
    assert mean_loss(problem.model, problem.loss, problem.train, problem.weights) == pytest.approx(
        expected
    )
    scores = evaluate(problem.model, problem.loss, problem.train, problem.weights)
    assert scores.loss == pytest.approx(expected)
    assert scores.confusion is None
    assert repr(scores) == f"Evaluation(loss {expected:.4g}, no classes)"
    assert scores.accuracy != scores.accuracy


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_weights_that_no_mean_can_be_taken_with_are_refused_in_training_too(weight):
    problem = dataclasses.replace(
        language_problem(), weights=lambda labels: torch.full((len(labels),), weight)
    )
    with pytest.raises(SettingError, match="below zero or not finite"):
        Training(problem, TrainConfig(batch_size=4, max_steps=1))
    with pytest.raises(SettingError, match="below zero or not finite"):
        mean_loss(problem.model, problem.loss, problem.train, problem.weights)
