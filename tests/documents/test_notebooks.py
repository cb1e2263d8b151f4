"""The notebooks run from the top, and show what running them gives."""

import re
from itertools import chain

import pytest

from tests.helpers.notebooks import NOTEBOOKS, code_cells, read, run
from tests.helpers.paths import ROOT

NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
CLOSE = 0.05  # of a number; other processors add up in another order, and training drifts apart


def texts(output):
    """What an output shows in words, by kind, with its pictures' kinds alone."""
    shown = {"text": output["text"]} if "text" in output else output["data"]
    return {kind: "" if kind == "image/png" else "".join(text) for kind, text in shown.items()}


def words(text):
    """What is not a number; how far columns lie apart goes by the numbers in them."""
    return NUMBER.sub("", text).split()


def numbers(text):
    return [float(found.replace(",", "")) for found in NUMBER.findall(text)]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_running_it_gives(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notebook = read(path)
    shown = [cell["outputs"] for cell in code_cells(notebook)]
    given = run(notebook)
    assert [len(outputs) for outputs in given] == [len(outputs) for outputs in shown]
    for ours, theirs in zip(chain(*given), chain(*shown), strict=True):
        ours, theirs = texts(ours), texts(theirs)
        assert list(ours) == list(theirs)
        for kind, text in ours.items():
            assert words(text) == words(theirs[kind])
            assert numbers(text) == pytest.approx(numbers(theirs[kind]), rel=CLOSE)
    assert list(tmp_path.iterdir()) == []  # it leaves nothing behind


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_run_in_order_and_is_linked(path):
    notebook = read(path)
    assert notebook["nbformat"] == 4
    counts = [cell["execution_count"] for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert any(
        "text/html" in out.get("data", {})
        for cell in code_cells(notebook)
        for out in cell["outputs"]
    )
    assert f"examples/notebooks/{path.name}" in (ROOT / "README.md").read_text()
    assert f"notebooks/{path.stem}.md" in (ROOT / "docs" / "getting-started.md").read_text()
