"""docs/reference says every key, file and column that a command leaves, and no other.

json.md is held to what --json prints, run-folder.md to the folders of the same commands.
"""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from noisescale.cli.printing.stability_map import sweep_record
from noisescale.studies.critical_batch.results import read_front
from tests.helpers import own_problems
from tests.helpers.command_line import run, strict
from tests.helpers.executors import Here
from tests.helpers.paths import ROOT
from tests.helpers.reference import Reference

pytestmark = pytest.mark.pictures

JSON_PAGE = ROOT / "docs" / "reference" / "json.md"
FOLDERS_PAGE = ROOT / "docs" / "reference" / "run-folder.md"
DIGITS = ("--dataset", "digits", "--width", "4", "--depth", "1", "--epochs", "1")
QUADRATIC = f"{Path(own_problems.__file__)}:quadratic"
TEXT = ("--dataset", "markov", "--model", "gpt", "--depth", "1", "--width", "8", "--heads", "1")
TEXT = (*TEXT, "--context", "8", "--num-train", "64", "--epochs", "1")
FEW = ("--num-examples", "40")
MIXED = ("--imbalance", 4, "--sampling", "importance")
ADAMW = ("--optimizer", "adamw", "--weight-decay", "0.1", "--bs", "8")


def printed(*arguments):
    """What a command prints with --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return strict(result.stdout)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, finished_sweep, finished_critical_batch, drawing):
    """The folder that commands wrote to, and their JSON by the section that says what it holds."""
    folder = tmp_path_factory.mktemp("outputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())
        patch.setattr("noisescale.measure.stability.MOST_STEPS", 30)
        patch.setattr("noisescale.measure.stability.FEWEST_STEPS", 30)
        noise = ("--measure-noise-every", 40, "--noise-examples", 200, "--noise-per-layer")
        noise = (*noise, "--lr", 0.1, "--measure-sharpness-every", 100, "--sharpness-examples", 20)
        kept = ("--checkpoint-every", 100)
        train = [
            printed("train", *DIGITS, "--bs", "adaptive", *noise, "--out", "adaptive"),
            printed("train", *DIGITS, "--bs", 8, *noise, *kept, "--out", "run"),
            printed("train", *DIGITS, "--bs", 8, "--optimizer", "adam", *noise, "--out", "adam"),
            printed("train", *DIGITS, "--bs", 64, "--bs", 128, "--out", "several"),
            printed("train", *DIGITS, "--bs", 1, "--lr", 1e6, "--out", "diverged"),
            printed("train", "--problem", QUADRATIC, "--bs", 8, "--epochs", 1, "--out", "own"),
            printed("train", *TEXT, "--out", "text"),
            printed("train", *DIGITS, "--classes", 3, "--label-noise", 0.1, "--out", "labels"),
            printed("train", *DIGITS, *MIXED, "--out", "mixed"),
            printed("train", *DIGITS, *noise, *ADAMW, "--out", "adamw"),
        ]
        every = (
            "--hessian",
            "--num-probes",
            4,
            "--per-layer",
            "--per-class",
            "--anatomy",
            "--sign",
        )
        measured = [
            printed("measure-noise", "run", *FEW, *every),
            printed("measure-noise", "--problem", QUADRATIC, *FEW),
            printed("measure-noise", "adamw", *FEW, "--schedule", "levanter"),
        ]
        dry = [
            printed("measure-noise", "run", *FEW, "--hessian", "--dry-run"),
            printed("sharpness", "run", *FEW, "--trace", "--dry-run"),
        ]
        parts = ("--trace", "--density", "--phi", "--batch-sharpness", 4)
        sharp = [
            printed("sharpness", "run", *FEW, *parts),
            printed("sharpness", "run", "diverged", *FEW),
        ]
        recommended = [
            printed("recommend", QUADRATIC, "--bs", 64, "--epochs", 1, "--out", "recommend"),
            printed("recommend", "run"),
            printed("recommend", "adamw", "--schedule", "levanter"),
        ]
        shutil.copy("run/checkpoint.pt", "weights.pt")
        recommended.append(printed("recommend", "weights.pt"))
        small = ("--num-train", 60, "--bs", 4, "--steps", 6, "--seeds", 1, "--factor", 9)
        folds = ("--folds", 2, "--num-lr", 2, "--lr-min", 0.1, "--lr-max", 1, "--no-predict")
        sweep = [
            printed("sweep-lr", *DIGITS[:-2], *small, "--out", "sweep"),
            printed("sweep-lr", *DIGITS[:-2], *small[:6], *folds, "--out", "folds"),
            json.loads(json.dumps(sweep_record(finished_sweep.result))),
        ]
        front = [
            finished_critical_batch.result.to_dict(),
            read_front(finished_critical_batch.out).to_dict(),
        ]
        start = ("--method", "branch", "run", "--bs", 4, "--bs", 8, "--bs", 16, "--examples", 80)
        bend = ("--lr-scaling", "noise", "--lr-bend", 50)
        branches = [
            printed("critical-batch", *start, "--out", "branches"),
            printed("critical-batch", *start, *bend, "--out", "bent"),
        ]
        ends = ("several/bs64/checkpoint.pt", "several/bs128/checkpoint.pt")
        between = [printed("interpolate", *ends)]
        shutil.copytree(finished_sweep.out, "map")
        shutil.copytree(finished_critical_batch.out, "critical")
    records = {
        "train": train,
        "measure-noise": measured,
        "dry-run": dry,
        "sharpness": sharp,
        "interpolate": between,
        "recommend": recommended,
        "sweep-lr": sweep,
        "critical-batch": front,
        "branches": branches,
    }
    return SimpleNamespace(folder=folder, records=records)


@pytest.mark.slow
def test_the_page_says_what_the_commands_print(outputs):
    reference = Reference.read(JSON_PAGE)
    for section, of_command in outputs.records.items():
        for output in of_command:
            reference.hold(output, section, section)
    assert reference.unmet() == []


STUDIES = {  # the section of each folder's files
    "adaptive": "a-run",
    "run": "a-run",
    "adam": "a-run",
    "adamw": "a-run",
    "diverged": "a-run",
    "own": "a-run",
    "several/bs64": "a-run",
    "sweep": "a-sweep",
    "folds": "a-sweep",
    "map": "a-sweep",
    "critical": "a-critical-batch-size",
    "branches": "branches",
    "bent": "branches",
    "recommend": "a-recommendation",
}
RUNS = {"cells/", "noise-N/", "run-lr-N-N/"}  # in studies: folders of runs
TABLES = {  # whose columns are not in the section of the file's name
    ("a-run", "losses.csv"): "losses",
    ("a-run-of-a-study", "losses.csv"): "losses-of-a-studys-run",
    ("a-recommendation", "losses.csv"): "losses-of-a-studys-run",
    ("a-recommendation", "learning_rates.csv"): "rates-tried",
}


def left_in(folder):
    """The files of a folder and the runs below it, each with its name as the page has it."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not path.name.startswith("."):
            yield path, re.sub(r"(?<=-)[\d.]+(?=[-/]|$)|(?<=-)\d+|(?<=-bs)\d+", "N", name)


@pytest.mark.slow
def test_the_page_says_which_files_and_columns_a_folder_has(outputs):
    reference = Reference.read(FOLDERS_PAGE)
    found = {section: set() for section in (*STUDIES.values(), "a-run-of-a-study")}
    for name, section in STUDIES.items():
        for path, shown in left_in(outputs.folder / name):
            group = f"{shown.split('/')[0]}/"
            if section != "a-run" and group in RUNS:
                found[section].add(group)
                file, place = (
                    shown.rpartition("checkpoints/")[1] + Path(shown).name,
                    "a-run-of-a-study",
                )
            else:
                file, place = shown, section
            found[place].add(file)
            if path.suffix == ".csv":
                row = dict.fromkeys(pd.read_csv(path, nrows=0).columns)
                table = TABLES.get((place, file), file.replace(".", ""))
                reference.hold(row, table, f"{name}/{shown}")
    row = dict.fromkeys(pd.read_csv(outputs.folder / "several" / "comparison.csv").columns)
    reference.hold(row, "comparisoncsv", "comparison.csv")
    for section, files in found.items():
        assert files == set(reference.sections.pop(section)), section
    del reference.sections["summaryjson"]  # its keys are those of json.md
    assert reference.unmet() == []


def test_what_the_page_does_not_say_and_what_it_says_wrongly_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "## one\n\n| key | content |\n|---|---|\n| `a`, `b` | numbers |\n"
        "| `c` (optional) | [more](#two-of-it) |\n| `d` | settings, by name |\n"
        "| `gone` | nothing |\n\n### Two of it\n\n| key | content |\n|---|---|\n| `e` | x |\n"
    )
    reference = Reference.read(page)
    reference.hold([{"a": 1, "b": 2, "d": {"free": 1}}], "one", "x")
    reference.hold({"a": 1, "c": {"e": 1, "f": 2}, "d": None, "new": {"g": 1}}, "one", "y")
    assert reference.unmet() == [
        "y.c: two-of-it does not say f",
        "y: one does not say new",
        "one: b is there in 1 of 2, see (optional)",
        "one: no output has gone",
    ]
