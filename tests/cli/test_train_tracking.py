"""`noisescale train` that measures as it goes, or follows the noise, and what it recommends."""

import json
from pathlib import Path

import pandas as pd
import pytest

from noisescale.training.records.tables import BATCH_SIZE, NOISE, NOISE_LAYERS
from tests.helpers.command_line import SMALL, run, strict

ADAPTIVE = ["--bs", "adaptive", "--lr", "0.1", "--noise-memory", "500", "--exchange-rate", "100"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_noise_is_tracked_and_a_batch_size_recommended():
    tracking = ["--measure-noise-every", "log", "--noise-examples", "300", "--noise-per-layer"]
    result = run(*SMALL, "--bs", 64, "--lr", 0.1, *tracking, "--out", "run")
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(f"run/{NOISE}")
    assert rows["step"].tolist()[:5] == [0, 1, 2, 3, 4]
    assert set(rows["num_examples"]) == {300}
    assert pd.read_csv(f"run/{NOISE_LAYERS}")["parameter"].nunique() == 6
    assert result.stderr.count("B_simple") == len(rows)
    assert "on the average step" in " ".join(result.stdout.split())
    again = run("measure-noise", "run")
    assert again.exit_code == 0, again.output
    text = " ".join(again.stdout.split())
    assert "weighted by progress" in text
    assert "best rate for its batch size, B_crit lies between" in text
    for aim in ("fewest examples", "balanced", "fewest steps"):
        assert aim in text
    (entry,) = strict(run("measure-noise", "run", "--json").stdout)
    assert entry["recommendation"]["from"] == "simple"
    assert entry["recommendation"]["num_measurements"] == len(rows)
    assert entry["recommendation"]["relative_rate"] is None  # a search of rates tells it
    critical = entry["recommendation"]["critical_batch_size"]
    assert critical["high"] / critical["low"] > 4


def test_the_full_noise_scale_is_tracked_on_demand():
    tracking = ["--measure-noise-every", "10", "--noise-examples", "300", "--noise-hessian"]
    result = run(*SMALL, "--bs", 64, "--lr", 0.1, *tracking, "--out", "run")
    assert result.exit_code == 0, result.output
    rows = pd.read_csv(f"run/{NOISE}")
    assert rows["step"].tolist() == [0, 10, 20, 21]
    assert rows["hessian_covariance_trace"].notna().all()
    assert "B_noise" in result.stderr


def test_under_adam_the_noise_scale_of_its_own_geometry_is_tracked_and_spoken_of():
    tracking = ["--measure-noise-every", "10", "--noise-examples", "300"]
    result = run(*SMALL, "--optimizer", "adamw", "--lr", 0.01, *tracking, "--out", "run")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("B^P_simple") == result.stderr.count("B_simple") > 2
    assert "no B^P_simple: adamw has made no step" in " ".join(result.stderr.split())
    # the calibration is by the plain scale, also of Adam's runs
    text = " ".join(run("measure-noise", "run").stdout.split())
    assert "Along run, B_simple goes from" in text
    (entry,) = strict(run("measure-noise", "run", "--json").stdout)
    assert entry["recommendation"]["geometry"] == "plain"
    alone = (*tracking, "--noise-geometry", "optimizer")
    result = run(*SMALL, "--optimizer", "adamw", "--lr", 0.01, *alone, "--out", "alone")
    assert "B^P_simple goes from" in " ".join(result.stdout.split())
    text = " ".join(run("measure-noise", "alone").stdout.split())
    assert "Along alone, B^P_simple goes from" in text
    assert "the interval that of runs of plain SGD" in text
    (entry,) = strict(run("measure-noise", "alone", "--json").stdout)
    assert entry["recommendation"]["geometry"] == "optimizer"


def test_sgd_has_no_geometry_of_its_own():
    tracking = ["--measure-noise-every", "10", "--noise-geometry", "both"]
    result = run(*SMALL, *tracking, "--out", "run")
    assert result.exit_code == 2
    assert "noise geometry both with sgd" in result.stderr
    assert not Path("run").exists()
    result = run(*SMALL, "--noise-geometry", "both")
    assert "--noise-geometry without --measure-noise-every" in " ".join(result.stderr.split())


def test_a_damaged_table_costs_the_recommendation_alone():
    tracking = [
        "--measure-noise-every",
        "10",
        "--noise-examples",
        "300",
        "--checkpoint-every",
        "10",
    ]
    assert run(*SMALL, "--bs", 64, *tracking, "--out", "run").exit_code == 0
    entries = strict(run("measure-noise", "run", "--json").stdout)
    assert [entry["recommendation"] is None for entry in entries] == [True, True, False]
    table = Path("run") / NOISE
    for content in ("", "no table", table.read_text().replace("\n10,", "\n0,")):
        table.write_text(content)
        result = run("measure-noise", "run")
        assert result.exit_code == 0, result.output
        assert "no batch size is recommended" in result.stdout


def test_what_is_tracked_reaches_tensorboard():
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracking = ["--measure-noise-every", "10", "--noise-examples", "300"]
    result = run(*SMALL, *ADAPTIVE, *tracking, "--epochs", 3, "--out", "run", "--log-dir", "events")
    assert result.exit_code == 0, result.output
    events = tensorboard.EventAccumulator("events/run")
    events.Reload()
    assert {"noise/simple", "batch_size", "learning_rate"} <= set(events.Tags()["scalars"])
    rows = pd.read_csv(f"run/{NOISE}").dropna(subset=["simple"])
    logged = {one.step: one.value for one in events.Scalars("noise/simple")}
    assert logged == pytest.approx(dict(zip(rows["step"], rows["simple"], strict=True)), rel=1e-5)


def test_an_untracked_run_recommends_nothing():
    assert run(*SMALL, "--bs", 64, "--out", "run").exit_code == 0
    result = run("measure-noise", "run", "--json")
    assert strict(result.stdout)[0]["recommendation"] is None


def test_a_finished_run_is_not_trained_again_to_be_tracked():
    assert run(*SMALL, "--bs", 64, "--out", "run").exit_code == 0
    result = run(*SMALL, "--bs", 64, "--out", "run", "--measure-noise-every", "10")
    assert result.exit_code == 0
    assert "noisescale measure-noise, or train it again with --force" in result.stderr


def test_an_adaptive_run_beside_a_fixed_one():
    result = run(
        *SMALL, *ADAPTIVE, "--bs", "64", "--lr-scaling", "noise", "--epochs", 4, "--out", "runs"
    )
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    assert "The adaptive batch size ended at" in text
    assert "predicted: B_crit" in text
    assert "fewer steps than the fixed batch size of as many examples" in text
    changes = pd.read_csv(f"runs/bsadaptive/{BATCH_SIZE}")
    assert result.stderr.count("  B ") == len(changes) > 2
    fixed = json.loads(Path("runs/bs64/config.json").read_text())["training"]
    assert fixed["lr_scaling"] == "none"  # what only an adaptive one takes
    summaries = strict(
        run(
            *SMALL,
            *ADAPTIVE,
            "--lr-scaling",
            "noise",
            "--epochs",
            4,
            "--out",
            "runs/bsadaptive",
            "--json",
        ).stdout
    )
    assert set(summaries[0]["predicted"]) == {
        "critical_batch_size",
        "gain",
        "resolved_share",
        "steps_saved",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--measure-noise-every", "0"], "1 or more, or log"),
        (["--measure-noise-every", "often"], "1 or more, or log"),
        (["--measure-noise-every", "10", "--noise-examples", "2"], "noise-examples"),
        (["--noise-hessian"], "--noise-hessian without --measure-noise-every"),
        (["--num-train", "3", "--bs", "2", "--measure-noise-every", "log"], "takes 4 or more"),
        (["--lr-scaling", "sqrt"], "only an adaptive batch size takes it"),
        (["--bs", "adaptive", "--bs-min", "64"], "2 <= smallest <= initial <= largest"),
        (["--bs", "adaptive", "--bs-max", "5000"], "batch sizes up to 5000"),
        (["--bs", "adaptive", "--exchange-rate", "nan"], "examples worth a step"),
        (["--bs", "adaptive", "--norm", "batch"], "adaptive batch size with batch norm"),
        (["--bs", "sometimes"], "full or adaptive"),
    ],
)
def test_bad_usage_gets_one_message(arguments, message):
    result = run(*SMALL, *arguments, "--out", "run")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
