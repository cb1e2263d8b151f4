"""The commands on a problem of one's own: train, sweep-lr, measure-noise, sharpness."""

import json

import pytest
import torch

from noisescale.problems.factory import build_own_problem, factory_config
from noisescale.training.records.checkpoint import load_checkpoint
from tests.helpers.command_line import run, strict
from tests.helpers.seeding import SOURCE

CLASSIFIER = """
import torch
from noisescale import Examples, Problem

def make_problem():
    torch.manual_seed(0)
    inputs = torch.randn(60, 4)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()
    part = Examples(inputs[:40], targets[:40]), Examples(inputs[40:], targets[40:])
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    return Problem(model=torch.nn.Linear(4, 3), loss=loss, train=part[0], validation=part[1])

def fails_in_training():
    problem = make_problem()
    loss = lambda outputs, targets: outputs["logits"]
    return Problem(model=problem.model, loss=loss, train=problem.train)

def normalised():
    problem = make_problem()
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    return Problem(model=model, loss=problem.loss, train=problem.train)

def reduces():
    problem = make_problem()
    return Problem(model=problem.model, loss=torch.nn.CrossEntropyLoss(), train=problem.train)
"""
OWN = ("--problem", "own.py:make_problem")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(CLASSIFIER)
    (tmp_path / "seeds.py").write_text(SOURCE)


def test_train_takes_it_with_tracking_and_several_sizes(tmp_path):
    arguments = ("--bs", 8, "--bs", "adaptive", "--bs-initial", 8, "--epochs", 2, "--lr", 0.1)
    tracking = ("--measure-noise-every", "log", "--measure-sharpness-every", 5, "--out", "runs")
    result = run("train", *OWN, *arguments, *tracking)
    assert result.exit_code == 0, result.output
    assert "val" in result.stdout  # loss, perhaps in a line below
    assert result.stdout.splitlines()[-2:] == ["runs/bs8", "runs/bsadaptive"]
    for table in ("noise.csv", "sharpness.csv", "metrics.csv", "confusion.csv"):
        assert (tmp_path / "runs" / "bs8" / table).exists()
    again = run("train", *OWN, *arguments, *tracking, "--json")
    summaries = strict(again.stdout)
    assert [summary["problem"] for summary in summaries] == ["own.py:make_problem"] * 2


def test_train_goes_on_with_it_where_it_is_named_again(tmp_path):
    """A folder may be anybody's, and the file that it names would be run."""
    whole = ("train", *OWN, "--bs", 8, "--epochs", 2, "--checkpoint-every", 3)
    assert run(*whole, "--out", "whole").exit_code == 0
    assert run(*whole, "--out", "cut").exit_code == 0
    (tmp_path / "cut" / "summary.json").unlink()
    (tmp_path / "cut" / "checkpoints" / "step-3.pt").replace(tmp_path / "cut" / "checkpoint.pt")
    refused = run("train", "--resume", "cut")
    assert refused.exit_code == 1
    assert "give --problem own.py:make_problem" in " ".join(refused.stderr.split())
    result = run("train", "--resume", "cut", *OWN)
    assert result.exit_code == 0, result.output
    assert "resumed at step 3" in result.stderr
    expected = load_checkpoint("whole").params
    for name, value in load_checkpoint("cut").params.items():
        assert torch.equal(value, expected[name])
    (tmp_path / "cut" / "summary.json").unlink()
    (tmp_path / "own.py").write_text(CLASSIFIER + "\n")
    changed = run("train", "--resume", "cut", *OWN)
    assert changed.exit_code == 1
    assert "whose file has changed since" in changed.stderr


def test_the_default_folder_bears_its_name():
    result = run("train", *OWN, "--max-steps", 1)
    assert result.stdout.splitlines()[-1].startswith("runs/make_problem-bs32-lr0.01-")


@pytest.mark.parametrize("command", ["train", "sweep-lr", "critical-batch"])
def test_what_else_says_what_is_trained_is_refused_in_one_message(command):
    others = ("--dataset", "digits", "--width", 8, "--norm", "layer", "--preset")
    preset = {"critical-batch": "mnist-paper"}.get(command, "three-cases")
    result = run(command, *OWN, *others, preset)
    assert result.exit_code == 2
    expected = "--problem says what is trained: leave out --dataset, --width, --norm, --preset"
    assert expected in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("name", "message", "code"),
    [
        ("absent.py:make_problem", "there is no file absent.py", 2),
        ("own.py", "give module:factory or file.py:factory", 2),
        ("own.py:absent", "has no function absent", 2),
        ("seeds.py:nothing", "gives None: return noisescale.Problem", 2),
        ("seeds.py:Model", "gives a Model: return noisescale.Problem", 2),
        ("seeds.py:two", "takes first, second, which nobody gives it", 2),
        ("own.py:fails_in_training", "or its loss fails on 40 examples: IndexError", 2),
        ("own.py:reduces", "the loss gives shape () for 40 examples", 2),
    ],
)
def test_what_is_wrong_with_it_is_one_message(tmp_path, name, message, code):
    result = run("train", "--problem", name, "--bs", 8, "--out", "run")
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split())
    assert isinstance(result.exception, SystemExit)


def test_what_seeds_share_is_said_and_recorded(tmp_path):
    result = run("train", *OWN, "--seed", 1, "--max-steps", 1, "--out", "run")
    assert "NOTE: own.py:make_problem seeds torch itself" in result.stderr
    notes = json.loads((tmp_path / "run" / "summary.json").read_text())["notes"]
    assert notes[0].startswith("own.py:make_problem seeds torch itself")
    quiet = run("train", *OWN, "--max-steps", 1, "--out", "first")
    assert "NOTE" not in quiet.stderr


def test_the_model_as_made_is_that_of_seed_0(tmp_path):
    measured = strict(run("measure-noise", *OWN, "--json").stdout)
    assert (measured[0]["checkpoint"], measured[0]["run"]) == (None, "own.py:make_problem")
    assert (measured[0]["step"], measured[0]["learning_rate"]) == (None, None)
    model = build_own_problem(factory_config("own.py:make_problem"), seed=0).model
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    stored = strict(run("measure-noise", "weights.pt", *OWN, "--json").stdout)
    assert stored[0]["simple"] == measured[0]["simple"]
    assert "as made" in run("measure-noise", *OWN).stdout
    assert "as made" in run("sharpness", *OWN).stdout


def test_a_run_with_batch_norm_is_measured_in_evaluation_mode(tmp_path):
    problem = ("--problem", "own.py:normalised")
    trained = run("train", *problem, "--bs", 8, "--epochs", 1, "--lr", 0.1, "--out", "run")
    assert trained.exit_code == 0, trained.output
    result = run("measure-noise", "run", *problem)
    assert result.exit_code == 0, result.output
    assert "B_simple" in result.stdout


def test_a_checkpoint_of_another_problem_is_told_as_one(tmp_path):
    assert run("train", *OWN, "--bs", 8, "--epochs", 1, "--out", "run").exit_code == 0
    result = run("measure-noise", "run", "--problem", "own.py:normalised")
    assert result.exit_code == 1
    assert "is of a training of own.py:make_problem, whose parameters are not" in " ".join(
        result.stderr.split()
    )


def test_a_checkpoint_of_ones_own_needs_its_problem_named():
    run("train", *OWN, "--max-steps", 2, "--out", "run")
    refused = run("measure-noise", "run")
    assert refused.exit_code == 1
    assert "give --problem own.py:make_problem" in " ".join(refused.stderr.split())
    assert strict(run("measure-noise", "run", *OWN, "--json").stdout)[0]["step"] == 2


def test_sharpness_is_held_against_a_rate_that_is_given(tmp_path):
    result = run("sharpness", *OWN, "--lr", 0.1)
    assert "2/η = 20 at lr 0.1" in " ".join(result.stdout.split())
    (entry,) = strict(run("sharpness", *OWN, "--lr", 0.1, "--json").stdout)
    assert (entry["learning_rate"], entry["stable_sharpness"]) == (0.1, 20)
    assert strict(run("sharpness", *OWN, "--json").stdout)[0]["stable_sharpness"] is None
    run("train", *OWN, "--max-steps", 1, "--out", "run")
    known = run("sharpness", "run", *OWN, "--lr", 0.1)
    assert known.exit_code == 2
    assert "says the learning rate it was trained with" in " ".join(known.stderr.split())
    assert run("sharpness", *OWN, "--lr", -1).exit_code == 2


@pytest.mark.pictures
@pytest.mark.slow
def test_sweep_lr_maps_it(tmp_path):
    arguments = ("--bs", 8, "--num-lr", 2, "--lr-min", 0.1, "--lr-max", 1e3, "--seeds", 2)
    result = run("sweep-lr", *OWN, *arguments, "--out", "sweep", "--json")
    assert result.exit_code == 0, result.output
    record = strict(result.stdout)
    assert record["summary"]["problem"]["factory"] == "own.py:make_problem"
    assert any("seeds torch itself" in note for note in record["summary"]["notes"])
    assert (tmp_path / "sweep" / "map.png").exists()
    cells = [path.name for path in (tmp_path / "sweep" / "cells").iterdir()]
    assert len(cells) == 4
    assert all(name.startswith("make_problem-bs8-") for name in cells)
    table = run("sweep-lr", *OWN, *arguments, "--out", "sweep").stdout
    assert "Note: own.py:make_problem seeds torch itself" in " ".join(table.split())
