import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from noisescale.problems.data import mnist_files
from noisescale.problems.data.mnist_files import FILES
from noisescale.training.records.tables import read_losses
from tests.helpers.command_line import SMALL, run


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_run_prints_its_table_and_last_of_all_its_folder(tmp_path):
    result = run(*SMALL, "--bs", 64)
    assert result.exit_code == 0
    folder = result.stdout.strip().splitlines()[-1]
    assert folder.startswith("runs/digits-mlp-bs64-lr0.01-")
    assert (tmp_path / folder / "summary.json").exists()
    assert "acc" in result.stdout
    assert "epoch       1  step      21" in result.stderr
    assert "test acc" not in result.stderr


def test_importance_sampling_is_said_and_goes_on():
    arguments = ("--sampling", "importance", "--sampling-floor", 0.5, "--bs", 25, "--imbalance", 4)
    result = run(*SMALL, *arguments, "--measure-noise-every", 50, "--noise-examples", 30)
    assert ", imbalance 4, drawn by importance, seed 0" in result.stdout.splitlines()[0]
    folder = Path(result.stdout.split()[-1])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["sampling"], summary["sampling_floor"]) == ("importance", 0.5)
    assert any("drawn evenly" in note for note in summary["notes"])
    again = run(*SMALL, *arguments, "--resume", folder)
    assert "leave out" in again.stderr
    assert run("train", "--resume", folder).exit_code == 0
    plain = json.loads(run(*SMALL, "--bs", 25, "--json").stdout)[0]
    assert not {"sampling", "sampling_floor", "imbalance"} & set(plain)
    refused = run(*SMALL, "--sampling", "importance", "--bs", "full")
    assert refused.exit_code == 2
    assert "nothing to draw" in refused.stderr


def test_a_subset_is_said_on_the_screen_and_in_the_summary():
    result = run(*SMALL, "--num-train", 100, "--bs", 25, "--max-steps", 4)
    assert "100 training examples" in result.stdout.splitlines()[0]
    summary = json.loads(Path(result.stdout.split()[-1], "summary.json").read_text())
    assert (summary["num_train"], summary["epochs"]) == (100, 1.0)
    whole = json.loads(run(*SMALL, "--max-steps", 1, "--json").stdout)[0]
    assert whole["num_train"] is None


def test_wrong_labels_and_classes_are_said_on_the_screen_and_in_the_summary():
    options = ("--classes", 3, "--label-noise", 0.25, "--max-steps", 4)
    result = run(*SMALL, *options)
    assert result.stdout.splitlines()[0].endswith("3 classes, 25 % wrong labels, seed 0")
    folder = Path(result.stdout.split()[-1])
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["classes"], summary["label_noise"]) == (3, 0.25)
    stored = json.loads((folder / "config.json").read_text())["problem"]
    assert (stored["classes"], stored["label_noise"]) == (3, 0.25)
    assert not {"classes", "label_noise"} & set(
        json.loads(run(*SMALL, "--max-steps", 1, "--json").stdout)[0]
    )


@pytest.mark.parametrize("option", [("--classes", 3), ("--label-noise", 0.2), ("--imbalance", 4)])
def test_a_folder_with_what_is_stored_where_it_is_set_is_another_run_s(option):
    """In either order: such a run in the folder of a plain one, and the reverse."""
    plain = (*SMALL, "--max-steps", 1)
    for place, (first, second) in enumerate((((), option), (option, ()))):
        assert run(*plain, *first, "--out", f"run{place}").exit_code == 0
        refused = run(*plain, *second, "--out", f"run{place}")
        assert refused.exit_code == 1
        assert "holds another run" in refused.stderr


def test_the_accuracy_has_its_interval_and_stored_runs_without_one_are_shown(tmp_path):
    result = run(*SMALL, "--out", "run", env={"COLUMNS": "80"})
    summary = json.loads(Path("run/summary.json").read_text())
    ends = [summary["test"][f"accuracy_{end}"] for end in ("low", "high")]
    assert ends[0] < summary["test"]["accuracy"] < ends[1]
    assert f"{ends[0]:.4f}–{ends[1]:.4f}" in result.stdout
    assert "of its 250 examples" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
    for split in ("train", "validation", "test"):  # as an earlier version left it
        for name in ("accuracy_low", "accuracy_high", "num_examples"):
            del summary[split][name]
    Path("run/summary.json").write_text(json.dumps(summary))
    again = run(*SMALL, "--out", "run")
    assert again.exit_code == 0
    assert "interval" not in again.stdout


def test_several_batch_sizes_are_compared_and_divergence_does_not_stop_the_rest():
    arguments = [
        "--bs",
        "1",
        "--bs",
        "full",
        "--bs",
        "1",
        "--lr",
        "1e30",
        "--out",
        "cases",
        "--json",
    ]
    result = run(*SMALL, *arguments)
    assert result.exit_code == 0
    summaries = json.loads(
        result.stdout, parse_constant=lambda name: pytest.fail(f"{name} is not strict JSON")
    )
    assert [summary["run"] for summary in summaries] == ["cases/bs1", "cases/bsfull"]
    assert [summary["batch_size"] for summary in summaries] == [1, "full"]
    assert summaries[0]["diverged_at_step"] is not None
    assert (
        summaries[1]["diverged_at_step"] == 1
    )  # its only update's own loss was finite, the model's is not
    table = run(*SMALL, *arguments[:-1]).stdout  # what is stored, as a table
    assert "B = 1 diverged at step" in table
    assert "argmax over nan returns class 0" in " ".join(table.split())


def test_the_same_command_again_prints_what_is_stored():
    first = run(*SMALL, "--out", "run")
    again = run(*SMALL, "--out", "run")
    assert again.stdout == first.stdout
    assert "epoch" not in again.stderr
    refused = run(*SMALL, "--out", "run", "--lr", "0.5")
    assert refused.exit_code == 1
    assert "training.learning_rate is 0.01 there, 0.5 here" in refused.stderr
    assert run(*SMALL, "--out", "run", "--lr", "0.5", "--force").exit_code == 0


def test_resume_takes_the_runs_own_settings():
    run(*SMALL, "--out", "run", "--bs", "64")
    resumed = run("train", "--resume", "run", "--json")
    assert resumed.exit_code == 0
    assert json.loads(resumed.stdout)[0]["batch_size"] == 64
    refused = run("train", "--resume", "run", "--lr", "0.5")
    assert refused.exit_code == 2
    assert "leave out --lr" in refused.stderr


def test_the_preset_is_the_study_and_given_options_override_it(mnist_dir):
    options = [
        "--preset",
        "three-cases",
        "--max-steps",
        "1",
        "--epochs",
        "2",
        "--width",
        "4",
        "--data-dir",
        mnist_dir,
    ]
    result = run("train", *options, "--json")
    summaries = json.loads(result.stdout)
    assert [summary["batch_size"] for summary in summaries] == [1024, 32, 1]
    for summary in summaries:
        assert (summary["pixel_scale"], summary["learning_rate"], summary["dataset"]) == (
            "raw",
            1e-3,
            "mnist",
        )
        config = json.loads((Path(summary["run"]) / "config.json").read_text())
        assert config["training"]["epochs"] == 2
    unit = json.loads(run("train", *options, "--bs", "8", "--pixel-scale", "unit", "--json").stdout)
    assert [(summary["batch_size"], summary["pixel_scale"]) for summary in unit] == [(8, "unit")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bs", "0"], "batch size 0|'0': give a whole number of 1 or more, full or adaptive"),
        (["--bs", "-4"], "'-4': give a whole number of 1 or more, full or adaptive"),
        (["--bs", "half"], "'half': give a whole number of 1 or more, full or adaptive"),
        (
            ["--bs", "1298"],
            "batch size 1298: there are 1297 training examples; give 1 to 1297, or full",
        ),
        (["--lr", "0"], "learning rate 0.0: give a number above 0 and below"),
        (["--lr", "nan"], "learning rate nan"),
        (["--lr", "fast"], "'fast' is not a valid float"),
        (["--epochs", "0"], "epochs 0: give a whole number of 1 or more"),
        (
            ["--dataset", "imagenet"],
            "'imagenet' is not one of 'auto', 'mnist', 'fashion-mnist', 'digits'",
        ),
        (["--model", "vit"], "'vit' is not one of 'mlp', 'cnn'"),
        (["--model", "cnn", "--depth", "4"], "give a depth of at most 3"),
        (["--model", "cnn", "--depth", "1000000000000"], "give 10,000 layers at most"),
        (["--norm", "batch", "--bs", "1"], "leave a batch of one"),
        (["--norm", "batch", "--bs", "2"], "leave a batch of one"),
        (["--lr", "1e300"], "learning rate 1e\\+300"),
        (["--num-train", "5000"], "digits has 1297 training images"),
        (["--momentum", "0.9", "--optimizer", "adam"], "only sgd takes a momentum"),
        (["--checkpoint-every", "0"], "0 is not in the range x>=1"),
        (["--resume", "nowhere"], "Directory 'nowhere' does not exist"),
    ],
)
def test_bad_usage_exits_with_2_and_one_clear_message(arguments, message):
    result = run(*SMALL, *arguments)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.stderr.split()))
    assert "Traceback" not in result.output
    assert not Path("runs").exists()


def test_a_later_case_that_cannot_work_is_refused_before_the_first_trains():
    result = run(*SMALL, "--bs", "64", "--bs", "1298", "--out", "cases")
    assert result.exit_code == 2
    assert "batch size 1298" in result.stderr
    assert not Path("cases").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said_so():
    result = run(*SMALL, "--device", "cuda")
    assert result.exit_code == 2
    assert "torch sees no GPU here" in result.stderr


def test_failures_exit_with_1_and_one_clear_message(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("")
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        (raw / name).write_text("not MNIST")
    run(*SMALL, "--out", "unfinished")
    (tmp_path / "unfinished" / "summary.json").unlink()
    (tmp_path / "unfinished" / "checkpoint.pt").write_bytes(b"PK\x03\x04 cut short")
    for arguments, message in [
        ([*SMALL, "--out", "folder"], "thesis.tex"),
        ([*SMALL, "--out", "file/run"], "Not a directory"),
        ([*SMALL, "--width", "100000000000"], "not enough memory"),
        (["train", "--resume", "folder"], "folder has no config.json"),
        (
            ["train", "--dataset", "mnist", "--data-dir", "data"],
            "train-images-idx3-ubyte is damaged",
        ),
        (
            ["train", "--data-dir", "data"],
            "train-images-idx3-ubyte is damaged",
        ),  # auto never falls back then
        (["train", "--resume", "unfinished"], "cannot be read as a checkpoint"),
    ]:
        result = run(*arguments)
        assert result.exit_code == 1, (arguments, result.output)
        assert message in result.stderr
        assert "Traceback" not in result.output


def test_where_mnist_cannot_be_had_auto_says_so_loudly_and_in_the_record(tmp_path, monkeypatch):
    monkeypatch.setattr(mnist_files.SOURCES["mnist"].dataset, "mirrors", ["http://127.0.0.1:9/"])
    result = run(
        "train", "--width", "8", "--epochs", "1", "--data-dir", tmp_path / "none", "--json"
    )
    assert result.exit_code == 0
    assert "NOTE: MNIST cannot be had" in result.stderr
    (summary,) = json.loads(result.stdout)
    assert summary["dataset"] == "digits"
    assert "MNIST cannot be had" in summary["notes"][0]


def test_events_for_tensorboard_hold_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(*SMALL, "--out", "run", "--log-dir", "events")
    events = EventAccumulator(str(tmp_path / "events" / "run"))
    events.Reload()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert events.Scalars("accuracy/test")[-1].value == pytest.approx(summary["test"]["accuracy"])
    assert [event.step for event in events.Scalars("loss/train")] == [0, summary["steps"]]
    batches, losses = events.Scalars("loss/batch"), read_losses(tmp_path / "run")
    # of so few steps each is there by itself
    assert [event.step for event in batches] == losses["step"].tolist()
    assert [event.value for event in batches] == pytest.approx(losses["loss"].tolist())


def test_without_tensorboard_log_dir_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    result = run(*SMALL, "--out", "run", "--log-dir", "events")
    assert result.exit_code == 2
    assert "pip install 'noisescale[tensorboard]'" in " ".join(result.stderr.split())


@pytest.mark.parametrize("command", [[], ["train"]])
def test_help_fits_a_terminal_and_shows_examples(command):
    result = run(*command, "--help", terminal_width=100)
    assert result.exit_code == 0
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
    if command:
        assert "noisescale train --bs 32" in result.stdout


@pytest.mark.processes
def test_python_dash_m_is_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "noisescale", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("noisescale, version ")


@pytest.mark.pictures
def test_several_batch_sizes_leave_a_table_and_a_picture_beside_their_folders():
    result = run(*SMALL, "--bs", 64, "--bs", "full", "--out", "cases", "--json")
    summaries = json.loads(result.stdout)
    table = pd.read_csv("cases/comparison.csv")
    assert table["run"].tolist() == ["bs64", "bsfull"]
    assert table["batch_size"].tolist() == ["64", "full"]
    assert table["steps"].tolist() == [summary["steps"] for summary in summaries]
    for split in ("train", "validation", "test"):
        losses = [summary[split]["loss"] for summary in summaries]
        assert table[f"{split}_loss"].tolist() == pytest.approx(losses)
    assert table["diverged_at_step"].isna().all()
    assert Path("cases/comparison.png").read_bytes().startswith(b"\x89PNG")
    before = Path("cases/comparison.csv").read_bytes()
    assert run(*SMALL, "--bs", 64, "--bs", "full", "--out", "cases").exit_code == 0
    assert Path("cases/comparison.csv").read_bytes() == before
    Path("cases").rename("moved")  # the table names its runs as seen from where it lies
    drawn = run("plot", "moved/comparison.csv", "--format", "svg")
    assert drawn.stdout.split() == ["moved/comparison.svg"]
    assert "B = full" in Path("moved/comparison.svg").read_text()
    Path("moved/bs64/config.json").unlink()
    lost = run("plot", "moved/comparison.csv")
    assert lost.exit_code == 1
    assert "moved/bs64 is no run's folder any more" in " ".join(lost.stderr.split())


def test_comparisons_in_one_folder_have_names_of_their_own():
    pair = ("--bs", 64, "--bs", "full")
    for sizes in (pair, ("--bs", 32, "--bs", 64), pair):
        assert run(*SMALL, *sizes).exit_code == 0
    first, second = sorted(Path("runs").glob("comparison*.csv"))
    runs = {tuple(pd.read_csv(path)["batch_size"].astype(str)) for path in (first, second)}
    assert runs == {("64", "full"), ("32", "64")}
    assert run(*SMALL, "--bs", 16).exit_code == 0  # one run is no comparison
    assert len(list(Path("runs").glob("comparison*.csv"))) == 2


def test_an_optimizer_and_a_schedule_are_recorded_and_resumed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = ["--optimizer", "rmsprop", "--beta2", 0.9, "--warmup", 4, "--lr-schedule", "cosine"]
    assert run(*SMALL, "--bs", 64, *settings, "--out", "run").exit_code == 0
    stored = json.loads(Path("run/config.json").read_text())["training"]
    assert (stored["optimizer"], stored["beta2"], stored["beta1"]) == ("rmsprop", 0.9, None)
    assert (stored["warmup"], stored["lr_schedule"]) == (4.0, "cosine")
    assert run("train", "--resume", "run").exit_code == 0
    for wrong, says in (
        (["--warmup", 1.5], "whole number of updates, such as 100, or a share"),
        (["--warmup", 1000], "warm-up 1000: the run has 21 updates"),
        (["--beta1", 0.9], "beta1 0.9 with sgd"),
        (["--decay-share", 0.5], "only wsd takes one"),
    ):
        result = run(*SMALL, "--bs", 64, *wrong, "--out", "other")
        assert result.exit_code == 2
        assert says in " ".join(result.output.split())
