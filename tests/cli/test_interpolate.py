import json
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.command_line import SMALL, run, strict


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of one problem and one of another."""
    folder = tmp_path_factory.mktemp("runs")
    for name, more in {"a": (), "b": ("--seed", 1), "wide": ("--width", 9)}.items():
        assert run(*SMALL, "--lr", 0.1, *more, "--out", folder / name).exit_code == 0
    return folder


def test_the_line_is_printed_written_and_drawn(runs, tmp_path):
    table, picture = tmp_path / "line.csv", tmp_path / "line.png"
    command = ("interpolate", runs / "a", runs / "b" / "checkpoint.pt")
    result = run(*command, "--csv", table, "--plot", picture, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines[2:-2])) <= 80
    assert "Barrier of the test loss: " in result.stdout
    assert lines[-2:] == [str(table), str(picture)]
    assert picture.stat().st_size > 10_000
    rows = pd.read_csv(table)
    assert list(rows["split"].value_counts()) == [41, 41]
    record = strict(run(*command, "--json").stdout)
    ends = [json.loads((runs / name / "summary.json").read_text()) for name in "ab"]
    for split in ("train", "test"):
        at = {p["alpha"]: p for p in record["points"] if p["split"] == split}
        for alpha, summary in zip((0.0, 1.0), ends, strict=True):
            assert at[alpha]["loss"] == pytest.approx(summary[split]["loss"], rel=1e-5)
            assert at[alpha]["accuracy"] == pytest.approx(summary[split]["accuracy"])
        assert record["barriers"][split]["height"]["low"] is not None


def test_zero_and_one_are_among_the_points_whatever_the_grid(runs):
    few = ("--points", 4, "--from-alpha", -0.1, "--to-alpha", 1.3, "--split", "test")
    record = strict(run("interpolate", runs / "a", runs / "b", *few, "--json").stdout)
    assert [point["alpha"] for point in record["points"]] == pytest.approx(
        [-0.1, 0, 0.3666666667, 0.8333333333, 1, 1.3]
    )


def test_checkpoints_of_different_problems_are_one_message(runs):
    result = run("interpolate", runs / "a", runs / "wide")
    assert result.exit_code == 1
    assert "width is 8 of the first, 9 of the second" in " ".join(result.stderr.split())
    assert len(result.stderr.strip().splitlines()) < 5


def test_a_grid_with_nothing_between_is_refused(runs):
    result = run(*("interpolate", runs / "a", runs / "b", "--points", 3, "--to-alpha", 1))
    assert result.exit_code == 0, result.output  # -0.5, 0.25, 1
    wide = ("--points", 3, "--from-alpha", -10, "--to-alpha", 10)  # -10, 0, 1 and 10
    result = run("interpolate", runs / "a", runs / "b", *wide)
    assert result.exit_code == 2
    assert "none lies between the models; give more" in " ".join(result.stderr.split())
    result = run(*("interpolate", runs / "a", runs / "b", "--points", 2))
    assert result.exit_code == 2
    missing = run("interpolate", runs / "a", Path("nowhere"))
    assert missing.exit_code == 1
    assert "nowhere" in missing.stderr
