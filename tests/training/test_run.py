import gc
import io
import json
import os
import signal
import subprocess
import sys
import time
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from noisescale.errors import CheckpointError, RunFolderBusyError, RunFolderError, SettingError
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.problems.sampling import Batches
from noisescale.training import run as module
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint, save_checkpoint
from noisescale.training.records.folder import folder_state
from noisescale.training.records.tables import read_losses
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.noise import NoiseTracking
from noisescale.training.trainer import train
from noisescale.training.updates.in_place import chain
from tests.helpers.processes import unmeasured

PROBLEM = ProblemConfig(dataset="digits", width=16)
TRAINING = TrainConfig(batch_size=100, learning_rate=0.1, epochs=3)


def same_parameters(one, other):
    return all(torch.equal(value, other.params[name]) for name, value in one.params.items())


@pytest.mark.pictures
def test_a_run_leaves_every_file_and_its_numbers_agree(tmp_path):
    summary = run_training(PROBLEM, TRAINING, tmp_path / "run")
    names = {
        "config.json",
        "metrics.csv",
        "losses.csv",
        "confusion.csv",
        "checkpoint.pt",
        "confusion.png",
        ".noisescale.lock",
        "curves.png",
        "summary.json",
    }
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == names
    assert summary == json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (
        summary["dataset"],
        summary["steps"],
        summary["epochs"],
        summary["diverged_at_step"],
    ) == (
        "digits",
        39,
        3,
        None,
    )
    assert summary["environment"]["torch"] == torch.__version__

    metrics = pd.read_csv(tmp_path / "run" / "metrics.csv")
    assert metrics["epoch"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert metrics["split"].tolist() == ["train", "validation", "test"] * 4
    final = metrics[(metrics["epoch"] == 3)].set_index("split")
    for split, num_examples in (("train", 1297), ("validation", 250), ("test", 250)):
        accuracy = final.loc[split, "accuracy"]
        interval = binomtest(round(accuracy * num_examples), num_examples).proportion_ci(
            method="wilson"
        )
        assert summary[split] == {
            **{score: final.loc[split, score] for score in ("loss", "accuracy", "f1")},
            "num_examples": num_examples,
            "accuracy_low": pytest.approx(interval.low),
            "accuracy_high": pytest.approx(interval.high),
        }
    training_rows = metrics[metrics["split"] == "train"]
    rates = training_rows["examples_per_second"] * training_rows["seconds"]
    assert rates.tolist()[1:] == pytest.approx([1297] * 3)
    assert training_rows["seconds"].sum() == pytest.approx(summary["seconds"])

    # the checkpoint's model, evaluated afresh in one go
    problem = build_problem(PROBLEM)
    checkpoint = load_checkpoint(tmp_path / "run")
    outputs = torch.func.functional_call(problem.model, checkpoint.params, problem.test.inputs)
    assert summary["test"]["loss"] == pytest.approx(
        problem.loss(outputs, problem.test.targets).mean().item(), rel=1e-5
    )
    predicted = outputs.argmax(1)
    assert summary["test"]["f1"] == pytest.approx(
        f1_score(problem.test.targets, predicted, average="macro")
    )
    confusion = pd.read_csv(tmp_path / "run" / "confusion.csv")
    counts = confusion[confusion["split"] == "test"].pivot_table(
        index="target", columns="predicted", values="count"
    )
    assert np.trace(counts) / counts.to_numpy().sum() == pytest.approx(summary["test"]["accuracy"])


def test_a_finished_run_is_not_computed_again_unless_forced(tmp_path):
    first = run_training(PROBLEM, TRAINING, tmp_path)
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    assert run_training(PROBLEM, TRAINING, tmp_path) == first
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before
    forced = run_training(PROBLEM, TRAINING, tmp_path, RunOptions(force=True))
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns > before
    assert forced["test"] == first["test"]  # the same seed gives the same run


def test_another_configuration_is_refused(tmp_path):
    run_training(PROBLEM, TRAINING, tmp_path)
    with pytest.raises(RunFolderError, match=r"training\.seed is 0 there, 1 here"):
        run_training(
            PROBLEM, TrainConfig(batch_size=100, learning_rate=0.1, epochs=3, seed=1), tmp_path
        )


@pytest.mark.pictures
def test_divergence_is_a_result(tmp_path):
    raw = ProblemConfig(dataset="digits", width=16, pixel_scale="raw")
    summary = run_training(raw, TrainConfig(batch_size=1, learning_rate=1e30), tmp_path)
    assert summary["diverged_at_step"] == summary["steps"] < 100
    assert summary["test"]["loss"] is None
    assert summary["test"]["loss_null_because"] == "the loss is nan, not finite"
    confusion = pd.read_csv(tmp_path / "confusion.csv")
    assert confusion[confusion["predicted"] > 0]["count"].sum() == 0  # argmax over nan is class 0
    assert (tmp_path / "curves.png").stat().st_size > 1000
    assert load_checkpoint(tmp_path).diverged_at_step == summary["steps"]
    losses = read_losses(tmp_path)
    assert losses["step"].tolist() == list(range(1, summary["steps"] + 1))
    assert np.isfinite(losses["loss"]).tolist() == [True] * (len(losses) - 1) + [False]


def test_the_losses_of_the_batches_are_kept(tmp_path):
    """Of each step the mean over its batch before the update, by a plain loop over the batches."""
    run_training(PROBLEM, TRAINING, tmp_path)
    problem = build_problem(PROBLEM, seed=0)
    batches = Batches(problem.train.num_examples, seed=TRAINING.seed_of_order)
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=TRAINING.learning_rate)
    expected, epochs, seen = [], [], 0
    while seen < TRAINING.epochs * problem.train.num_examples:
        part = problem.train.part(batches.take(TRAINING.batch_size))
        loss = problem.loss(problem.model(part.inputs), part.targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
        seen += len(part.targets)
        epochs.append(seen / problem.train.num_examples)
    losses = read_losses(tmp_path)
    assert losses["step"].tolist() == list(range(1, len(expected) + 1))
    np.testing.assert_allclose(losses["loss"], expected, rtol=1e-5)  # float32
    np.testing.assert_allclose(losses["epoch"], epochs)
    assert (losses["num_steps"] == 1).all()
    assert (losses["smallest"] == losses["largest"]).all()


def test_a_run_of_before_they_were_kept_goes_on(tmp_path):
    run_training(PROBLEM, TRAINING, tmp_path, RunOptions(checkpoint_every=20))
    earlier = replace(load_checkpoint(tmp_path / "checkpoints" / "step-20.pt"), losses=None)
    save_checkpoint(earlier, tmp_path / "checkpoint.pt")
    (tmp_path / "summary.json").unlink()
    (tmp_path / "losses.csv").unlink()
    run_training(PROBLEM, TRAINING, tmp_path)
    assert read_losses(tmp_path)["step"].iloc[0] == 21


def test_a_checkpoint_of_another_run_in_the_folder_is_refused(tmp_path):
    run_training(PROBLEM, TRAINING, tmp_path / "one")
    other = TrainConfig(batch_size=100, learning_rate=0.2, epochs=3)
    run_training(PROBLEM, other, tmp_path / "other")
    (tmp_path / "one" / "summary.json").unlink()
    (tmp_path / "other" / "checkpoint.pt").replace(tmp_path / "one" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="another configuration"):
        run_training(PROBLEM, TRAINING, tmp_path / "one")


def test_a_batch_too_large_leaves_no_folder_behind(tmp_path):
    with pytest.raises(SettingError, match="there are 1297 training examples"):
        run_training(PROBLEM, TrainConfig(batch_size=1298), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_step_checkpoints_are_those_of_the_generator(tmp_path):
    run_training(PROBLEM, TRAINING, tmp_path, RunOptions(checkpoint_every=10))
    kept = sorted((tmp_path / "checkpoints").iterdir())
    assert [path.name for path in kept] == ["step-10.pt", "step-20.pt", "step-30.pt"]
    checkpoints = train(build_problem(PROBLEM), TRAINING, checkpoint_steps=(20,))
    (expected,) = [checkpoint for checkpoint in checkpoints if checkpoint.step == 20]
    assert same_parameters(load_checkpoint(kept[1]), expected)


def test_metrics_after_the_checkpoint_resumed_from_are_written_once(tmp_path):
    """As after a kill between an epoch's metrics and its checkpoint."""
    whole = tmp_path / "whole"
    run_training(PROBLEM, TRAINING, whole, RunOptions(checkpoint_every=10))
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, content in {
        "config.json": (whole / "config.json").read_bytes(),
        "metrics.csv": (whole / "metrics.csv").read_bytes(),
        "losses.csv": (whole / "losses.csv").read_bytes(),
        "checkpoint.pt": (whole / "checkpoints" / "step-20.pt").read_bytes(),
    }.items():
        (broken / name).write_bytes(content)
    run_training(PROBLEM, TRAINING, broken)
    assert same_parameters(load_checkpoint(whole), load_checkpoint(broken))
    one, other = (pd.read_csv(folder / "metrics.csv") for folder in (whole, broken))
    columns = ["epoch", "step", "split", "loss", "accuracy", "f1"]
    pd.testing.assert_frame_equal(one[columns], other[columns])
    assert (whole / "losses.csv").read_bytes() == (broken / "losses.csv").read_bytes()


OPTIONS = "--dataset digits --width 64 --bs 2 --epochs 6 --lr 0.001 --checkpoint-every 100"
COMMAND = [sys.executable, "-m", "noisescale", "train", *OPTIONS.split()]
CASE = (
    ProblemConfig(dataset="digits", width=64),
    TrainConfig(batch_size=2, learning_rate=0.001, epochs=6),
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    run_training(*CASE, folder)
    return load_checkpoint(folder)


def start(folder):
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [*COMMAND, "--out", str(folder)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_checkpoint(folder, process, *, beyond=0):
    """Until the running process has saved a step past `beyond`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "checkpoint.pt").exists() and load_checkpoint(folder).step > beyond:
            return load_checkpoint(folder).step
        time.sleep(0.02)
    pytest.fail(f"no checkpoint past {beyond}: {process.communicate()}")


@pytest.mark.processes
@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_bit_for_bit_the_same(tmp_path, uninterrupted):
    folder, step = tmp_path / "run", 0
    for delay in (0.0, 0.013, 0.05):
        with start(folder) as process:
            step = wait_for_checkpoint(folder, process, beyond=step)
            time.sleep(delay)
            process.kill()
    assert not (folder / "summary.json").exists()
    resumed = subprocess.run(
        [sys.executable, "-m", "noisescale", "train", "--resume", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "resumed at step" in resumed.stderr
    assert same_parameters(uninterrupted, load_checkpoint(folder))
    assert not list(folder.rglob("*.tmp"))
    assert json.loads((folder / "summary.json").read_text())["steps"] == uninterrupted.step


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_saves_between_two_steps_and_says_how_to_go_on(
    tmp_path, uninterrupted, number, code
):
    folder = tmp_path / "run"
    with start(folder) as process:
        wait_for_checkpoint(folder, process)
        process.send_signal(number)
        _, messages = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"--resume {folder}" in messages
    assert "Traceback" not in messages
    assert f"saved at step {load_checkpoint(folder).step:,}" in messages
    run_training(*CASE, folder)
    assert same_parameters(uninterrupted, load_checkpoint(folder))


@pytest.mark.processes
@pytest.mark.slow
def test_two_at_once_do_not_write_one_folder(tmp_path):
    with start(tmp_path / "run") as process:
        wait_for_checkpoint(tmp_path / "run", process)
        with pytest.raises(RunFolderBusyError, match="another process"):
            run_training(*CASE, tmp_path / "run")
        process.kill()


@pytest.mark.processes
@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_with_one_message_and_damages_nothing(tmp_path):
    """No file may grow past 20 kB: config.json fits, the checkpoint does not."""
    limited = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "from noisescale.cli import main\nmain(sys.argv[1:])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, *COMMAND[3:], "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
        env=unmeasured(),
    )
    assert done.returncode == 1
    assert "File too large; what is already written is whole: make room" in done.stderr
    assert "Traceback" not in done.stderr
    files = {entry.name for entry in (tmp_path / "run").rglob("*") if entry.is_file()}
    assert files - {".noisescale.lock"} == {"config.json", "metrics.csv", "losses.csv"}
    identity = json.loads((tmp_path / "run" / "config.json").read_text())
    assert folder_state(tmp_path / "run", identity) == "unfinished"


def test_a_run_that_has_ended_holds_no_data(tmp_path, monkeypatch):
    """Runs in one process would else fill the memory before the garbage collector is due."""
    alive = []
    build = module.build_problem

    def built(*arguments, **settings):
        problem = build(*arguments, **settings)
        alive.append(weakref.ref(problem.train.inputs))
        return problem

    monkeypatch.setattr(module, "build_problem", built)
    gc.collect()
    gc.disable()
    try:
        options = RunOptions(
            noise=NoiseTracking(every=10, num_examples=50), measure_sharpness_every=20
        )
        run_training(
            ProblemConfig(dataset="digits", width=8),
            TrainConfig(batch_size=100, epochs=1),
            tmp_path,
            options,
        )
        assert [reference() for reference in alive] == [None]
    finally:
        gc.enable()


def test_updates_that_cannot_be_in_place_are_said_once_and_recorded(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(chain, "update_linear", fail)
    lines = io.StringIO()
    options = RunOptions(console=Console(file=lines), notes=("a note",), pictures=False)
    summary = run_training(PROBLEM, TRAINING, tmp_path / "run", options)
    (of_run, of_update) = summary["notes"]
    assert of_run == "a note"
    assert "stored gradients" in of_update
    assert "no such kernel" in of_update
    assert lines.getvalue().count("NOTE") == 1
    assert of_update in " ".join(lines.getvalue().split())  # whose lines are folded
