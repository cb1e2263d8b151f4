"""`noisescale plot`: the pictures of whatever the other commands leave."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from noisescale.problems.config import ProblemConfig
from noisescale.training.config import TrainConfig
from noisescale.training.records.folder import PICTURES
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.noise import NoiseTracking
from tests.helpers.command_line import run
from tests.helpers.measurements import noise_entries, noise_table, sharpness_entries

pytestmark = pytest.mark.pictures

PROBLEM = ProblemConfig(dataset="digits", width=4)
TRAINING = TrainConfig(batch_size="adaptive", learning_rate=0.1, epochs=1)
RUN_TABLES = (
    *("metrics.csv", "losses.csv", "confusion.csv", "sharpness.csv"),
    *("noise.csv", "batch_size.csv"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with every table, and not yet a picture; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = RunOptions(
        noise=NoiseTracking(every=20, num_examples=50),
        measure_sharpness_every=20,
        sharpness_examples=50,
        pictures=False,
    )
    run_training(PROBLEM, TRAINING, folder, options)
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(trained):
    shutil.copytree(trained, "run")
    return Path("run")


def names(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in Path(folder).rglob("*")
        if path.suffix in (".png", ".pdf", ".svg")
    )


def test_a_run_is_drawn_from_its_folder_and_each_path_printed(folder):
    assert names(folder) == []
    result = run("plot", "run")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [f"run/{name}.png" for name in PICTURES]
    assert names(folder) == sorted(f"{name}.png" for name in PICTURES)
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in names(folder))


def test_pictures_go_where_and_as_they_are_asked_to(folder):
    result = run("plot", "run", "--format", "pdf", "--out", "pictures")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [f"pictures/{name}.pdf" for name in PICTURES]
    assert names(folder) == []


def test_force_removes_pictures_of_every_format(folder):
    assert run("plot", "run", "--format", "svg").exit_code == 0
    run_training(PROBLEM, TRAINING, folder, RunOptions(force=True))
    assert names(folder) == ["batch_size.png", "confusion.png", "curves.png"]


def test_an_unfinished_run_is_drawn_as_far_as_it_is(folder):
    (folder / "summary.json").unlink()
    (folder / "confusion.csv").unlink()
    assert run("plot", "run").exit_code == 0
    assert "confusion.png" not in names(folder)
    (folder / "metrics.csv").unlink()
    for name in ("sharpness.csv", "noise.csv", "batch_size.csv"):
        (folder / name).unlink()
    refused = run("plot", "run")
    assert refused.exit_code == 1
    assert "run: nothing to draw yet" in refused.stderr


@pytest.mark.slow
def test_a_folder_of_several_runs_is_drawn_run_by_run(folder):
    shutil.copytree(folder, "runs/a")
    shutil.copytree(folder, "runs/deeper/b")
    result = run("plot", "runs", "--out", "pictures")
    assert result.exit_code == 0, result.output
    assert "pictures/a/curves.png" in names(".")
    assert "pictures/deeper/b/curves.png" in names(".")
    assert run("plot", "runs/a", "runs/deeper/b").exit_code == 0
    assert {"runs/a/curves.png", "runs/deeper/b/curves.png"} <= set(names("."))


@pytest.mark.parametrize("table", RUN_TABLES)
def test_a_single_table_gives_a_picture_of_its_name(folder, table):
    Path("alone.csv").write_bytes((folder / table).read_bytes())  # known by its columns
    result = run("plot", f"run/{table}", "alone.csv", "--format", "svg")
    assert result.exit_code == 0, result.output
    stem = table.removesuffix(".csv")
    assert result.stdout.split() == [f"run/{stem}.svg", "alone.svg"]
    drawn = (folder / f"{stem}.svg").read_text()
    assert "digits, MLP of width 4, B = adaptive, learning rate 0.1" in drawn
    assert table in drawn
    assert "alone.csv" in Path("alone.svg").read_text()


def test_the_noise_of_several_runs_in_one_table_is_drawn_seed_by_seed():
    table = pd.concat([noise_table().assign(seed=seed) for seed in (0, 1)])
    table.to_csv("noise.csv", index=False, na_rep="nan")
    assert run("plot", "noise.csv", "--format", "svg").exit_code == 0
    assert "seed 1" in Path("noise.svg").read_text()


@pytest.mark.parametrize("entries", [noise_entries, sharpness_entries])
def test_json_of_a_measurement_is_drawn_as_plot_would_have(entries):
    Path("measured").mkdir()
    Path("measured/result.json").write_text(json.dumps(entries()))
    result = run("plot", "measured/result.json")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == ["measured/result.png"]
    assert run("plot", "measured/result.json", "--out", "there").stdout.split() == [
        "there/result.png"
    ]


@pytest.mark.parametrize(
    ("marker", "module"),
    [
        ("sweep.json", "noisescale.studies.stability_map.pictures"),
        ("critical_batch.json", "noisescale.studies.critical_batch.pictures"),
        ("steps_to_goal.csv", "noisescale.studies.critical_batch.pictures"),
        ("branches.json", "noisescale.studies.critical_batch.pictures"),
    ],
)
def test_a_study_is_drawn_by_its_own_and_its_cells_are_left_alone(
    folder, marker, module, monkeypatch
):
    drawn = []

    def figures(folder):
        drawn.append(folder)
        yield "map", Figure()

    monkeypatch.setattr(f"{module}.figures", figures)
    shutil.copytree(folder, "studies/study/cells/one")
    Path("studies/study", marker).write_text("{}")
    result = run("plot", "studies", "--format", "pdf")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == ["studies/study/map.pdf"]
    assert Path("studies/study/map.pdf").read_bytes().startswith(b"%PDF")
    assert drawn == [Path("studies/study")]


def test_cells_alone_are_drawn_as_a_map():
    sizes, rates = (8, 16, 32), (0.1, 1.0, 10.0)
    rows = [
        {
            "batch_size": size,
            "learning_rate": rate,
            "seed": seed,
            "label": "diverged" if rate > 1 else "converged",
            "unstable": int(rate > 1),
            "final_loss": 1.0,
            "test_accuracy": 0.5,
            "error": "",
        }
        for size in sizes
        for rate in rates
        for seed in (0, 1)
    ]
    pd.DataFrame(rows).to_csv("cells.csv", index=False, na_rep="nan")
    result = run("plot", "cells.csv")
    assert result.exit_code == 0, result.output
    assert Path("cells.png").stat().st_size > 10_000


def test_steps_to_goals_alone_are_drawn_as_fronts():
    rows = [
        {"batch_size": size, "steps": round(100 * (1 + 64 / size)), "seed": 0, "censored": 0}
        for size in (8, 16, 32, 64, 128, 256)
    ]
    pd.DataFrame(rows).to_csv("steps.csv", index=False)
    result = run("plot", "steps.csv")
    assert result.exit_code == 0, result.output
    assert Path("steps.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "notes.txt",
            "nothing like it",
            "no picture of a table with these columns; give the folder",
        ),
        ("binary.pt", b"PK\x03\x04\xff\xfe", "no table"),
        ("empty.csv", "", "no table"),
        ("metrics.csv", "epoch,step,split,loss,accuracy\n", "it has no rows"),
        ("metrics.csv", "epoch,split,loss,accuracy\n1,test,low,0.5\n", "damaged"),
        ("summary.json", "{}", "no measurements of measure-noise or sharpness; give the folder"),
        ("cut.json", "[{", "is not valid JSON"),
        (
            "one.json",
            json.dumps([sharpness_entries()[0] | {"eigenvalues": [], "batch_sharpness": None}]),
            "trace alone makes no picture: measure it with --top",
        ),
        ("none.json", json.dumps([noise_entries()[0] | {"reason": "not finite"}]), "not finite"),
    ],
)
def test_what_cannot_be_drawn_is_said_with_what_can(name, content, message):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("plot", name)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_a_path_that_cannot_be_drawn_does_not_stop_the_others(folder):
    Path("nothing").mkdir()
    Path("bad.csv").write_text("a,b\n1,2\n")
    result = run("plot", "nothing", "bad.csv", "run")
    assert result.exit_code == 1
    assert len(result.stdout.split()) == len(PICTURES)
    assert "nothing: nothing to draw in it" in result.stderr
    assert "bad.csv: there is no picture" in result.stderr
    missing = run("plot", "run", "missing")
    assert missing.exit_code == 2
    assert "'missing' does not exist" in missing.stderr


def test_help_shows_examples():
    result = run("plot", "--help", terminal_width=100)
    assert "noisescale plot sharpness.json" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
