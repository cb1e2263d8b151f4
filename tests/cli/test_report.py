"""`noisescale report`: one page of whatever the other commands leave, that needs nothing else."""

import json
import math
import re
import shlex
import shutil
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from noisescale import NoisescaleError, write_report
from noisescale.cli.artefacts.commands import noise_command
from noisescale.cli.artefacts.page import inline_svg
from noisescale.cli.printing import tables
from noisescale.cli.printing.critical_batch import print_fits
from noisescale.cli.printing.stability_map import print_sweep
from noisescale.cli.printing.tables import NumberTable
from noisescale.plots.style import panels
from tests.helpers import own_problems
from tests.helpers.command_line import SMALL, run
from tests.helpers.executors import Here
from tests.helpers.measurements import noise_table
from tests.helpers.pages import Page, assert_stands_alone

DIGITS = ("--dataset", "digits", "--width", "8", "--depth", "1")
QUADRATIC = f"{Path(own_problems.__file__)}:quadratic"
KINDS = {  # the pictures that each has
    "runs": 9,
    "adaptive": 5,
    "diverged": 2,
    "sweep": 1,
    "critical": 1,
    "from_csv": 1,
    "branches": 1,
    "recommend": 1,
    "noise.json": 1,
    "noise-one.json": 1,
    "sharpness.json": 1,
    "adaptive/noise.csv": 1,
    "runs/comparison.csv": 1,
}


@contextmanager
def recording(seen):
    """Notes what is printed, sentences and tables, before it meets any screen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables.Screen, "print", lambda self, *parts, **settings: seen.extend(parts))
        yield


@pytest.fixture(scope="module")
def left(tmp_path_factory, finished_sweep, finished_critical_batch):
    """A folder of everything that the commands leave, and what they printed."""
    folder = tmp_path_factory.mktemp("left")
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())

        def made(name, *arguments, json_to=None):
            with recording(printed.setdefault(name, [])):
                result = run(*arguments)
            assert result.exit_code == 0, result.output
            if json_to is not None:
                Path(json_to).write_text(run(*arguments, "--json").stdout)

        tracked = ("--measure-noise-every", "40", "--noise-examples", "200")
        sharp = ("--measure-sharpness-every", "80", "--sharpness-examples", "50")
        runs = ("train", *DIGITS, "--epochs", "1", *tracked, "--noise-per-layer", *sharp)
        made("runs", *runs, "--bs", "32", "--bs", "8", "--out", "runs")
        made("adaptive", *runs, "--bs", "adaptive", "--out", "adaptive")
        made("diverged", "train", *DIGITS, "--bs", "1", "--lr", "1e6", "--epochs", "1",
             "--out", "diverged")  # fmt: skip
        for name, finished, show in (
            ("sweep", finished_sweep, print_sweep),
            ("critical", finished_critical_batch, print_fits),
        ):
            shutil.copytree(finished.out, name)
            with recording(printed.setdefault(name, [])):
                show(finished.result)
        table = "critical/steps_to_goal.csv"
        made("from_csv", "critical-batch", "--from-csv", table, "--out", "from_csv")
        start = ("--method", "branch", "runs/bs8")
        made("branches", "critical-batch", *start, "--bs", "8", "--bs", "16", "--bs", "32",
             "--examples", "320", "--out", "branches")  # fmt: skip
        made("recommend", "recommend", QUADRATIC, "--bs", 64, "--epochs", 1, "--out", "recommend")
        few = ("--num-examples", "60")
        parts = ("--hessian", "--num-probes", "4", "--per-layer", "--per-class", "--anatomy")
        both = ("measure-noise", "runs/bs8", "adaptive", *few, *parts)
        made("noise.json", *both, json_to="noise.json")
        one = "runs/bs8/checkpoint.pt"
        made("noise-one.json", "measure-noise", one, *few, json_to="noise-one.json")
        every = ("--top", 2, "--bottom", 1, "--trace", "--density", "--phi", "--batch-sharpness", 8)
        made("sharpness.json", "sharpness", one, *few, *every, json_to="sharpness.json")
        yield SimpleNamespace(folder=folder, printed=printed)


@pytest.fixture(scope="module")
def pages(left):
    """The page of each of them, taken apart."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(left.folder)
        for kind in KINDS:
            result = run("report", kind, "--out", "pages/page.html")
            assert result.exit_code == 0, result.output
            assert result.stdout == "pages/page.html\n"
            found[kind] = Page(Path("pages/page.html"))
    return found


@pytest.fixture(autouse=True)
def _there(request, monkeypatch):
    if "left" in request.fixturenames:
        monkeypatch.chdir(request.getfixturevalue("left").folder)


def rows_of(page):
    """The rows of all tables of a page, headings too."""
    return [row for table in page.tables for row in table]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_stands_alone_and_has_every_picture(pages, kind):
    page = pages[kind]
    assert_stands_alone(page)
    assert page.tags.count("svg") == KINDS[kind]
    assert page.tags.count("figure") == KINDS[kind]
    assert page.tags.count("h1") == 1
    assert kind in page.text
    assert page.commands[-1] == f"noisescale report {kind} --out pages/page.html"
    assert not any("nan" in cell for row in rows_of(page) for cell in row)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if ".csv" not in kind])
def test_a_page_has_the_tables_and_sentences_that_the_command_printed(left, pages, kind):
    page = pages[kind]
    printed = [each for each in left.printed[kind] if isinstance(each, NumberTable)]
    assert printed or kind == "recommend"
    for table in printed:
        headings = [column.heading for column in table.columns]
        expected = [headings, *map(list, table.rows)]
        assert expected in page.tables, headings
    sentences = [each for each in left.printed[kind] if isinstance(each, str)]
    # what a run's noise recommends is said otherwise: JSON does not hold all of it
    sentences = [each for each in sentences if not each.startswith(("Along ", "A batch size that"))]
    for sentence in sentences:
        assert " ".join(sentence.split()) in page.text
    notes = [each for each in left.printed[kind] if str(each).startswith("B_crit ≈")]
    assert all(str(note).rstrip(":") in page.text for note in notes)


def numbers(row):
    """The numbers of a row's cells, which have six digits; what is no number is left out."""
    found = []
    for cell in row:
        try:
            found.append(float(cell.replace(",", "")))
        except ValueError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("sweep", "sweep/cells.csv"),
        ("critical", "critical/steps_to_goal.csv"),
        ("critical", "critical/learning_rates.csv"),
        ("branches", "branches/branches.csv"),
        ("recommend", "recommend/learning_rates.csv"),
        ("adaptive", "adaptive/metrics.csv"),
        ("adaptive/noise.csv", "adaptive/noise.csv"),
    ],
)
def test_a_table_on_disk_is_on_the_page_number_by_number(pages, kind, table):
    there = pd.read_csv(table)
    found = rows_of(pages[kind])
    for row in there.to_dict("records"):
        values = [
            float(f"{value:.6g}")
            for value in row.values()
            if isinstance(value, int | float) and not math.isnan(value)
        ]
        assert values in [[float(f"{x:.6g}") for x in numbers(cells)] for cells in found]


@pytest.mark.slow
def test_estimates_along_a_run_have_their_value_and_interval(pages):
    cells = {cell for row in rows_of(pages["runs"]) for cell in row}
    for row in pd.read_csv("runs/bs8/noise.csv").to_dict("records"):
        names = ("simple", "simple_stderr", "simple_low", "simple_high")
        if any(math.isnan(row[name]) for name in names):
            continue
        digits = max(0, 1 - math.floor(math.log10(row["simple_stderr"])))  # two of the error
        value, stderr, low, high = (f"{row[name]:,.{digits}f}" for name in names)
        assert f"{value} ± {stderr} ({low}–{high})" in cells


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adaptive", "diverged", "sweep", "critical", "recommend"])
def test_the_command_on_the_page_is_of_what_lies_there(left, pages, kind, monkeypatch):
    """Run again it finds everything finished, and trains nothing."""
    monkeypatch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())
    monkeypatch.setattr("noisescale.training.trainer.Training.calls", None)
    command = pages[kind].commands[0]
    before = sorted(Path(kind).rglob("*/summary.json"))
    result = run(*shlex.split(command)[1:])
    assert result.exit_code == 0, (command, result.output)
    assert sorted(Path(kind).rglob("*/summary.json")) == before


def test_the_command_of_measurements_has_the_options_that_made_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*SMALL, "--optimizer", "adamw", "--lr", "1e-3", "--out", "run").exit_code == 0
    options = ["--anatomy", "--sign", "--num-examples", "50", "--amp", "bf16"]
    options += ["--preconditioner", "none"]
    measured = run("measure-noise", "run/checkpoint.pt", *options, "--json")
    assert measured.exit_code == 0, measured.output
    command = noise_command(Path("noise.json"), json.loads(measured.stdout))
    said = " ".join(shlex.split(command))
    assert said.startswith("noisescale measure-noise run/checkpoint.pt ")
    for option in ("--anatomy", "--sign", "--num-examples 50", "--amp bf16"):
        assert option in said
    assert "--preconditioner none" in said
    plain = run("measure-noise", "run/checkpoint.pt", "--num-examples", "50", "--json")
    command = noise_command(Path("noise.json"), json.loads(plain.stdout))
    for option in ("--anatomy", "--sign", "--amp", "--preconditioner"):
        assert option not in command


@pytest.mark.slow
def test_several_on_one_page_have_a_table_of_contents_and_ids_of_their_own(left):
    paths = ["sweep", "critical", "noise.json", "runs"]
    assert run("report", *paths, "--out", "all.html").exit_code == 0
    page = Page(Path("all.html"))
    assert_stands_alone(page)
    contents = [reference for reference in page.references if reference.startswith("#part-")]
    contents = [reference for reference in contents if reference.count("-") == 1]
    assert contents == [f"#part-{number}" for number in range(1, 7)]  # runs: two and their index
    first = Path("all.html").read_bytes()
    assert run("report", *paths, "--out", "all.html").exit_code == 0
    assert Path("all.html").read_bytes() == first


@pytest.mark.slow
def test_names_from_files_are_text_and_never_markup(left, tmp_path, monkeypatch):
    name = '<script>alert("1")<&script>--><b>'
    shutil.copytree("runs/bs8", tmp_path / name)
    config = json.loads((tmp_path / name / "config.json").read_text())
    config["problem"] = {"factory": f"{name}.py:make", "source": "0"}
    (tmp_path / name / "config.json").write_text(json.dumps(config))
    summary = json.loads((tmp_path / name / "summary.json").read_text())
    summary["environment"]["device"] = "<img src=x onerror=alert(1)>"
    (tmp_path / name / "summary.json").write_text(json.dumps(summary))
    entries = json.loads(Path("noise.json").read_text())
    for entry in entries:
        entry["problem"] = "<script>2</script>"
        for row in entry["per_layer"]:
            row["parameter"] = "<svg onload=3>"
    (tmp_path / "noise.json").write_text(json.dumps(entries))
    monkeypatch.chdir(tmp_path)
    result = run("report", name, "noise.json")
    assert result.exit_code == 0, result.output
    page = Page(Path("report.html"))
    assert_stands_alone(page)
    assert name in page.text
    assert "<img src=x onerror=alert(1)>" in page.text
    assert "<script>2</script>" in page.text
    assert any("<svg onload=3>" in row for row in rows_of(page))
    assert shlex.split(page.commands[-1])[2] == name


@pytest.mark.slow
def test_what_is_unfinished_is_shown_as_far_as_it_is(left, tmp_path):
    for kind in ("adaptive", "sweep", "critical", "branches", "recommend"):
        shutil.copytree(kind, tmp_path / kind)
    (tmp_path / "adaptive" / "summary.json").unlink()
    for kind, names in {
        "sweep": ("summary.json", "cells.csv", "boundary.csv"),
        "critical": ("summary.json", "steps_to_goal.csv"),
        "branches": ("branch.json", "branches.csv"),
        "recommend": ("summary.json",),
    }.items():
        for name in names:
            (tmp_path / kind / name).unlink()
    for kind in ("adaptive", "sweep", "critical", "branches", "recommend"):
        page = Page(write_report(tmp_path / kind, tmp_path / "page.html"))
        assert "Unfinished" in page.text, kind
        assert "so far" in page.text
        assert_stands_alone(page)
        finished = len(list((tmp_path / kind).rglob("*/summary.json")))
        if kind != "adaptive":
            assert f"{finished} runs finished so far" in page.text
            assert len(page.tables[0]) == finished + 1


@pytest.mark.slow
def test_a_damaged_one_is_said_and_does_not_stop_the_others(left, tmp_path):
    shutil.copytree("adaptive", tmp_path / "bad")
    (tmp_path / "bad" / "noise.csv").write_text("step,loss\n1,low\n")
    result = run("report", tmp_path / "bad", "diverged", "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert result.stdout == f"{tmp_path}/page.html\n"
    assert "noise.csv is damaged" in result.stderr
    assert "Traceback" not in result.output
    page = Page(tmp_path / "page.html")
    assert "noise.csv is damaged" in page.text
    assert "Diverged at step" in page.text
    assert_stands_alone(page)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("notes.txt", "nothing like it", "no picture of a table with these columns; give the"),
        ("binary.pt", b"PK\x03\x04\xff\xfe", "no table"),
        ("summary.json", "{}", "no measurements of measure-noise or sharpness; give the folder"),
        ("cut.json", "[{", "is not valid JSON"),
        ("sweep/sweep.json", "[]", "holds no JSON object"),
        ("sweep/summary.json", "{}", "nothing to show in it"),
        ("run/config.json", '{"problem": 3}', "is not a run's configuration"),
        ("study/recommend.json", "{}", "recommend.json"),
        ("study/branches.json", "{", "study"),
    ],
)
def test_what_cannot_be_shown_is_said_with_what_can(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = run("report", path.parts[0])
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
    assert not Path("report.html").exists()


def test_an_empty_folder_and_a_missing_one_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    refused = run("report", "empty")
    assert refused.exit_code == 1
    assert "empty: nothing to show in it; give the folder of a run" in refused.stderr
    assert run("report", "missing").exit_code == 2
    assert run("report").exit_code == 2
    with pytest.raises(NoisescaleError, match="no path is given"):
        write_report([], "report.html")


def test_a_page_goes_where_no_other_file_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise_table().to_csv("noise.csv", index=False, na_rep="nan")
    for out in ("summary.json", "page", "."):
        refused = run("report", "noise.csv", "--out", out)
        assert refused.exit_code == 2
        assert "give a file name that ends in .html" in " ".join(refused.stderr.split())
    Path("mine.html").write_text("<html>a page of my own</html>")
    refused = run("report", "noise.csv", "--out", "mine.html")
    assert refused.exit_code == 2
    assert "is no report of noisescale's" in refused.stderr
    assert "my own" in Path("mine.html").read_text()
    assert run("report", "noise.csv", "--out", "deep/er/page.html").exit_code == 0
    assert run("report", "noise.csv", "--out", "deep/er/page.html").exit_code == 0  # replaced
    assert [path.name for path in Path("deep/er").iterdir()] == ["page.html"]
    Path("file").write_text("")
    blocked = run("report", "noise.csv", "--out", "file/page.html")
    assert blocked.exit_code == 1
    assert "Traceback" not in blocked.output


def test_no_two_figures_of_a_page_share_an_id():
    figure, axes = panels(1, width=3, height=2, title="a < b -- c")
    axes[0].plot([1, 2], [1, 2], label="$B_c$")
    axes[0].imshow([[0.0, 1.0]])
    svg, other = (inline_svg(figure, prefix, '<"t">') for prefix in ("a-", "b-"))
    ids, others = (set(re.findall(r'\bid="([^"]+)"', text)) for text in (svg, other))
    assert ids
    assert not ids & others
    assert 'aria-label="&lt;&quot;t&quot;&gt;"' in svg
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg)) <= ids
    assert "xlink" not in svg
    assert svg.count("http") == 0


def test_help_shows_examples():
    result = run("report", "--help", terminal_width=100)
    assert "noisescale report runs --out runs.html" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 100
