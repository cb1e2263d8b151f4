import json
import math

import pytest
import torch

from noisescale import build_problem, load_checkpoint, measure_noise
from noisescale.cli.artefacts.stored import stored_noise
from noisescale.cli.printing.noise import print_noise
from noisescale.problems.data import texts
from tests.helpers import own_problems
from tests.helpers.command_line import run

SMALL = ("--num-train", "60", "--width", "8", "--depth", "1", "--heads", "2", "--context", "12")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the Markov text, and what the command printed."""
    folder = tmp_path_factory.mktemp("text") / "run"
    result = run(
        *("train", "--dataset", "markov", *SMALL, "--tied", "--optimizer", "adamw"),
        *("--lr", "1e-2", "--bs", "10", "--epochs", "2", "--out", str(folder)),
    )
    return folder, result.stdout


def test_a_gpt_is_trained_and_told_in_bits_per_character(trained):
    folder, printed = trained
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["model"], summary["context"], summary["steps"]) == ("gpt", 12, 12)
    for split in ("train", "validation", "test"):
        scores = summary[split]
        assert scores["bits_per_character"] == pytest.approx(scores["loss"] / math.log(2))
    assert "markov, sequences of 12 characters, gpt, 60 training examples, seed 0" in printed
    assert f"{summary['test']['bits_per_character']:.4f}" in printed


@pytest.mark.parametrize("command", ["measure-noise", "sharpness"])
def test_its_checkpoint_is_measured(trained, command):
    folder, _ = trained
    (record,) = json.loads(run(command, str(folder), "--num-examples", "20", "--json").stdout)
    assert record["step"] == 12
    if command == "measure-noise":
        assert "hooks" in record["engine"]
    else:
        assert record["eigenvalues"][0]["value"] > 0


def test_the_scale_of_the_checkpoints_optimizer_stands_beside_the_plain_one(trained):
    folder, _ = trained
    (record,) = json.loads(run("measure-noise", str(folder), "--json").stdout)
    checkpoint = load_checkpoint(folder)
    problem = build_problem(checkpoint.problem)
    problem.model.load_state_dict(checkpoint.params | checkpoint.buffers, strict=False)
    problem.model.head.weight = problem.model.token.weight
    second = {
        name: checkpoint.optimizer["state"][number]["exp_avg_sq"] / (1 - 0.999**12)
        for number, name in enumerate(dict(problem.model.named_parameters()))
    }
    diagonal = {name: 1 / (values.sqrt() + 1e-8) for name, values in second.items()}
    wanted = measure_noise(problem, preconditioner=diagonal).preconditioned.simple.value
    assert record["preconditioned"]["simple"]["value"] == pytest.approx(wanted, rel=1e-4)
    printed = " ".join(run("measure-noise", str(folder)).stdout.split())
    assert "in the geometry of adamw, B_simple in that of the plain gradient" in printed
    plain = run("measure-noise", str(folder), "--preconditioner", "none", "--json").stdout
    assert json.loads(plain)[0]["preconditioned"] is None


def test_an_optimizers_file_beside_anybodys_weights_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "import torch\nfrom noisescale import Examples, Problem\n\n\ndef make():\n"
        "    torch.manual_seed(0)\n"
        "    return Problem(model=torch.nn.Linear(3, 2), train=Examples(torch.randn(40, 3),\n"
        "        torch.randint(0, 2, (40,))), loss=torch.nn.CrossEntropyLoss(reduction='none'))\n"
    )
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    (tmp_path / "checkpoint-1").mkdir()
    torch.save(model.state_dict(), tmp_path / "checkpoint-1" / "pytorch_model.bin")
    torch.save(optimizer.state_dict(), tmp_path / "checkpoint-1" / "optimizer.pt")
    command = ("measure-noise", "--problem", "own.py:make", "checkpoint-1/pytorch_model.bin")
    (found,) = json.loads(run(*command, "--json").stdout)
    assert found["preconditioned"]["simple"]["value"] > 0
    given = run(*command, "--preconditioner", "checkpoint-1/optimizer.pt", "--json")
    assert json.loads(given.stdout)[0]["preconditioned"] == found["preconditioned"]
    absent = run(*command, "--preconditioner", "no-such.pt")
    assert absent.exit_code == 1
    assert "there is no no-such.pt" in absent.stderr


def test_a_file_of_ones_own_needs_no_other_word(tmp_path):
    (tmp_path / "verse.txt").write_text("so long as men can breathe or eyes can see\n" * 30)
    result = run(
        *("train", "--text", str(tmp_path / "verse.txt"), *SMALL, "--max-steps", "2", "--json"),
        *("--out", str(tmp_path / "run")),
    )
    (summary,) = json.loads(result.stdout)
    assert (summary["dataset"], summary["model"]) == ("text", "gpt")


def test_without_file_and_network_the_markov_source_is_said_loudly(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "reachable", lambda urls: False)
    result = run(
        *("train", "--model", "gpt", *SMALL, "--max-steps", "1", "--out", str(tmp_path / "run")),
        *("--data-dir", str(tmp_path)),
    )
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["dataset"] == "markov"
    assert "a Markov source of 2.978 bits per character" in " ".join(result.stderr.split())
    assert any("Markov source" in note for note in summary["notes"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dataset", "text"), "--dataset text without a file: give it as --text FILE"),
        (("--text", "a.txt", "--dataset", "digits"), "--text beside --dataset digits"),
        (("--text", "no-such.txt"), "no-such.txt cannot be read"),
        (("--dataset", "markov", "--model", "cnn"), "model cnn on dataset markov"),
        (("--dataset", "digits", "--heads", "2"), "heads 2 with model mlp"),
        (("--dataset", "markov", "--heads", "5"), "heads 5 of a gpt of width 64"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    result = run("train", *options)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("unit", ["examples", "tokens"])
def test_what_is_read_back_from_json_says_what_was_printed(trained, unit, capsys):
    folder, _ = trained
    few = ("--num-examples", "20", "--hessian", "--num-probes", "4", "--per-layer")
    printed = run("measure-noise", str(folder), *few, "--unit", unit).stdout
    entries = json.loads(run("measure-noise", str(folder), *few, "--json").stdout)
    print_noise(stored_noise(entries), in_tokens=unit == "tokens")
    assert capsys.readouterr().out.split() == printed.split()
    assert "B^P_noise" in printed
    assert "adamw" in printed


def test_tokens_are_asked_for_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr("noisescale.measure_noise", None)  # which is not reached
    factory = f"{own_problems.__file__}:quadratic"
    result = run("measure-noise", "--problem", factory, "--unit", "tokens")
    assert result.exit_code == 2
    assert "does not say how many tokens an example has" in " ".join(result.stderr.split())
