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
    shown = set(re.findall(r"<!-- results: (\w+) -->", text))
    assert shown == {"summary", *page.TABLES} == {"summary", *page.FIGURES}


def test_no_number_of_a_measurement_is_written_by_hand(text):
    prose = page.PART.sub("", text)
    assert re.findall(r"\d+[.,]\d|\d+ ?%|\d+ (?:s|ms|MiB|times)\b", prose) == []


def test_a_result_that_changes_changes_the_page(text, tmp_path, monkeypatch):
    shutil.copytree(page.RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "training-cpu.json"
    record = json.loads(path.read_text())
    measured = f"| {record['rows'][0]['steps_per_second']['ours']:,.0f} |"
    version = record["environment"]["torch"].partition("+")[0]
    assert measured in text
    record["rows"][0]["steps_per_second"]["ours"] = 12_345.6
    record["environment"]["device"], record["date"] = "an abacus", "2030-01-02"
    (tmp_path / "results" / "training-cuda.json").write_text(json.dumps(record))
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    filled = page.filled(text)
    assert measured in filled  # of the processor, which stays
    assert "| 12,346 |" in filled
    assert f"an abacus, torch {version}, 2030-01-02: `python -m experiments.benchmarks." in filled


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


RESULTS = sorted(page.RESULTS.glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_benchmark_that_was_cut_has_the_rows_it_came_to(path):
    name = path.stem.partition("-")[0]
    whole = json.loads(path.read_text())
    facts = {"environment", "date", "targets", "target", "rounds", "scale", "left_out"}
    for key in whole.keys() - facts:
        rest = {other: value for other, value in whole.items() if other != key}
        of_whole = {str(rows) for rows in page.TABLES[name](whole)}
        assert {str(rows) for rows in page.TABLES[name](rest)} != of_whole or key in {
            "num_examples",
            "compiled_against_eager_vmap",
        }
        assert len(list(page.FIGURES[name](rest))) <= len(list(page.FIGURES[name](whole)))
    nothing = {key: value for key, value in whole.items() if key in facts}
    assert list(page.FIGURES[name](nothing)) == []
    assert all(len(row) == len(rows[0]) for rows in page.TABLES[name](nothing) for row in rows)


def test_what_was_not_measured_is_said_with_the_reason(tmp_path, monkeypatch, text):
    shutil.copytree(page.RESULTS, tmp_path / "results")
    path = tmp_path / "results" / "curvature-cpu.json"
    record = json.loads(path.read_text())
    del record["warm_starts"]
    record["left_out"] = {"warm_starts": "there was no time left for it"}
    record["largest_eigenvalue"]["missing"] = {"PyHessian": "pyhessian is not installed"}
    path.write_text(json.dumps(record))
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    filled = page.filled(text)
    assert "Not measured: warm_starts (there was no time left for it)" in filled
    assert "| PyHessian | pyhessian is not installed | – | – | – | – |" in filled


def test_the_summary_holds_figures_against_their_targets(tmp_path):
    record = json.loads((page.RESULTS / "training-cpu.json").read_text())
    record["rows"][0]["ratio"]["eager"]["median"] = record["rows"][0]["target"]
    record["rows"][1]["ratio"]["eager"]["median"] = record["rows"][1]["target"] - 0.1
    for device in ("cpu", "cuda"):
        (tmp_path / f"training-{device}.json").write_text(json.dumps(record))
    rows = page.summary(tmp_path)
    of_gpu = page.summary(tmp_path, "cuda")[1:]
    assert rows[0] == ["benchmark", "what", "measured", "target", "met"]
    assert [row[0] for row in of_gpu] == ["training, GPU"] * len(of_gpu)
    assert len(rows) == 1 + 2 * len(of_gpu)
    of_eager = [row[-1] for row in of_gpu if "eager" in row[1]]
    assert of_eager[:2] == ["yes", "no"]
