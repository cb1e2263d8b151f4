"""docs/benchmarks.md is what the results' JSON gives, and no number in it is written by hand."""

import importlib.util
import json
import re
import shutil

import pytest

from tests.helpers.paths import ROOT

SPEC = importlib.util.spec_from_file_location("benchmarks_page", ROOT / "docs" / "benchmarks.py")
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)


@pytest.fixture
def text():
    return page.PAGE.read_text()


def test_the_committed_page_is_what_the_results_give(text):
    assert page.filled(text) == text, "run python docs/benchmarks.py"


def test_every_result_has_its_part_of_the_page(text):
    for path in page.RESULTS.glob("*.json"):
        assert f"[JSON](results/{path.name})" in text
    assert set(re.findall(r"<!-- results: (\w+) -->", text)) == set(page.TABLES)


def test_no_number_of_a_measurement_is_written_by_hand(text):
    prose = page.PART.sub("", text)
    assert re.findall(r"\d+[.,]\d|\d+ ?%|\d+ (?:s|ms|MiB|times)\b", prose) == []


def test_a_result_that_changes_changes_the_page(text, tmp_path, monkeypatch):
    shutil.copytree(page.RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "training-cpu.json"
    record = json.loads(path.read_text())
    assert "| 413 |" in text
    record["rows"][0]["steps_per_second"]["ours"] = 12_345.6
    record["environment"]["device"], record["date"] = "an abacus", "2030-01-02"
    (tmp_path / "results" / "training-cuda.json").write_text(json.dumps(record))
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    filled = page.filled(text)
    assert "| 413 |" in filled  # of the processor, which stays
    assert "| 12,346 |" in filled
    assert "an abacus, torch 2.15.0, 2030-01-02: `python -m experiments.benchmarks." in filled


def test_what_a_peer_does_not_cover_is_said(text):
    (part,) = (match[0] for match in page.PART.finditer(text) if match[2] == "noise")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in part.splitlines()]
    by_name = {row[0]: row[1:] for row in rows if row}
    record = json.loads((page.RESULTS / "noise-cpu.json").read_text())
    peers = {"BackPACK, BatchL2Grad": "BackPACK BatchL2Grad", "ours, `compiled`": "compiled"}
    for shown, key in peers.items():
        for cell, model in zip(by_name[shown], record["models"].values(), strict=True):
            if key in model["not_covered"]:
                assert cell == "not covered"
            else:
                assert float(cell) == pytest.approx(model["rates"][key]["in_gradients"], rel=0.005)
