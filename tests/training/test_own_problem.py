"""Runs of problems of one's own: built by a factory, or given as an object."""

import dataclasses
import json

import pytest
import torch

from noisescale.errors import RunFolderError, SettingError
from noisescale.problems.factory import build_own_problem, factory_config
from noisescale.problems.problem import Examples, Problem
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.folder import read_json
from noisescale.training.records.pictures import draw_pictures
from noisescale.training.records.tables import read_metrics, read_noise, read_sharpness
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.noise import NoiseTracking
from noisescale.training.trainer import Training, train
from tests.helpers.seeding import SOURCE
from tests.helpers.weighted import language_problem

CONFIG = TrainConfig(batch_size=6, learning_rate=0.1, epochs=3)


def final_params(folder):
    return load_checkpoint(folder).params


def test_an_object_is_trained_from_where_it_is(tmp_path):
    problem = language_problem()
    before = [param.detach().clone() for param in problem.model.parameters()]
    options = RunOptions(
        noise=NoiseTracking(every=4), measure_sharpness_every=8, checkpoint_every=5
    )
    summary = run_training(problem, CONFIG, tmp_path / "run", options)
    expected = Training(problem, CONFIG)
    for _ in expected:
        pass
    for name, param in expected.model.named_parameters():
        torch.testing.assert_close(final_params(tmp_path / "run")[name], param, rtol=0, atol=0)
    for param, value in zip(problem.model.parameters(), before, strict=True):
        assert torch.equal(param, value)
    assert summary["problem"] == "Language"
    assert summary["train"]["accuracy"] is None
    assert summary["train"]["accuracy_null_because"].startswith("the outputs are no table")
    assert "test" not in summary
    assert all(not row["reason"] for row in read_noise(tmp_path / "run"))
    assert {row["split"] for row in read_metrics(tmp_path / "run")} == {"train"}
    drawn = {path.name for path in draw_pictures(tmp_path / "run")}
    assert drawn == {"curves.png", "noise.png", "sharpness.png"}
    assert not (tmp_path / "run" / "confusion.csv").exists()
    json.dumps(summary, allow_nan=False)


def test_a_finished_object_is_not_trained_again_and_another_is_told_apart(tmp_path):
    first = run_training(language_problem(), CONFIG, tmp_path / "run")
    assert run_training(language_problem(), CONFIG, tmp_path / "run") == first
    with pytest.raises(RunFolderError, match=r"holds another run \(problem.digest is"):
        run_training(language_problem(seed=1), CONFIG, tmp_path / "run")
    unweighted = dataclasses.replace(language_problem(), weights=None)
    with pytest.raises(RunFolderError, match=r"problem\.digest"):
        run_training(unweighted, CONFIG, tmp_path / "run")


def test_an_interrupted_object_goes_on_bit_for_bit(tmp_path):
    problem = language_problem()
    run_training(problem, CONFIG, tmp_path / "whole")
    run_training(problem, CONFIG, tmp_path / "cut", RunOptions(checkpoint_every=5))
    folder = tmp_path / "cut"
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "step-5.pt").replace(folder / "checkpoint.pt")
    run_training(problem, CONFIG, folder)
    for name, value in final_params(tmp_path / "whole").items():
        assert torch.equal(final_params(folder)[name], value)


def test_a_factory_is_built_under_the_seed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds.py").write_text(SOURCE)
    config = factory_config("seeds.py:seeds_itself")
    training = dataclasses.replace(CONFIG, batch_size=4, seed=2)
    summary = run_training(config, training, tmp_path / "run", RunOptions(checkpoint_every=1))
    assert summary["problem"] == "seeds.py:seeds_itself"
    assert "seeds torch itself" in summary["notes"][0]
    assert read_json(tmp_path / "run" / "config.json")["problem"] == config.to_dict()
    expected = Training(build_own_problem(config, seed=2), training)
    next(iter(expected))
    stored = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-1.pt")
    assert stored.problem == config
    for name, param in expected.model.named_parameters():
        torch.testing.assert_close(stored.params[name], param, rtol=0, atol=0)


def test_a_classifier_without_a_test_split_is_scored_on_what_there_is(tmp_path):
    inputs = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    examples = Examples(inputs, (inputs[:, 0] > 0).long())
    problem = Problem(
        model=torch.nn.Linear(4, 2),
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        train=examples,
        validation=examples,
    )
    summary = run_training(problem, CONFIG, tmp_path / "run")
    assert summary["validation"]["accuracy"] > 0.5
    assert "confusion.png" in {path.name for path in draw_pictures(tmp_path / "run")}


@pytest.mark.parametrize(
    "settings", [{"weight": torch.tensor([1.0, 50.0, 1.0])}, {"label_smoothing": 0.3}]
)
def test_another_loss_is_another_run(settings, tmp_path):
    def problem(**others):
        torch.manual_seed(0)
        return Problem(
            model=torch.nn.Linear(4, 3),
            loss=torch.nn.CrossEntropyLoss(reduction="none", **others),
            train=Examples(torch.randn(12, 4), torch.randint(3, (12,))),
        )

    first = run_training(problem(), CONFIG, tmp_path / "run")
    assert run_training(problem(), CONFIG, tmp_path / "run") == first
    with pytest.raises(RunFolderError, match="holds another run"):
        run_training(problem(**settings), CONFIG, tmp_path / "run")


def test_a_loss_that_is_not_finite_at_the_start_ends_the_run(tmp_path):
    inputs = torch.ones(12, 4)
    inputs[3] = torch.inf
    problem = Problem(
        model=torch.nn.Linear(4, 3),
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        train=Examples(inputs, torch.zeros(12, dtype=torch.long)),
    )
    summary = run_training(problem, CONFIG, tmp_path / "run")
    assert (summary["steps"], summary["diverged_at_step"]) == (0, 0)
    assert summary["examples_per_second"] == 0
    assert run_training(problem, CONFIG, tmp_path / "run") == summary


def test_batches_without_weight_do_not_end_a_tracked_run(tmp_path):
    """Their gradient is zero; a half of the examples has no weight here."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(32, 1, generator=generator)
    problem = Problem(
        model=torch.nn.Linear(3, 1),
        loss=lambda outputs, targets: (outputs - targets).square().sum(1),
        train=Examples(torch.randn(32, 3, generator=generator), targets),
        weights=lambda targets: (targets[:, 0] > 0).float(),
    )
    options = RunOptions(measure_sharpness_every=4)
    config = TrainConfig(batch_size=2, learning_rate=0.01, epochs=1)
    run_training(problem, config, tmp_path / "run", options)
    rows = read_sharpness(tmp_path / "run")
    assert [row["reason"] for row in rows] == [""] * len(rows)
    assert all(row["batch_sharpness"] > 0 for row in rows)


@pytest.mark.parametrize(
    "settings",
    [
        {"evaluate_every": 0},
        {"checkpoint_every": 0},
        {"measure_sharpness_every": 0},
        {"sharpness_examples": 2.5},
        {"checkpoint_every": "log"},
    ],
)
def test_options_that_can_never_be_met_are_refused_at_once(settings):
    with pytest.raises(SettingError, match="give a whole number of 1 or more"):
        RunOptions(**settings)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", 3.5])
def test_a_device_that_is_none_is_refused(device, tmp_path):
    with pytest.raises(SettingError, match=r"give cpu, cuda, cuda:1 or auto"):
        run_training(language_problem(), CONFIG, tmp_path / "run", RunOptions(device=device))


class Asserting(torch.nn.Linear):
    def forward(self, inputs):
        assert inputs.shape[1] == 5, "five columns"
        return super().forward(inputs)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_whatever_a_model_raises_is_told_in_a_sentence(optimizer):
    problem = Problem(
        model=Asserting(3, 2),
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        train=Examples(torch.ones(6, 3), torch.zeros(6, dtype=torch.long)),
    )
    config = TrainConfig(batch_size=2, learning_rate=0.1, epochs=1, optimizer=optimizer)
    with pytest.raises(SettingError, match=r"cannot be trained: step 1 fails with .*five columns"):
        list(train(problem, config))
