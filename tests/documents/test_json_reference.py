"""docs/reference/json.md says every key that a command prints with --json, and no other."""

import json
import shutil
from pathlib import Path

import pytest

from noisescale.cli.printing.stability_map import sweep_record
from noisescale.studies.critical_batch.results import read_front
from tests.helpers import own_problems
from tests.helpers.command_line import run, strict
from tests.helpers.executors import Here
from tests.helpers.paths import ROOT
from tests.helpers.reference import Reference

PAGE = ROOT / "docs" / "reference" / "json.md"
DIGITS = ("--dataset", "digits", "--width", "4", "--depth", "1", "--epochs", "1")
QUADRATIC = f"{Path(own_problems.__file__)}:quadratic"
FEW = ("--num-examples", "40")


def printed(*arguments):
    """What a command prints with --json."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return strict(result.stdout)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, finished_sweep, finished_critical_batch):
    """Outputs by the section that says what they hold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("outputs"))
        patch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())
        patch.setattr("noisescale.measure.stability.MOST_STEPS", 30)
        patch.setattr("noisescale.measure.stability.FEWEST_STEPS", 30)
        noise = ("--measure-noise-every", 80, "--noise-examples", 100)
        train = [
            printed("train", *DIGITS, "--bs", "adaptive", "--lr", 0.1, *noise, "--out", "adaptive"),
            printed("train", *DIGITS, "--bs", 8, "--lr", 0.1, *noise, "--out", "run"),
            printed("train", *DIGITS, "--bs", 1, "--lr", 1e6, "--out", "diverged"),
            printed("train", "--problem", QUADRATIC, "--bs", 8, "--epochs", 1, "--out", "own"),
        ]
        every = ("--hessian", "--num-probes", 4, "--per-layer", "--per-class")
        measured = [
            printed("measure-noise", "run", *FEW, *every),
            printed("measure-noise", "--problem", QUADRATIC, *FEW),
        ]
        parts = ("--trace", "--density", "--phi", "--batch-sharpness", 4)
        sharp = [
            printed("sharpness", "run", *FEW, *parts),
            printed("sharpness", "run", "diverged", *FEW),
        ]
        recommended = [
            printed("recommend", QUADRATIC, "--bs", 64, "--epochs", 1, "--out", "recommend"),
            printed("recommend", "run"),
        ]
        shutil.copy("run/checkpoint.pt", "weights.pt")
        recommended.append(printed("recommend", "weights.pt"))
        small = ("--num-train", 60, "--bs", 4, "--steps", 6, "--seeds", 1, "--factor", 9)
        sweep = [
            printed("sweep-lr", *DIGITS[:-2], *small, "--out", "sweep"),
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
    return {
        "train": train,
        "measure-noise": measured,
        "sharpness": sharp,
        "recommend": recommended,
        "sweep-lr": sweep,
        "critical-batch": front,
        "branches": branches,
    }


@pytest.mark.slow
def test_the_page_says_what_the_commands_print(outputs):
    reference = Reference.read(PAGE)
    for section, of_command in outputs.items():
        for output in of_command:
            reference.hold(output, section, section)
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
