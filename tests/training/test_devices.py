"""Training on the CPU and, where there is one, on a GPU, where updates are captured."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from noisescale.problems.models import mlp
from noisescale.problems.problem import Examples
from noisescale.studies.stability_map.replicas import ReplicaTraining
from noisescale.training.config import TrainConfig
from noisescale.training.evaluation import evaluate
from noisescale.training.trainer import Training, train
from tests.helpers.devices import EVERYWHERE, on
from tests.helpers.problems import classification


def end(problem, config):
    *_, checkpoint = train(problem, config)
    return checkpoint


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize("batch_size", [1, 8, "full"])
def test_a_run_does_not_depend_on_the_device(batch_size, device):
    problem = classification()
    config = TrainConfig(batch_size=batch_size, learning_rate=0.1, momentum=0.9, epochs=2)
    found, expected = end(on(problem, device), config), end(problem, config)
    for name, value in expected.params.items():
        torch.testing.assert_close(found.params[name].cpu(), value, rtol=1e-9, atol=1e-11)
    assert found.step == expected.step


@pytest.mark.parametrize("device", EVERYWHERE)
def test_a_run_under_autocast_learns(device):
    problem = classification(mlp((6,), 3, width=32))
    inputs, targets = problem.train
    single = Examples(inputs.float(), targets)
    problem = on(replace(problem, model=problem.model.float(), train=single, test=None), device)
    before = evaluate(problem.model, problem.loss, problem.train).loss
    checkpoint = end(problem, TrainConfig(batch_size=5, learning_rate=0.2, epochs=10, amp="bf16"))
    problem.model.load_state_dict(checkpoint.params)
    assert evaluate(problem.model, problem.loss, problem.train).loss < 0.8 * before


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_updates_on_a_gpu_are_captured(norm):
    problem = on(classification(mlp((6,), 3, width=8, norm=norm)), "cuda")
    training = Training(problem, TrainConfig(batch_size=5, learning_rate=0.1, epochs=3))
    for _ in training:
        pass
    assert training.notes == ()
    assert set(training._graphs._captured) == {5}


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_as_it_is():
    class Branching(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs) * (2 if float(inputs.sum()) > 0 else 1)

    problem = classification(Branching(6, 3))
    config = TrainConfig(batch_size=5, learning_rate=0.1, epochs=2)
    training = Training(on(problem, "cuda"), config)
    for _ in training:
        pass
    assert any("cannot be captured" in note for note in training.notes)
    expected = end(problem, config)
    for name, value in training.model.named_parameters():
        torch.testing.assert_close(value.detach().cpu(), expected.params[name], rtol=1e-9, atol=0)


@pytest.mark.parametrize("device", EVERYWHERE)
def test_replicas_are_single_runs_on_any_device(device):
    problem = on(classification(), device)
    configs = [
        TrainConfig(batch_size=10, learning_rate=rate, seed=seed, epochs=2)
        for seed, rate in enumerate((0.05, 0.1, 0.2))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, on a GPU
        replicas = ReplicaTraining([copy.deepcopy(problem) for _ in configs], configs)
        while not replicas.finished:
            replicas.update()
    for number, config in enumerate(configs):
        single = end(problem, config).params
        for name, value in replicas.model(number).named_parameters():
            torch.testing.assert_close(value.detach(), single[name], rtol=1e-6, atol=1e-9)
