"""noisescale recommend, and the block in which critical-batch and sweep-lr end."""

import os
import re
from pathlib import Path

import pytest
import torch

from noisescale.cli.printing.recommend import print_advice
from noisescale.statistics.critical_batch.advice import Advice
from noisescale.studies.recommend import run as study
from tests.helpers import own_problems as problems
from tests.helpers.command_line import run, strict
from tests.helpers.paths import ROOT

QUADRATIC = f"{Path(problems.__file__)}:quadratic"
SMALL = ["recommend", QUADRATIC, "--bs", 64, "--epochs", 1]
ROW = {"aim", "batch_size", "low", "high", "learning_rate"}


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """A folder with an answer, and what the command printed."""
    out = tmp_path_factory.mktemp("recommend") / "out"
    return out, run(*SMALL, "--out", out)


def test_the_answer_ends_in_ten_lines_at_most(answered):
    out, result = answered
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == str(out)
    start = next(index for index, line in enumerate(lines) if line.startswith("B_crit ≈ "))
    block = lines[start:-1]
    assert len(block) <= 10
    aims = ["fewest examples", "balanced", "fewest steps"]
    assert [line[: len(aim)] for line, aim in zip(block[2:5], aims, strict=True)] == aims
    assert re.match(
        r"You use 64: .* times the least examples \(.*\), .* times the steps\.", block[5]
    )
    assert block[-2].startswith("Firmer: noisescale critical-batch --problem")
    assert all(len(line) <= 80 for line in lines[:-1] if "--problem" not in line)


def test_an_estimate_of_the_time_comes_first(answered):
    errors = answered[1].stderr.splitlines()
    assert re.match(r"it takes about .* of at most 5 min 00 s:", errors[1])
    assert errors[2].startswith("- some 6 learning rates")


def test_the_same_command_shows_the_answer_at_once(answered, monkeypatch):
    out, first = answered
    monkeypatch.setattr(study, "look_at", None)
    again = run(*SMALL, "--out", out)
    assert again.stdout == first.stdout
    record = strict(run(*SMALL, "--out", out, "--json").stdout)
    assert [set(row) for row in record["recommendation"]] == [ROW] * 3
    assert {"critical_batch_size", "noise", "learning_rate", "learning_rates", "start"} <= set(
        record["measurements"]
    )


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A run of noisescale train, tracked."""
    out = tmp_path_factory.mktemp("train") / "run"
    settings = ["--dataset", "digits", "--width", 8, "--epochs", 2, "--lr", 0.1]
    assert run("train", *settings, "--measure-noise-every", "log", "--out", out).exit_code == 0
    return out


def test_a_tracked_run_is_read_and_a_point_along_it_measured(tracked):
    record = strict(run("recommend", tracked, "--json").stdout)
    assert [set(row) for row in record["recommendation"]] == [ROW] * 3
    assert record["measurements"]["num_measurements"] > 10
    text = run("recommend", tracked).stdout
    assert "You use 32: " in text
    assert "which nothing tuned" in text

    # without its noise.csv there is the newest checkpoint alone
    (tracked / "noise.csv").rename(tracked / "noise.kept")
    try:
        record = strict(run("recommend", tracked / "checkpoint.pt", "--json").stdout)
        text = run("recommend", tracked).stdout
    finally:
        (tracked / "noise.kept").rename(tracked / "noise.csv")
    assert record["measurements"]["simple"]["value"] > 0
    assert "B_simple ≈ " in text
    assert "Of this point alone" in text


def test_a_schedules_own_rate_goes_with_the_answer_not_the_last_of_it(tmp_path):
    """At the end of a cosine the rate in force is next to none."""
    settings = ["--dataset", "digits", "--width", 8, "--epochs", 2, "--lr", 0.1]
    cosine = [*settings, "--lr-schedule", "cosine", "--out", tmp_path / "run"]
    assert run("train", *cosine).exit_code == 0
    record = strict(run("recommend", tmp_path / "run" / "checkpoint.pt", "--json").stdout)
    balanced = record["recommendation"][1]
    size = balanced["batch_size"]  # ε ∝ 1/(1 + B_crit/B), from 0.1 at 32
    assert balanced["learning_rate"] == pytest.approx(0.1 * (1 + size / 32) / 2, rel=0.03)


def test_weights_of_others_take_their_problem(tmp_path):
    model = problems.quadratic().model
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    refused = run("recommend", tmp_path / "weights.pt")
    assert refused.exit_code == 1
    assert "give --problem" in refused.output
    result = run("recommend", tmp_path / "weights.pt", "--problem", QUADRATIC, "--bs", 64)
    assert result.exit_code == 0, result.output
    assert "You use 64: " in result.stdout
    assert "learning rate" in result.stdout
    assert re.search(
        r"balanced +\d+ +exact +–", result.stdout
    )  # of all there are; no rate is known
    assert f"Firmer: noisescale recommend {QUADRATIC}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense"], "nonsense"),
        (["nofile.py:make"], "there is no file nofile.py"),
        ([QUADRATIC, "--problem", QUADRATIC], "give the problem once"),
        ([QUADRATIC, "--width", 3], "leave out --width"),
        ([QUADRATIC, "--minutes", 0], "--minutes"),
        ([QUADRATIC, "--bs", 5000], "there are 2000 training examples"),
        ([f"{Path(problems.__file__)}:not_a_number"], "is nan"),
        ([f"{Path(problems.__file__)}:tiny"], "takes 4 or more"),
    ],
)
def test_what_cannot_be_is_one_message(tmp_path, arguments, says):
    trains = len(arguments) != 1 or ":" in arguments[0]
    result = run("recommend", *arguments, *(["--out", tmp_path / "out"] if trains else []))
    assert result.exit_code in (1, 2)
    assert says in result.output
    assert "Traceback" not in result.output


def test_a_run_takes_no_options_of_training(tracked):
    result = run("recommend", tracked, "--optimizer", "adam", "--lr", 0.1)
    assert result.exit_code == 2
    assert "leave out --optimizer, --lr" in result.output


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn_digits", "char_gpt"])
def test_the_examples_are_answered(tmp_path, monkeypatch, name):
    text = tmp_path / "input.txt"
    text.write_text((ROOT / "README.md").read_text()[:20_000])
    monkeypatch.setitem(os.environ, "TEXT", str(text))
    problem = f"{ROOT / 'examples' / 'problems' / name}.py:make"
    settings = ["--bs", 64, "--epochs", 1, "--minutes", 3, "--out", tmp_path / "out"]
    result = run(
        "recommend", problem, *settings, *(["--optimizer", "adamw"] * (name == "char_gpt"))
    )
    assert result.exit_code == 0, result.output
    assert "You use 64: " in result.stdout


@pytest.mark.parametrize("name", ["cnn_digits", "char_gpt"])
def test_the_examples_make_a_problem_that_trains(tmp_path, monkeypatch, name):
    from noisescale import TrainConfig, train
    from noisescale.problems.factory import load_problem

    text = tmp_path / "input.txt"
    text.write_text((ROOT / "README.md").read_text()[:20_000])
    monkeypatch.setitem(os.environ, "TEXT", str(text))
    problem = load_problem(f"{ROOT / 'examples' / 'problems' / name}.py:make")
    config = TrainConfig(batch_size=8, max_steps=2)
    (last,) = list(train(problem, config))
    assert last.step == 2
    assert last.diverged_at_step is None


def test_a_command_to_be_copied_is_in_one_piece_on_a_narrow_screen(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    command = "noisescale critical-batch --problem a/long/path/my_model.py:make --optimizer adamw"
    print_advice(Advice(heading="B_crit by runs:", reason="none was made", firmer=command), ("so",))
    assert f"Firmer: {command}\n" in capsys.readouterr().out


def test_a_schedule_follows_the_answer_of_a_tracked_run(tracked, tmp_path):
    text = run("recommend", tracked, "--schedule", "levanter").stdout
    assert "Firmer: " in text[: text.index("# B(t)")]
    assert "  train_batch_size:\n    - start: 0\n      value: " in text
    planned = strict(
        run("recommend", tracked, "--schedule", "lightning", "--multiple-of", 8, "--json").stdout
    )["schedule"]
    assert planned["project"] == "lightning"
    assert all(stage["batch_size"] % 8 == 0 for stage in planned["stages"])
    assert planned["text"].splitlines()[-1].startswith("GradientAccumulationScheduler(")
    measured = run("measure-noise", tracked, "--num-examples", 50, "--schedule", "lightning")
    assert measured.stdout.splitlines()[-1].startswith("GradientAccumulationScheduler(")
    (*_, entry) = strict(
        run(
            "measure-noise", tracked, "--num-examples", 50, "--schedule", "levanter", "--json"
        ).stdout
    )
    assert entry["schedule"]["project"] == "levanter"
    assert entry["advice"]["firmer"].startswith("noisescale critical-batch --dataset digits")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("RUN", "--multiple-of", 8), "--multiple-of goes with --schedule"),
        (("RUN", "--schedule", "megatron"), "not told how many an example has"),
        (("RUN/checkpoint.pt", "--schedule", "deepspeed"), "is not one of"),
        (("--dataset", "digits", "--schedule", "olmo"), "--schedule without a run"),
        (("RUN", "--schedule", "levanter", "--multiple-of", 99_999), "give 1297 at most"),
    ],
)
def test_a_schedule_that_cannot_be_says_why(tracked, arguments, says):
    words = [str(word).replace("RUN", str(tracked)) for word in arguments]
    result = run("recommend", *words)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_a_run_that_was_not_tracked_has_no_schedule(tmp_path):
    out = tmp_path / "run"
    assert (
        run("train", "--dataset", "digits", "--width", 4, "--max-steps", 2, "--out", out).exit_code
        == 0
    )
    for command in ("recommend", "measure-noise"):
        result = run(command, out, "--schedule", "olmo")
        assert result.exit_code == 2
        assert "that was tracked, by --measure-noise-every log" in " ".join(result.output.split())
