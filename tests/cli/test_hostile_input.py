"""Every option of every command under hostile values, and every file it reads damaged."""

import os
import random
import shutil
import signal
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import pytest
import torch

from noisescale.cli import main
from noisescale.errors import NoisescaleError
from noisescale.plots import style
from noisescale.studies.critical_batch import run as critical_batch
from noisescale.studies.jobs.search_loop import read_finished
from noisescale.studies.recommend import run as recommend
from noisescale.studies.stability_map import run as stability_map
from noisescale.training.records import pictures as records
from tests.helpers.command_line import run
from tests.helpers.damage import damaged, files_in
from tests.helpers.folders import contents, unchanged

SECONDS = 20  # in which each of these commands ends, be the machine loaded
VALUES = [
    *("", "x", "-1", "0", "1", "1.5", "nan", "inf", "-inf", "1e400", "1e-400", "3e38", "-0.0"),
    *(str(2**31), str(2**63), str(2**65), "9" * 400, "1e9", "٣", "1_0", "0x10"),
    *("/dev/null", "/dev/zero", "pipe", "folder", "no/such/file", "a" * 300, "-", "--", "*", "[x"),
    *("text.csv", "text.json", "text.pt", "text.png", "os:getcwd", "text.py:make", ":", "a:b:c"),
    os.fsdecode(b"\xff\xfe"),
]
VALUES_AN_OPTION = 3  # drawn for each
SOURCE = """
import torch
from noisescale import Examples, Problem

def loss(outputs, targets):
    return (outputs[:, 0] - targets) ** 2

def make():
    data = Examples(torch.randn(12, 3), torch.randn(12))
    return Problem(model=torch.nn.Linear(3, 1), loss=loss, train=data)
"""
TABLE = "batch_size,steps\n" + "".join(f"{2**k},{100 + 1000 // 2**k}\n" for k in range(6))
RUN = ["train", "--dataset", "digits", "--num-train", "60", "--width", "4", "--max-steps", "3"]
RUN += ["--measure-noise-every", "1", "--measure-sharpness-every", "1", "--out"]


@contextmanager
def in_time(what):
    """Fails where the block takes longer than it ever should, as in a hang."""

    def stop(number, frame):
        pytest.fail(f"hangs: {what}")

    assert threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def held_to_manners(*arguments):
    """What a command prints: it ends in time, by one of its exit codes, without a traceback."""
    with in_time(arguments):
        result = run(*arguments)
    said = f"{arguments}:\n{result.output}\n{result.exception!r}"
    assert result.exit_code in (0, 1, 2), said
    assert result.exception is None or isinstance(result.exception, SystemExit), said
    assert "Traceback" not in result.output, said
    assert "fault of the program" not in result.output, said
    assert result.exit_code == 0 or "Error: " in result.stderr, said
    return result


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a finished run, a problem, a table and things that are none of these."""
    folder = tmp_path_factory.mktemp("workplace")
    os.mkfifo(folder / "pipe")
    (folder / "folder").mkdir()
    (folder / "folder" / "thesis.tex").write_text("years of work")
    for name, text in {"csv": TABLE, "json": "{}", "pt": "none", "png": "", "py": SOURCE}.items():
        (folder / f"text.{name}").write_text(text)
    assert run(*RUN, folder / "run").exit_code == 0
    torch.save(torch.nn.Linear(3, 1).state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture
def there(workplace, monkeypatch):
    """The workplace as current folder; pictures are drawn and not rendered, which takes longest."""
    monkeypatch.chdir(workplace)
    for module in (style, records):
        monkeypatch.setattr(module, "image", lambda figure, format: b"a picture")
    return workplace


@pytest.fixture
def no_runs(monkeypatch):
    """Studies stop before their first run."""

    def stopped(study):
        raise NoisescaleError("stopped here by the test")

    monkeypatch.setattr(stability_map._Sweep, "complete", stopped)
    monkeypatch.setattr(critical_batch._Measurement, "complete", stopped)
    monkeypatch.setattr(recommend, "run_recommend", lambda *arguments, **options: stopped(None))


# What makes each command short, with a place for the option; others are run as they stand
SHORT = {
    "train": ["--dataset", "digits", "--num-train", "60", "--width", "4", "--max-steps", "1"],
    "measure-noise": ["--num-examples", "12"],
    "sharpness": ["--num-examples", "12", "--max-matvecs", "3"],
    "sweep-lr": ["--dataset", "digits", "--num-train", "60", "--width", "4"],
    "critical-batch": ["--dataset", "digits", "--num-train", "60", "--width", "4"],
    "interpolate": ["--points", "3"],
    "plot": ["run"],
    "report": ["run"],
}
OUT = {"train", "sweep-lr", "critical-batch", "plot"}  # that write to --out
MODELS = {  # that are measured
    "measure-noise": ["run/checkpoint.pt"],
    "sharpness": ["run/checkpoint.pt"],
    "interpolate": ["run", "run"],
}


def options():
    """Every option of every command that takes a value, as click knows them, and every argument."""
    for name, command in main.commands.items():
        for parameter in command.params:
            if isinstance(parameter, click.Argument) or not parameter.is_flag:
                yield name, parameter


@pytest.mark.slow
@pytest.mark.pictures
@pytest.mark.parametrize("name", main.commands)
@pytest.mark.usefixtures("no_runs")
def test_every_option_takes_any_value_without_a_traceback_or_a_loss(name, there, tmp_path):
    chance = random.Random(name)
    before = contents(there / "folder")
    with unchanged(there / "run"):
        for command, parameter in options():
            if command != name:
                continue
            for trial, value in enumerate(chance.sample(VALUES, VALUES_AN_OPTION)):
                arguments = [name, *SHORT.get(name, [])]
                if name in OUT:
                    arguments += ["--out", tmp_path / f"{parameter.name}-{trial}"]
                if isinstance(parameter, click.Argument):
                    arguments += ["--", value, *MODELS.get(name, [])[1:]]
                else:
                    arguments += [f"{parameter.opts[0]}={value}"]
                    arguments += MODELS.get(name, [])
                result = held_to_manners(*arguments)
                assert result.exit_code == 0 or names(parameter, value, result.stderr), (
                    arguments,
                    result.stderr,
                )
    # what --out names may be added to
    assert before.items() <= contents(there / "folder").items()


def names(parameter, value, message):
    """Whether a message says which option or file it is about, by its name or its value."""
    words = " ".join(message.split())
    spoken = [value, *parameter.opts, (parameter.name or "").replace("_", " ")]
    if "stopped here by the test" in words:
        return True
    with suppress(ValueError):
        spoken += [str(float(value)), f"{float(value):g}"]
    if not value:  # as a path, the current folder
        spoken += ["''", "checkpoint.pt"]
    if value in ("text.py:make", "text.pt"):  # in which it is the other of the two that is wrong
        spoken.append("run/checkpoint.pt")
    spoken += ["batch size", "beyond 64 bits"]
    return any(word and word[:40] in words for word in spoken) or "UTF-8" in words


@pytest.mark.slow
@pytest.mark.pictures
def test_a_damaged_file_of_a_run_is_named_and_nothing_is_lost(there, tmp_path):
    chance = random.Random(1)
    files = files_in(there / "run", ".json", ".csv", ".pt")
    assert len(files) >= 7
    for trial in range(30):
        file = files[trial % len(files)]
        folder = tmp_path / f"run-{trial}"
        shutil.copytree(there / "run", folder)
        target = folder / file.name
        target.write_bytes(damaged(file.read_bytes(), file.suffix, chance))
        before = {path.name for path in folder.iterdir()}
        reading = [
            [*RUN, folder],
            ["train", "--resume", folder, "--json"],
            ["plot", folder, "--out", tmp_path / "pictures"],
            ["measure-noise", folder, "--num-examples", "12"],
            ["sharpness", folder, "--num-examples", "12", "--max-matvecs", "3"],
        ]
        for arguments in chance.sample(reading, 2):
            result = held_to_manners(*arguments)
            if result.exit_code:
                assert file.name in result.stderr or str(folder) in result.stderr, result.stderr
                assert "delete" not in result.stderr, result.stderr
        assert before <= {path.name for path in folder.iterdir()}, (file.name, before)


def damaged_runs(root, read):
    """Which runs below a folder a study could not take up again."""
    failures = []
    list(read_finished(root, read, lambda name, error: failures.append(name)))
    return failures


@pytest.mark.slow
@pytest.mark.pictures
@pytest.mark.parametrize("kind", ["finished_sweep", "finished_critical_batch"])
def test_a_damaged_file_of_a_study_is_named_and_nothing_is_lost(kind, there, tmp_path, request):
    """Its pictures and tables; its runs as the study takes them up again."""
    out = request.getfixturevalue(kind).out
    chance = random.Random(2)
    own = [path for path in files_in(out, ".json", ".csv") if path.parent == out]
    cells = chance.sample([path for path in files_in(out, ".json", ".csv") if path not in own], 6)
    for trial in range(24):
        file = [*own, *cells][trial % (len(own) + len(cells))]
        folder = tmp_path / f"study-{trial}"
        shutil.copytree(out, folder)
        target = folder / file.relative_to(out)
        target.write_bytes(damaged(file.read_bytes(), file.suffix, chance))
        held_to_manners("plot", folder, "--out", tmp_path / "pictures")
        held_to_manners("plot", target, "--out", tmp_path / "pictures")
        # as the study does, which lists the damaged and makes them again
        read = stability_map.read_cell if kind == "finished_sweep" else critical_batch.read_goal_run
        failures = damaged_runs(folder / "cells", read)
        assert failures == [] or (file in cells and str(target.parent) in failures)
        assert target.exists()


@pytest.mark.slow
@pytest.mark.pictures
def test_a_damaged_table_of_runs_or_measurement_is_named(there, tmp_path):
    chance = random.Random(3)
    measured = tmp_path / "measured.json"
    result = run("measure-noise", "run", "--num-examples", "12", "--json")
    measured.write_text(result.stdout)
    assert measured.stat().st_size > 100
    for trial in range(30):
        table = tmp_path / f"table-{trial}.csv"
        table.write_bytes(damaged(TABLE.encode(), ".csv", chance))
        result = held_to_manners("critical-batch", "--from-csv", table)
        assert result.exit_code == 0 or table.name in result.stderr
        entries = tmp_path / f"measured-{trial}.json"
        entries.write_bytes(damaged(measured.read_bytes(), ".json", chance))
        result = held_to_manners("plot", entries)
        assert result.exit_code == 0 or entries.name in result.stderr


@pytest.mark.slow
@pytest.mark.pictures
def test_damaged_weights_are_named(there, tmp_path):
    chance = random.Random(4)
    for trial in range(20):
        weights = tmp_path / f"weights-{trial}.pt"
        weights.write_bytes(damaged(Path("weights.pt").read_bytes(), ".pt", chance))
        result = held_to_manners("measure-noise", weights, "--problem", "text.py:make")
        assert result.exit_code == 0 or weights.name in result.stderr, result.stderr
