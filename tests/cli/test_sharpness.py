"""The command line of `noisescale sharpness` and of sharpness along training."""

import copy
import json
import math
import re
from pathlib import Path

import pytest
import torch

from noisescale import (
    SharpnessOptions,
    build_problem,
    load_checkpoint,
    measure_sharpness,
    read_sharpness,
)
from noisescale.training.updates.preparation import build_optimizer
from tests.helpers.command_line import SMALL, run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short run of two batch sizes with step checkpoints."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = [*SMALL, "--bs", 64, "--lr", "0.2", "--checkpoint-every", 10, "--out", folder]
    assert run(*arguments).exit_code == 0
    return folder


def test_sharpness_of_a_checkpoint_is_a_table_and_a_sentence(trained):
    result = run("sharpness", trained / "checkpoint.pt", "--bottom", 1)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "Hessian of the mean loss over all 1,297 train examples" in text
    assert "λ_max" in text
    assert "λ_min" in text
    assert "2/η = 10 at lr 0.2: below the edge." in text


@pytest.mark.slow
def test_sharpness_of_a_run_folder_goes_along_training(trained):
    every = [
        "--trace",
        "--batch-sharpness",
        16,
        "--density",
        "--phi",
        "--bottom",
        1,
        "--num-examples",
        100,
    ]
    result = run("sharpness", trained, *every, "--json", "--plot", "picture.png")
    assert result.exit_code == 0, result.output
    entries = json.loads(
        result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON")
    )
    assert [entry["step"] for entry in entries] == [10, 20, 21]
    assert entries[0]["checkpoint"].endswith("checkpoints/step-10.pt")
    assert all(entry["stable_sharpness"] == 10 for entry in entries)
    assert all(entry["eigenvalues"][0]["stderr"] > 0 for entry in entries)
    assert all(len(entry["phi"]) == 4 for entry in entries)
    assert Path("picture.png").stat().st_size > 10_000
    table = run("sharpness", trained, *every).stdout
    for quantity in (
        "trace",
        "squared",  # Frobenius norm; words are folded where there is little room
        "batch",  # sharpness, B = 16
        "gradient-noise",
        "φ (%",
    ):
        assert table.count(quantity) >= 3, table


def test_sharpness_says_what_has_not_converged(trained):
    result = run("sharpness", trained / "checkpoint.pt", "--max-matvecs", 2)
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    assert "NOT CONVERGED" in text
    assert "cannot be judged" in text
    assert "raise --max-matvecs" in text


def test_sharpness_measures_buffers_of_the_checkpoint():
    """Batch norm's running statistics are part of the function that is measured."""
    assert run(*SMALL, "--norm", "batch", "--out", "run").exit_code == 0
    (entry,) = json.loads(run("sharpness", "run", "--json").stdout)
    metrics = Path("run/metrics.csv").read_text().splitlines()
    final = float(next(line for line in metrics[::-1] if ",train," in line).split(",")[3])
    assert entry["loss"] == pytest.approx(final, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--split", "valid"], "split 'valid': this problem has train, validation, test", 2),
        (["--top", "999999999"], "top 999999999: the model has P =", 2),
        (["--num-examples", "5000"], "the train split has 1297; give 1 to 1297", 2),
        (["--batch-sharpness", "5000"], "batch size 5000: there are 1297 examples", 2),
        (["--plot", "picture.txt"], "picture.txt: give a file name that ends in .png", 2),
        (
            ["--top", "0", "--trace", "--plot", "picture.png"],
            "--plot: one checkpoint's trace alone makes no picture; add --top",
            2,
        ),
        (["--rtol", "2"], "rtol 2.0: give a number between 0 and 1", 2),
        (["nowhere.pt"], "nowhere.pt: no such file", 1),
        (["--top", "0"], "nothing to measure", 2),
    ],
)
def test_sharpness_refuses_with_one_message(trained, arguments, message, code):
    result = run("sharpness", trained / "checkpoint.pt", *arguments)
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_sharpness_of_a_diverged_run_names_the_parameters():
    assert run(*SMALL, "--bs", 1, "--lr", "1e30", "--out", "run").exit_code == 0
    result = run("sharpness", "run")
    assert result.exit_code == 1
    assert re.search(
        r"run/checkpoint\.pt, step \d+: the parameters .* are not finite",
        " ".join(result.stderr.split()),
    )


@pytest.mark.pictures
def test_train_measures_sharpness_on_the_way():
    result = run(*SMALL, "--bs", 64, "--measure-sharpness-every", 10, "--out", "run")
    assert result.exit_code == 0
    assert "λ_max" in result.stderr
    assert Path("run/sharpness.csv").read_text().count("\n") == 1 + 4
    assert Path("run/sharpness.png").exists()
    assert run(*SMALL, "--out", "plain").exit_code == 0
    again = run(*SMALL, "--out", "plain", "--measure-sharpness-every", 10)
    assert again.exit_code == 0
    assert "is finished and has no sharpness.csv" in " ".join(again.stderr.split())


def test_sharpness_measures_what_it_can_and_says_what_it_cannot(trained):
    assert run(*SMALL, "--bs", 1, "--lr", "1e30", "--out", "diverged").exit_code == 0
    result = run("sharpness", trained / "checkpoint.pt", "diverged")
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert re.search(r"diverged, step \d+: not measured. the parameters .* are not finite", text)
    assert "below the edge" in text
    assert str(trained) in text.replace(" ", "")
    entries = json.loads(run("sharpness", trained / "checkpoint.pt", "diverged", "--json").stdout)
    assert [entry["reason"] is None for entry in entries] == [True, False]
    assert entries[0].keys() == entries[1].keys()


def test_sharpness_of_one_example_is_not_called_exact(trained):
    result = run("sharpness", trained / "checkpoint.pt", "--num-examples", 1)
    assert result.exit_code == 0
    assert "unknown" in result.stdout
    assert "cannot be judged" in " ".join(result.stdout.split())


def test_the_limit_is_named_for_what_it_is():
    assert run(*SMALL, "--momentum", "0.9", "--weight-decay", "4", "--out", "run").exit_code == 0
    text = " ".join(run("sharpness", "run").stdout.split())
    assert "2(1+m)/η − weight decay = 376 at lr 0.01" in text
    assert (
        run(
            *SMALL, "--lr", "1", "--weight-decay", "2", "--max-steps", 2, "--out", "beyond"
        ).exit_code
        == 0
    )
    beyond = run("sharpness", "beyond")
    assert beyond.exit_code == 0
    assert "limit" not in beyond.stdout
    assert run(*SMALL, "--norm", "batch", "--out", "norm").exit_code == 0
    normed = run("sharpness", "norm", "--json")
    assert (
        json.loads(normed.stdout)[0]["stable_sharpness"] is None
    )  # training descends another loss


@pytest.mark.parametrize("command", ["sharpness", "measure-noise"])
def test_parameters_are_chosen_by_name_or_pattern(trained, command):
    result = run(command, trained / "checkpoint.pt", "--param", "*.weight", "--param", "fc1.*")
    assert result.exit_code == 2
    assert "param filter 'fc1.*': no parameter that requires a gradient" in result.output
    result = run(command, trained / "checkpoint.pt", "--param", "*.weight", "--json")
    assert result.exit_code == 0, result.output
    (entry,) = json.loads(result.stdout)
    assert any("alone, the others being constants" in note for note in entry["notes"])


def test_phi_by_filters_after_10_and_50_iterations(trained):
    few = ("--num-examples", 50, "--top", 0, "--filter-normalised", "--phi-iterations", 50)
    result = run("sharpness", trained / "checkpoint.pt", *few)
    assert result.exit_code == 0, result.output
    assert [" ".join(line.split()) for line in result.stdout.splitlines() if "φ" in line] != []
    assert "after 10 iterations" in result.stdout
    assert "after 50 iterations" in result.stdout
    (entry,) = json.loads(run("sharpness", trained / "checkpoint.pt", *few, "--json").stdout)
    assert [(phi["space"], phi["epsilon"]) for phi in entry["phi"]] == [
        ("filter", 0.01),
        ("filter", 0.05),
    ]
    refused = run("sharpness", trained / "checkpoint.pt", "--phi-iterations", 50)
    assert refused.exit_code == 2
    assert "give --phi or --filter-normalised too" in refused.stderr


@pytest.fixture(scope="module")
def with_adamw(tmp_path_factory):
    """A short run of AdamW whose sharpness was tracked."""
    folder = tmp_path_factory.mktemp("adamw") / "run"
    options = ["--optimizer", "adamw", "--weight-decay", "0.1", "--lr", "1e-3"]
    tracked = ["--measure-sharpness-every", 10, "--sharpness-examples", 200, "--out", folder]
    result = run(*SMALL, *options, *tracked)
    assert result.exit_code == 0, result.output
    assert "under P" in result.stderr
    return folder


def test_the_curvature_under_adamw_is_held_against_its_limit(with_adamw):
    limit = 19 * (2 / 1e-3 - 0.1)
    result = run("sharpness", with_adamw / "checkpoint.pt", "--num-examples", 200, "--json")
    (entry,) = json.loads(result.stdout)
    under = entry["preconditioned"]
    assert under["optimizer"] == "AdamW"
    assert under["stable_sharpness"] == pytest.approx(limit)
    assert under["ratio"]["value"] == pytest.approx(under["largest"]["value"] / limit)
    assert entry["stable_sharpness"] is None  # of the plain Hessian
    text = " ".join(run("sharpness", with_adamw / "checkpoint.pt").stdout.split())
    assert "λ_max(P^½HP^½)" in text
    assert "the limit of full-batch stability of AdamW" in text
    plain = run("sharpness", with_adamw / "checkpoint.pt", "--preconditioner", "none", "--json")
    assert json.loads(plain.stdout)[0]["preconditioned"] is None


def test_a_run_of_adamw_has_columns_of_its_own_from_the_first_step_on(with_adamw):
    rows = read_sharpness(with_adamw)
    assert math.isnan(rows[0]["preconditioned_eigenvalue"])
    assert all(row["preconditioned_converged"] == 1 for row in rows[1:])
    assert all(row["preconditioned_stable"] == pytest.approx(37998.1) for row in rows[1:])
    checkpoint = load_checkpoint(with_adamw)
    problem = build_problem(checkpoint.problem)
    options = SharpnessOptions(num_examples=200)
    found = measure_sharpness(
        problem, checkpoint.params, options, preconditioner=checkpoint.optimizer
    )
    last = rows[-1]
    assert last["preconditioned_eigenvalue"] == pytest.approx(
        found.preconditioned.largest.value.value, rel=1e-2
    )


def test_a_file_of_an_optimizer_is_taken_and_another_is_refused(with_adamw):
    state = load_checkpoint(with_adamw).optimizer
    torch.save(state, "state.pt")
    where = [with_adamw / "checkpoint.pt", "--num-examples", 50, "--json", "--preconditioner"]
    (entry,) = json.loads(run("sharpness", *where, "state.pt").stdout)
    assert entry["preconditioned"]["optimizer"] == "AdamW"
    result = run("sharpness", *where, "nowhere.pt")
    assert result.exit_code == 1
    assert "there is no nowhere.pt" in result.stderr


def test_the_critical_rate_is_told_and_is_json(trained, with_adamw):
    for run_folder in (trained, with_adamw):
        where = ["sharpness", run_folder / "checkpoint.pt", "--critical", "--top", 0]
        (entry,) = json.loads(run(*where, "--json").stdout)
        rate = entry["critical"]["learning_rate"]
        assert rate["low"] < rate["value"] < rate["high"] < 1.03 * rate["low"]
        assert entry["critical"]["value"]["value"] == pytest.approx(2 / rate["value"])
        text = " ".join(run(*where, env={"COLUMNS": "120"}).stdout.split())
        assert "critical sharpness 2/η_c" in text
        assert "raises the loss from lr" in text


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="a torch without Muon")
def test_the_critical_rate_of_muon_is_along_its_own_step():
    options = ["--optimizer", "muon", "--lr", "1e-2", "--max-steps", 5, "--out", "run"]
    assert run(*SMALL, *options).exit_code == 0
    where = ["sharpness", "run/checkpoint.pt", "--critical", "--json"]
    (entry,) = json.loads(run(*where).stdout)
    assert entry["preconditioned"] is None
    rate = entry["critical"]["learning_rate"]
    checkpoint = load_checkpoint("run")
    problem = build_problem(checkpoint.problem)

    def rises(rate):
        model = copy.deepcopy(problem.model)
        model.load_state_dict({**checkpoint.params, **checkpoint.buffers})
        optimizer = build_optimizer(model, checkpoint.training, capturable=False)
        optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))
        for group in optimizer.param_groups:
            group["lr"] = rate
        before = problem.loss(model(problem.train.inputs), problem.train.targets).mean()
        before.backward()
        optimizer.step()
        return problem.loss(model(problem.train.inputs), problem.train.targets).mean() > before

    assert not rises(0.99 * rate["low"])  # Muon itself steps in bfloat16
    assert rises(1.01 * rate["high"])
