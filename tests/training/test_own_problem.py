"""Runs of problems of one's own: built by a factory, or given as an object."""

import dataclasses
import json

import pytest
import torch

from noisescale.errors import RunFolderError
from noisescale.problems.factory import build_own_problem, factory_config
from noisescale.problems.problem import Examples, Problem
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.folder import read_json
from noisescale.training.records.pictures import draw_pictures
from noisescale.training.records.tables import read_metrics, read_noise
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.noise import NoiseTracking
from noisescale.training.trainer import Training
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
