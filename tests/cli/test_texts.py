import json
import math

import pytest

from noisescale.problems.data import texts
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
    assert "markov, sequences of 12 characters, gpt, seed 0" in printed
    assert f"{summary['test']['bits_per_character']:.4f}" in printed


@pytest.mark.parametrize("command", ["measure-noise", "sharpness"])
def test_its_checkpoint_is_measured(trained, command):
    folder, _ = trained
    (record,) = json.loads(run(command, str(folder), "--num-examples", "20", "--json").stdout)
    assert record["step"] == 12
    assert "hooks" in record.get("engine", "hooks")


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
