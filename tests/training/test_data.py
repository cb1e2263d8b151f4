"""Training and its evaluation on batches of anything, in memory or read as they are needed."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from noisescale import Examples, Problem, TrainConfig, measure_noise, train
from noisescale.problems.data import stream
from noisescale.problems.problem import source_of
from noisescale.problems.sampling import Batches
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.evaluation import evaluate, mean_loss
from noisescale.training.tracking.noise import NoiseTracker, NoiseTracking
from noisescale.training.trainer import Training
from tests.helpers.datasets import Items, global_states

N = 30
ROWS = torch.linspace(0, 20, N * 4).view(N, 4).sin()
SHIFTS = torch.linspace(-1, 1, N * 3).view(N, 3)
CLASSES = torch.arange(N) % 3
ce = nn.CrossEntropyLoss(reduction="none")


class Shifted(nn.Module):
    """Of rows and shifts."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, rows, shifts):
        return self.layers(rows) + shifts


KINDS = {
    "tuple": Examples((ROWS, SHIFTS), CLASSES),
    "dict": Examples({"shifts": SHIFTS, "rows": ROWS}, CLASSES),
    "Dataset": Items(lambda i: {"rows": ROWS[i], "shifts": SHIFTS[i], "y": CLASSES[i]}, N),
    "DataLoader": DataLoader([(ROWS[i], SHIFTS[i], int(CLASSES[i])) for i in range(N)]),
}


def problem_of(data):
    torch.manual_seed(1)
    return Problem(model=Shifted(), loss=ce, train=data, test=data)


def trained(problem, **settings):
    """The parameters at the end."""
    config = TrainConfig(batch_size=7, learning_rate=0.3, epochs=2, **settings)
    return list(train(problem, config))[-1].params


def by_a_plain_loop(model):
    """The parameters after two epochs of torch's SGD."""
    model, order = copy.deepcopy(model), Batches(N, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    while order.epoch < 1 or order.remaining:
        rows = order.take(7)
        optimizer.zero_grad()
        ce(model(ROWS[rows], SHIFTS[rows]), CLASSES[rows]).mean().backward()
        optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize("held_bytes", [2**30, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_a_plain_loop(kind, held_bytes, monkeypatch):
    monkeypatch.setattr(stream, "HELD_BYTES", held_bytes)
    problem = problem_of(KINDS[kind])
    wanted = by_a_plain_loop(problem.model)
    for name, param in trained(problem).items():
        torch.testing.assert_close(param, wanted[name].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_losses_on_the_way_are_those_of_all_examples(kind):
    problem = problem_of(KINDS[kind])
    outputs = problem.model(ROWS, SHIFTS).detach()
    wanted = pytest.approx(float(ce(outputs, CLASSES).mean()), rel=1e-5)
    source = source_of(problem.train)
    assert mean_loss(problem.model, ce, source) == wanted
    scores = evaluate(problem.model, ce, source)
    assert scores.loss == wanted
    assert scores.accuracy == pytest.approx(float((outputs.argmax(1) == CLASSES).float().mean()))
    assert LossCurve(problem, "test").look(0, problem.model) == wanted


def test_every_epoch_has_draws_of_its_own_and_every_seed_too():
    seen = []

    def item(index):
        noise = torch.randn(())
        seen.append((index, float(noise)))
        return ROWS[index], SHIFTS[index] + noise, int(CLASSES[index])

    problem = problem_of(Items(item, N))
    before = global_states()
    one = trained(problem)
    again, other = trained(problem), trained(problem, seed=1)
    draws = [noise for index, noise in seen if index == 3]
    assert len(set(draws)) == 4  # of two epochs under each of two seeds
    assert global_states() == before
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_a_run_goes_on_with_the_same_draws():
    problem = problem_of(
        Items(lambda i: (ROWS[i], SHIFTS[i] + torch.randn(()), int(CLASSES[i])), N)
    )
    config = TrainConfig(batch_size=7, learning_rate=0.3, epochs=2)
    *_, last = train(problem, config)
    middle = next(iter(train(problem, config)))
    *_, resumed = train(problem, config, start=middle)
    assert all(torch.equal(last.params[name], resumed.params[name]) for name in last.params)


@pytest.mark.parametrize("kind", ["dict", "Dataset"])
def test_the_noise_of_a_run_is_measured_on_its_data(kind, tmp_path):
    problem = problem_of(KINDS[kind])
    training = Training(problem, TrainConfig(batch_size=7, learning_rate=0.3, epochs=1))
    tracker = NoiseTracker(training, tmp_path, NoiseTracking(every=1, num_examples=20))
    wanted = measure_noise(replace(problem, train=KINDS["tuple"]), num_examples=20)
    assert tracker.measure()["gradient_variance"] == pytest.approx(
        wanted.gradient_variance.value, rel=1e-5
    )


def test_a_split_of_one_kind_goes_with_one_of_another():
    problem = replace(problem_of(KINDS["Dataset"]), test=KINDS["dict"])
    assert LossCurve(problem, "test").look(0, problem.model) == pytest.approx(
        LossCurve(problem).look(0, problem.model)
    )
