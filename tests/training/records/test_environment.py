"""Where a number was made, as recorded with it."""

import subprocess
import sys

import pytest
import torch
import torchvision

import noisescale
from noisescale.training.records import environment as records
from noisescale.training.records.environment import CHECKOUT, commit, environment


def test_versions_are_those_of_the_libraries():
    record = environment("cpu")
    assert record["noisescale"] == noisescale.__version__
    assert record["torch"] == torch.__version__
    assert record["torchvision"] == torchvision.__version__


@pytest.mark.processes
def test_the_record_is_made_without_importing_torchvision():
    code = (
        "import sys\nfrom noisescale.training.records.environment import environment\n"
        "environment('cpu')\nassert 'torchvision' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_commit_is_that_of_the_checkout_the_package_lies_in():
    assert (CHECKOUT / "noisescale" / "__init__.py").exists()
    if not (CHECKOUT / ".git").exists():
        pytest.skip("no checkout")
    head = subprocess.run(
        ["git", "-C", str(CHECKOUT), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (commit() or "").removesuffix("+changes") == head.stdout.strip()


@pytest.mark.processes
def test_changes_are_told_but_for_those_that_do_not_count(tmp_path, monkeypatch):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/one.json"):
        (tmp_path / name).write_text("before")
    git("init")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    monkeypatch.setattr(records, "CHECKOUT", tmp_path)
    clean = commit()
    (tmp_path / "results" / "one.json").write_text("after")
    assert commit() == f"{clean}+changes"
    assert commit(but=["results"]) == clean
    (tmp_path / "code.py").write_text("after")
    assert commit(but=["results"]) == f"{clean}+changes"
