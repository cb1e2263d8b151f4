"""noisescale sweep-lr, as its users meet it."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from noisescale.cli import main
from tests.helpers.executors import Here

SMALL = ["--dataset", "digits", "--num-train", "100", "--width", "4", "--depth", "1"]
FEW = ["--bs", "4", "--bs", "50", "--steps", "6", "--seeds", "2", "--factor", "5"]
RATES = ["--lr-min", "0.1", "--lr-max", "1e3"]


@pytest.fixture(autouse=True)
def _in_this_thread(monkeypatch):
    """Cells run here: a process takes seconds to start."""
    monkeypatch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())
    monkeypatch.setattr("noisescale.measure.stability.MOST_STEPS", 30)
    monkeypatch.setattr("noisescale.measure.stability.FEWEST_STEPS", 30)


def sweep(*arguments):
    return CliRunner().invoke(main, ["sweep-lr", *map(str, arguments)])


def test_a_map_with_predictions(tmp_path):
    found = sweep(*SMALL, *FEW, "--out", tmp_path / "map")
    assert found.exit_code == 0, found.output
    assert "η_max, the learning rate at which half of the seeds diverge" in found.stdout
    assert "cells right" in found.stdout
    assert "λ_max" in found.stdout
    assert found.stdout.splitlines()[-1] == str(tmp_path / "map")
    boundary = pd.read_csv(tmp_path / "map" / "boundary.csv")
    curves = ["lower", "gaussian", "wu", "upper", "lyapunov"]
    assert boundary[curves].notna().all().all()
    assert (boundary["lower"] <= boundary["upper"]).all()
    summary = json.loads((tmp_path / "map" / "summary.json").read_text())
    nearest = round(math.log10(2 / summary["constants"]["sharpness"]))
    assert summary["lr_min"] == pytest.approx(10.0 ** (nearest - 3))
    assert summary["lr_max"] == pytest.approx(1e5 * summary["lr_min"])
    assert set(summary["scores"]) >= set(curves)


def test_dead_runs_are_explained(tmp_path):
    sentence = "Dead ones do not diverge, so that η_max may lie above their rates"
    for largest, dead in ((1e3, True), (0.01, False)):
        rates = ("--lr-min", 0.001, "--lr-max", largest, "--no-predict")
        found = sweep(*SMALL, *FEW, *rates, "--out", tmp_path / f"{largest:g}")
        assert (" dead" in found.stdout) == dead
        assert (sentence in " ".join(found.stdout.split())) == dead


def test_json_is_strict_and_alone_on_stdout(tmp_path):
    found = sweep(*SMALL, *FEW, *RATES, "--no-predict", "--json", "--out", tmp_path / "map")
    assert found.exit_code == 0, found.output
    content = json.loads(found.stdout, parse_constant=pytest.fail)
    assert [row["batch_size"] for row in content["boundary"]] == [4, 50]
    assert content["summary"]["constants"] is None


def test_the_whole_grid(tmp_path):
    found = sweep(
        *SMALL,
        *FEW[:4],
        "--epochs",
        1,
        "--seeds",
        2,
        "--num-lr",
        3,
        *RATES,
        "--no-predict",
        "--out",
        tmp_path / "map",
    )
    assert found.exit_code == 0, found.output
    cells = pd.read_csv(tmp_path / "map" / "cells.csv")
    assert len(cells) == 2 * 2 * 3
    assert sorted(cells["learning_rate"].unique()) == [0.1, 10.0, 1000.0]


def test_from_a_checkpoint(tmp_path):
    run = tmp_path / "run"
    trained = CliRunner().invoke(
        main, ["train", *SMALL, "--loss", "mse", "--bs", "10", "--epochs", "3", "--out", str(run)]
    )
    assert trained.exit_code == 0, trained.output
    found = sweep("--from", run, *FEW, *RATES, "--no-predict", "--out", tmp_path / "map")
    assert found.exit_code == 0, found.output
    assert "leave the minimum" in found.stdout
    cells = pd.read_csv(tmp_path / "map" / "cells.csv")
    metrics = pd.read_csv(run / "metrics.csv")
    start = metrics[metrics["split"] == "train"]["loss"].iloc[-1]
    assert cells["start_loss"].unique() == pytest.approx([start])  # the same for every seed
    assert ((cells["max_loss"] > 10 * start) <= (cells["unstable"] == 1)).all()


def test_a_preset_is_overridden_by_what_is_given(monkeypatch, tmp_path):
    seen = []

    def note(config, out, **options):
        seen.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("noisescale.studies.stability_map.run.run_sweep", note)
    sweep(
        "--preset",
        "three-cases",
        "--width",
        64,
        "--dataset",
        "digits",
        "--bs",
        2,
        "--out",
        tmp_path,
    )
    (config,) = seen
    assert config.problem.pixel_scale == "raw"
    assert config.problem.width == 64
    assert config.batch_sizes == (2,)
    assert config.lr_min == 1e-6


def test_the_default_map(monkeypatch, tmp_path):
    seen = []

    def note(config, out, **options):
        seen.append((config, out))
        raise KeyboardInterrupt

    monkeypatch.setattr("noisescale.studies.stability_map.run.run_sweep", note)
    sweep("--dataset", "digits")
    sweep("--dataset", "digits", "--num-train", 100, "--seeds", 9)
    (config, out), (small, other) = seen
    assert config.batch_sizes == (1, 4, 16, 64, 256, 1024)
    assert config.problem.width == 256
    assert (config.num_lr, config.factor, config.num_seeds) == (None, 1.25, 5)
    assert small.batch_sizes == (1, 4, 16, 64)
    assert out.parent == other.parent == Path("runs")
    assert out != other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-lr", "0"], "empty grid"),
        (["--seeds", "0"], "empty grid"),
        (["--lr-min", "1", "--lr-max", "0.1"], "exchange --lr-min and --lr-max"),
        (["--bs", "101"], "there are 100 training examples"),
        (["--bs", "adaptive"], "adaptive"),
        (["--bs", "0"], "1 or more"),
        (["--epochs", "1", "--steps", "5"], "--epochs and --steps: give one"),
        (["--bisect", "--num-lr", "4"], "--bisect and --num-lr"),
        (["--scheduler", "tcp://127.0.0.1:9"], "--executor dask"),
        (["--executor", "dask"], "--scheduler"),
        (["--precision", "0.5"], "precision"),
        (["--lr-min", "nan"], "learning rate"),
        (["--processes", "0"], "processes"),
    ],
)
def test_bad_usage_is_one_message(arguments, message, tmp_path):
    found = sweep(*SMALL, *arguments, "--out", tmp_path / "map")
    assert found.exit_code == 2
    assert message in found.stderr
    assert not (tmp_path / "map").exists()


def test_a_checkpoint_brings_its_own_problem(tmp_path):
    found = sweep("--from", tmp_path, "--width", 8, "--pixel-scale", "raw")
    assert found.exit_code == 2
    assert "leave out --pixel-scale, --width" in found.stderr
    missing = sweep("--from", tmp_path / "none.pt")
    assert missing.exit_code == 1
    assert "no such file" in missing.stderr


def test_other_settings_are_refused_and_named(tmp_path):
    assert sweep(*SMALL, *FEW, *RATES, "--no-predict", "--out", tmp_path / "map").exit_code == 0
    found = sweep(
        *SMALL, *FEW, *RATES, "--no-predict", "--momentum", 0.9, "--out", tmp_path / "map"
    )
    assert found.exit_code == 1
    assert "training.momentum is 0.0 there, 0.9 here" in found.stderr


def test_momentum_has_a_map_but_no_predictions(tmp_path):
    found = sweep(*SMALL, *FEW, "--momentum", 0.9, "--out", tmp_path / "map")
    assert found.exit_code == 0, found.output
    assert "lyapunov" not in pd.read_csv(tmp_path / "map" / "boundary.csv")
    assert "predictions are of plain SGD" in found.stdout


def test_failed_cells_exit_with_one_after_everything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "noisescale.studies.jobs.local.LocalProcesses",
        lambda count: Here(lambda cell: cell.training.seed == 1),
    )
    found = sweep(*SMALL, *FEW, *RATES, "--no-predict", "--out", tmp_path / "map")
    assert found.exit_code == 1
    assert "failed, see the failures in" in found.stderr
    assert "Traceback" not in found.output
    cells = pd.read_csv(tmp_path / "map" / "cells.csv")
    assert set(cells["error"].dropna()) == {"MemoryError: no room for this one"}
    assert "95 % interval" in found.stdout


def test_an_edge_beyond_the_rates_is_printed_as_a_bound(tmp_path):
    few = [*SMALL, "--bs", "50", "--steps", "6", "--factor", "5", "--no-predict"]
    tame = sweep(
        *few, "--seeds", 5, "--lr-min", "1e-6", "--lr-max", "1e-4", "--out", tmp_path / "tame"
    )
    assert "> 0.0001" in tame.stdout
    wild = sweep(
        *few, "--seeds", 5, "--lr-min", "1e20", "--lr-max", "1e22", "--out", tmp_path / "wild"
    )
    assert "< 1e+20" in wild.stdout or "< 1.01e+20" in wild.stdout
    alone = sweep(
        *few, "--seeds", 1, "--lr-min", "1e-6", "--lr-max", "1e-4", "--out", tmp_path / "alone"
    )
    assert "not found" in alone.stdout


@pytest.mark.processes
@pytest.mark.slow
def test_ctrl_c_stops_at_once_keeps_the_cells_and_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "noisescale", "sweep-lr", *SMALL, *FEW, *RATES, "--no-predict"]
    command += ["--factor", "1.2", "--seeds", "20", "--out", str(tmp_path / "map")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    end = time.monotonic() + 120
    while len(list((tmp_path / "map").glob("cells/*/summary.json"))) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "finished and kept; the same command runs the rest" in stderr
    assert "Traceback" not in stderr
    end = time.monotonic() + 15
    group = ["ps", "-o", "pid,args", "--no-headers", "-g", str(running.pid)]
    while left := subprocess.run(group, capture_output=True, text=True, check=False).stdout:
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_gradient_descent_from_a_checkpoint_is_one_run_for_all_seeds(tmp_path):
    """B = N = 100 from one checkpoint: not three seeds, and an interval between two rates."""
    run = tmp_path / "run"
    train = ["train", *SMALL, "--epochs", "1", "--out", str(run)]
    assert CliRunner().invoke(main, train).exit_code == 0
    sizes = ["--bs", 4, "--bs", "full", "--bs", 100, "--steps", 6, "--seeds", 3, "--factor", 10]
    command = [*sizes, *RATES, "--from", run / "checkpoint.pt", "--no-predict"]
    found = sweep(*command, "--out", tmp_path / "map")
    assert found.exit_code == 0, found.output
    boundary = pd.read_csv(tmp_path / "map" / "boundary.csv").set_index("batch_size")
    assert boundary["num_seeds"].tolist() == [3, 1, 1]
    cells = pd.read_csv(tmp_path / "map" / "cells.csv")
    assert set(cells[cells["batch_size"] == "full"]["seed"]) == {0}
    full, same = boundary.loc["full"], boundary.loc["100"]
    assert (full["lr_max_low"], full["lr_max_high"]) == (same["lr_max_low"], same["lr_max_high"])
    rates = cells["learning_rate"].tolist()
    assert {full["lr_max_low"], full["lr_max_high"]} - {0, math.inf} <= set(rates)
    assert json.loads((tmp_path / "map" / "summary.json").read_text())["seeds_alike"] == [
        100,
        "full",
    ]
    assert "the same run for every seed: at B = 100, full" in " ".join(found.stdout.split())
