"""The command line of `noisescale measure-noise`."""

import re
import sys
from pathlib import Path

import pytest
import torch

from noisescale import load_checkpoint
from tests.helpers.command_line import SMALL, run, strict
from tests.helpers.factory_source import DATASETS, SOURCE

LINE = """
import torch
from noisescale import Examples, Problem

def make_problem():
    model = torch.nn.Linear(1, 1, bias=False).double()
    torch.nn.init.constant_(model.weight, 1.5)
    inputs, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([3.0, 5.0, 2.0])
    loss = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    return Problem(model=model, loss=loss, train=Examples(inputs.double(), targets.double()))
"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield
    sys.modules.pop("a_problem", None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run with step checkpoints, with batch norm so that the mode matters."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = [*SMALL, "--norm", "batch", "--bs", 64, "--lr", "0.2", "--checkpoint-every", 10]
    assert run(*arguments, "--out", folder).exit_code == 0
    return folder


def test_a_checkpoint_needs_nothing_else(trained):
    result = run("measure-noise", trained / "checkpoint.pt")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert (
        "Gradient noise over all 1,297 train examples, population: dataset, engine: hooks" in text
    )
    assert re.search(r"B_simple = tr Σ/\|G\|² [\d,.]+ ", text)
    assert re.search(r"Step 21: B_simple ≈ [\d,.]+ \(dataset\): below it, doubling the batch", text)


def test_a_subset_has_errors_and_everything_can_be_asked_for(trained):
    every = [
        "--num-examples",
        400,
        "--hessian",
        "--num-probes",
        8,
        "--per-layer",
        "--per-class",
        "--bs",
        7,
    ]
    result = run(
        "measure-noise", trained / "checkpoint.pt", *every, "--json", "--plot", "picture.png"
    )
    assert result.exit_code == 0, result.output
    (entry,) = strict(result.stdout)
    assert entry["num_examples"] == 400
    assert entry["simple"]["low"] < entry["simple"]["value"] < entry["simple"]["high"]
    for name in ("full", "hessian_covariance_trace", "gradient_curvature", "max_learning_rate"):
        assert entry[name]["stderr"] > 0
    assert [rate["batch_size"] for rate in entry["optimal_learning_rates"]] == [7]
    layers = entry["per_layer"]
    assert sum(row["gradient_variance"] for row in layers) == pytest.approx(
        entry["gradient_variance"]["value"]
    )
    assert [row["class"] for row in entry["per_class"]] == list(range(10))
    assert Path("picture.png").stat().st_size > 10_000
    text = " ".join(run("measure-noise", trained / "checkpoint.pt", *every).stdout.split())
    for part in ("ε_opt(B = 7)", "share of tr Σ", "Largest shares", "B_noise ≈", "at B = 7 has lr"):
        assert part in text


def test_a_run_folder_goes_along_training(trained):
    result = run("measure-noise", trained, "--split", "test", "--plot", "along.svg")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "population: distribution" in text
    assert re.search(r" 10 [\d.]+ .* 20 [\d.]+ .* 21 [\d.]+", text)
    assert Path("along.svg").exists()
    exact = run("measure-noise", trained, "--per-layer", "--per-class", "--plot", "exact.png")
    assert exact.exit_code == 0, exact.output
    same = run(
        "measure-noise",
        trained,
        "--split",
        "test",
        "--dtype",
        "float64",
        "--engine",
        "vmap",
        "--json",
    )
    entries = strict(same.stdout)
    assert [entry["step"] for entry in entries] == [10, 20, 21]
    assert {entry["engine"] for entry in entries} == {"vmap"}


def test_the_unresolved_is_said_aloud(trained):
    result = run("measure-noise", trained / "checkpoint.pt", "--num-examples", 5)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "B_simple = tr Σ/|G|² not resolved" in text
    assert re.search(
        r"is not resolved \(dataset\): 5 examples cannot tell \|G\|² from zero: .* would", text
    )


def test_anybodys_model_with_a_state_dict(tmp_path):
    Path("a_problem.py").write_text(SOURCE)
    torch.manual_seed(0)
    torch.save(
        {f"module.{name}": value for name, value in torch.nn.Linear(3, 1).state_dict().items()},
        "w.pt",
    )
    result = run("measure-noise", "w.pt", "--problem", "a_problem:make_problem", "--per-layer")
    assert result.exit_code == 0, result.output
    assert "over all 8 train examples" in result.stdout
    assert "bias" in result.stdout
    both = run(
        "measure-noise", "w.pt", "w.pt", "--problem", "a_problem:make_problem", "--plot", "p.png"
    )
    assert both.exit_code == 0, both.output
    assert "λ_max" in run("sharpness", "w.pt", "--problem", "a_problem.py:make_problem").stdout


def test_a_checkpoint_that_cannot_be_measured_is_a_row_with_its_reason(trained, tmp_path):
    content = torch.load(trained / "checkpoint.pt", weights_only=True)
    content["params"]["1.bias"][:] = torch.nan
    content["step"] = 99
    torch.save(content, "diverged.pt")
    result = run("measure-noise", trained / "checkpoint.pt", "diverged.pt", "--json")
    assert result.exit_code == 0, result.output
    good, bad = strict(result.stdout)
    assert good["reason"] is None
    assert "1.bias are not finite" in bad["reason"]
    assert bad["simple"] is None
    drawn = run("measure-noise", trained / "checkpoint.pt", "diverged.pt", "--plot", "picture.png")
    assert drawn.exit_code == 0, drawn.output
    assert good.keys() == bad.keys()
    assert "not measured" in run("measure-noise", trained / "checkpoint.pt", "diverged.pt").stdout
    alone = run("measure-noise", "diverged.pt")
    assert alone.exit_code == 1
    assert "Error: diverged.pt, step 99: the parameters 1.bias are not finite" in alone.stderr


def test_without_a_checkpoint_the_model_is_measured_as_it_is_made():
    """A line y = wx: gradients 2(w x − y)x, whose moments are two numbers each."""
    Path("a_problem.py").write_text(LINE)
    arguments = ["--problem", "a_problem.py:make_problem", "--json"]
    result = run("measure-noise", *arguments)
    assert result.exit_code == 0, result.output
    (entry,) = strict(result.stdout)
    x, y = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([3.0, 5.0, 2.0]).double()
    gradients = 2 * (1.5 * x - y) * x
    square, variance = gradients.mean() ** 2, gradients.var(correction=0)
    assert entry["simple"]["value"] == pytest.approx(float(variance / square))
    assert entry["checkpoint"] is None
    assert entry["step"] is None
    assert entry["run"] == "a_problem.py:make_problem"
    (curvature,) = strict(run("sharpness", *arguments).stdout)
    assert curvature["eigenvalues"][0]["value"] == pytest.approx(float((2 * x * x).mean()))
    assert curvature["checkpoint"] is None
    for command in ("measure-noise", "sharpness"):
        result = run(command, *arguments[:2])
        assert result.exit_code == 0, result.output
        assert "B_simple" in result.stdout or "λ_max" in result.stdout
    drawn = run("sharpness", *arguments[:2], "--density", "--plot", "picture.png")
    assert drawn.exit_code == 0, drawn.output


def test_a_folder_of_a_model_is_one_checkpoint_and_not_a_run():
    Path("a_problem.py").write_text(LINE)
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    torch.save({"weight": torch.tensor([[2.5]]).double()}, "model/pytorch_model.bin")
    result = run("measure-noise", "model", "--problem", "a_problem.py:make_problem", "--json")
    assert result.exit_code == 0, result.output
    (entry,) = strict(result.stdout)
    x, y = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([3.0, 5.0, 2.0]).double()
    gradients = 2 * (2.5 * x - y) * x
    assert entry["squared_gradient_norm"]["value"] == pytest.approx(float(gradients.mean() ** 2))
    assert entry["checkpoint"] == "model/pytorch_model.bin"
    Path("model/pytorch_model.bin").unlink()
    result = run("measure-noise", "model", "--problem", "a_problem.py:make_problem")
    assert result.exit_code == 1
    assert "nor model.safetensors" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["absent.pt"], "absent.pt: no such file", 1),
        (["state.pt"], "give --problem module:factory", 1),
        (["state.pt", "--problem", "absent:make"], "No module named 'absent'", 2),
        (
            ["state.pt", "--problem", "a_problem:make_problem"],
            "weight has shape (2, 2) instead of (1, 3)",
            1,
        ),
        (["text.pt"], "cannot be read as a checkpoint", 1),
        (["RUN", "--num-examples", "1"], "the covariance of gradients takes at least 2", 2),
        (["RUN", "--num-examples", "9999"], "the train split has 1297", 2),
        (["RUN", "--split", "valid"], "this problem has train, validation, test", 2),
        (["RUN", "--engine", "fast"], "'fast' is not one of", 2),
        (["RUN", "--num-probes", "1"], "1 is not in the range x>=2", 2),
        (["RUN", "--plot", "picture.txt"], "give a file name that ends in .png", 2),
        (["RUN", "--device", "cuda"], "torch sees no GPU here", 2),
        ([], "Missing argument 'CHECKPOINT...'. Give one, or --problem", 2),
    ],
)
def test_bad_usage_is_one_message(trained, arguments, message, code, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Path("text.pt").write_text("no checkpoint")
    Path("a_problem.py").write_text(SOURCE)
    torch.save({"weight": torch.zeros(2, 2), "bias": torch.zeros(1)}, "state.pt")
    found = [trained / "checkpoint.pt" if argument == "RUN" else argument for argument in arguments]
    result = run("measure-noise", *found)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "size", "draws"), [([], 20, "one draw"), (["--augmentations", 3], 60, "3 draws")]
)
def test_a_data_set_of_augmented_dicts_is_read_as_needed(arguments, size, draws):
    Path("a_problem.py").write_text(DATASETS)
    torch.save({"weight": torch.eye(3, 4), "bias": torch.zeros(3)}, "state.pt")
    command = ["measure-noise", "state.pt", "--problem", "a_problem.py:make_problem", *arguments]
    result = run(*command)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert f"Gradient noise over all {size} train examples" in text
    assert f"change from read to read, as by augmentation: measured on {draws} of each." in text
    (entry,) = strict(run(*command, "--json").stdout)
    assert entry["num_examples"] == entry["population_size"] == size
    sharpness = run("sharpness", "state.pt", "--problem", "a_problem.py:make_problem")
    assert "measured on one draw of each." in " ".join(sharpness.stdout.split())


def test_help_has_examples():
    text = run("measure-noise", "--help").stdout
    assert "torchrun --nproc-per-node" in text
    assert "--problem my_module:make_problem" in text
    assert "measure-noise --problem my_file.py:make_problem" in text


def test_our_checkpoints_are_left_as_they_were(trained):
    before = load_checkpoint(trained)
    run("measure-noise", trained / "checkpoint.pt", "--hessian", "--num-examples", 200)
    after = load_checkpoint(trained)
    assert all(torch.equal(before.params[name], after.params[name]) for name in before.params)


def test_an_adam_that_diverged_does_not_stop_the_others():
    """Its second moments are no preconditioner, which is said of its checkpoint alone."""
    for name, rate in (("good", 1e-3), ("diverged", 1e-3)):
        settings = ["--optimizer", "adam", "--lr", rate, "--out", name]
        assert run(*SMALL, *settings).exit_code == 0
    path = Path("diverged/checkpoint.pt")
    content = torch.load(path, weights_only=True)
    for state in content["optimizer"]["state"].values():
        state["exp_avg_sq"].fill_(torch.inf)
    torch.save(content, path)
    both = ["measure-noise", "good/checkpoint.pt", path, "--num-examples", 50]
    result = run(*both, "--json")
    assert result.exit_code == 0, result.output
    good, diverged = strict(result.stdout)
    assert good["preconditioned"]["gradient_variance"]["value"] > 0
    assert diverged["preconditioned"] is None
    assert diverged["gradient_variance"]["value"] > 0
    assert "is not positive and finite throughout" in " ".join(run(*both).output.split())
