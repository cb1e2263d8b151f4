"""What the experiments take is timed, recorded and listed, with where the results lie."""

import json
import time

import click
import pytest
from click.testing import CliRunner

from analysis.__main__ import main as analysis, tables_of
from experiments import durations
from experiments.__main__ import main as experiments
from noisescale.studies.jobs.local import LocalProcesses
from paper_figures.__main__ import DRAWN_FROM, FIGURES, figures_of, main as paper_figures
from tests.helpers.paths import ROOT

SOME = "adaptive_batch,full,60,a machine,2026-11-21,written down\n"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A file of durations of our own."""
    path = tmp_path / "durations.csv"
    path.write_text("# a head\nexperiment,scale,core_minutes,machine,date,source\n" + SOME)
    monkeypatch.setattr(durations, "DURATIONS", path)
    return path


def burn(**options):
    options["out"].mkdir(exist_ok=True)
    if options["scale"] == "pool":  # a worker that takes the time, as in most experiments
        pool = LocalProcesses(1)
        try:
            pool.submit(burnt_in_a_worker).result()
        finally:
            pool.shutdown(cancel_futures=True)
        return
    start = durations._processor_seconds()
    while durations._processor_seconds() < start + 0.2:
        pass
    if options["scale"] == "broken":
        raise ValueError("stopped in the middle")


def test_the_time_of_every_call_is_added(tmp_path, recorded):
    command = durations.timed(click.Command("burnt", callback=burn))
    out = tmp_path / "out"
    command.callback(scale="quick", out=out)
    first = json.loads((out / "time.json").read_text())["processor_seconds"]
    with pytest.raises(ValueError, match="stopped in the middle"):
        command.callback(scale="broken", out=out)  # counts all the same
    again = json.loads((out / "time.json").read_text())["processor_seconds"]
    assert 0.2 <= first < 1
    assert again >= first + 0.2
    command.callback(scale="quick", out=out)
    result = CliRunner().invoke(durations.main, [str(out)])
    assert result.exit_code == 0, result.output
    assert recorded.read_text().startswith("# a head\n")
    assert SOME in recorded.read_text()
    assert durations.duration("burnt", "quick") in ("0.01 min", "0.011 min", "0.012 min")
    assert durations.duration("burnt", "full") == "not timed"


def burnt_in_a_worker():
    end = time.process_time() + 1.5
    while time.process_time() < end:
        pass


@pytest.mark.processes
def test_the_time_of_workers_is_added(tmp_path, recorded):
    command = durations.timed(click.Command("burnt", callback=burn))
    command.callback(scale="pool", out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "time.json").read_text())
    assert record["processor_seconds"] > 1.5


def test_a_folder_that_was_not_timed_is_refused(tmp_path, recorded):
    result = CliRunner().invoke(durations.main, [str(tmp_path)])
    assert result.exit_code == 1
    assert "has no time.json: compute its runs" in result.output


@pytest.mark.parametrize(("minutes", "text"), [(0.5, "0.5 min"), (57, "57 min"), (150, "2.5 h")])
def test_a_duration_is_in_the_unit_that_reads_best(recorded, minutes, text):
    recorded.write_text(recorded.read_text().replace(",60,", f",{minutes},"))
    assert durations.duration("adaptive_batch", "full") == text


def test_an_estimate_is_said_to_be_one(recorded):
    recorded.write_text(recorded.read_text().replace("written down", "estimated: by its parts"))
    assert durations.duration("adaptive_batch", "full") == "some 60 min"


def test_every_experiment_is_listed_with_what_is_recorded_and_where_it_lies():
    text = " ".join(CliRunner().invoke(experiments, ["--list"], terminal_width=200).output.split())
    assert set(experiments.commands) == set(analysis.commands)
    for name in experiments.commands:
        assert f"{durations.duration(name, 'full')} (full)" in text
        tables = tables_of(name)
        yet = "" if list((ROOT / tables).glob("*.csv")) else " (not committed yet)"
        assert f"Tables: {tables}{yet}." in text
        for figure in figures_of(name):
            assert figure in text


def test_a_figure_is_drawn_from_the_tables_it_is_listed_with(tmp_path):
    text = " ".join(
        CliRunner().invoke(paper_figures, ["--list"], terminal_width=200).output.split()
    )
    for name, draw in FIGURES.items():
        experiment = DRAWN_FROM.get(name, name)
        with pytest.raises(FileNotFoundError) as error:
            draw(tmp_path)
        assert str(tmp_path / experiment) in str(error.value.filename)
        assert f"From paper_figures/data/{experiment}." in text


def test_analyses_are_listed_with_their_tables():
    text = " ".join(CliRunner().invoke(analysis, ["--list"], terminal_width=200).output.split())
    assert all(f"In {tables_of(name)}." in text for name in analysis.commands)
