"""Tables of runs to goals: what is read, what is refused, which runs count, what is fitted."""

import io
import json
import math
import os
from pathlib import Path

import pandas as pd
import pytest

from noisescale.errors import SettingError
from noisescale.statistics.critical_batch.goal_table import (
    best_rates,
    fastest_runs,
    fit_goals,
    fit_laws,
    fit_record,
    fits_table,
    laws_table,
    read_goal_table,
    rises,
)
from tests.helpers.goal_tables import SIZES, synthetic


def written(tmp_path, text):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    return path


def test_a_table_of_two_columns_is_enough(tmp_path):
    lines = "".join(f"{size}, {100 * (1 + 16 / size)}\n" for size in SIZES)
    table = read_goal_table(written(tmp_path, "# from a notebook\nbatch_size, steps\n" + lines))
    ((goal, fit),) = fit_goals(table).items()
    assert math.isnan(goal)
    assert fit.critical_batch_size.value == pytest.approx(16, rel=1e-5)
    assert best_rates(table).empty
    assert fit_record(goal, fit, [])["goal"] is None


def test_what_is_written_is_read_back(tmp_path):
    table = synthetic()
    path = tmp_path / "runs.csv"
    table.sample(frac=1, random_state=0).to_csv(path, index=False)
    again = read_goal_table(path)
    before, after = fit_goals(table), fit_goals(again)
    assert list(before) == list(after) == [1.0, 0.5]
    assert before[0.5].critical_batch_size.value == pytest.approx(
        after[0.5].critical_batch_size.value
    )


def test_a_table_of_three_batch_sizes_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"3 batch sizes \(1, 2, 4\)"):
        read_goal_table(written(tmp_path, "batch_size,steps\n4,30\n1,100\n2,55\n"))


def test_words_for_truth_are_understood(tmp_path):
    lines = "".join(f"{size},{100 + 10 * size},{str(size == 1).lower()}\n" for size in SIZES)
    table = read_goal_table(written(tmp_path, "batch_size,steps,censored\n" + lines))
    assert table["censored"].tolist() == [1] + 7 * [0]
    upper = read_goal_table(written(tmp_path, "batch_size,steps,censored\n" + lines.title()))
    assert upper["censored"].tolist() == [1] + 7 * [0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch,steps\n1,2\n", "no column batch_size; its columns are batch, steps. It takes"),
        ("size,time\n1,2\n", "no column batch_size and no column steps"),
        ("", "cannot be read as CSV"),
        ("batch_size,steps\n", "has no rows"),
        ("batch_size,steps\n1,many\n", "row 1: steps is many; give a number above 0"),
        ("batch_size,steps\n1,10\n2,-3\n", "row 2: steps is -3"),
        ("batch_size,steps\n1,10\n2,\n", "row 2: steps is nan"),
        ("batch_size,steps\n1,10\n0,5\n", "row 2: batch_size is 0"),
        ("batch_size,steps,censored\n1,10,2\n", "censored is 2; give 0 or 1"),
        ("batch_size,steps,goal\n1,10,low\n", "goal is low; give a number"),
        ("batch_size,steps,goal\n1,10,inf\n", "goal is inf"),
        ("batch_size,steps,goal\n1,10,\n2,5,0.5\n", "row 1: no goal, though other rows have one"),
        ("batch_size,steps,learning_rate\n1,10,0\n", "learning_rate is 0; give a number above 0"),
        ("batch_size,steps,learning_rate\n1,10,inf\n", "learning_rate is inf"),
        ("batch_size,steps\n1e-320,10\n", "batch_size is"),
        ("batch_size,steps\n1,10,5\n", "cannot be read as CSV"),
        ("batch_size,steps, steps\n1,10,5\n", "more than one column steps: leave one of each"),
        (
            "batch_size,steps,censored,diverged\n1,10,1,1\n2,5,1,1\n4,3,1,1\n8,2,1,1\n",
            "every run diverged before its goal",
        ),
        (
            "batch_size,steps,goal,censored\n1,100,0.5,1\n1,50,0.2,0\n",
            "goal 0.2 after 50 steps and 0.5 only",
        ),
        (
            "batch_size,steps\n1,10\n2,6\n1,10\n",
            "row 3: .*those of an earlier row; number the seeds",
        ),
        (
            "batch_size,steps,goal\n1,10,0.5\n1,9,0.4\n",
            "row 2: .*goal 0.4 after 9 steps and 0.5 only after 10",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_its_row(tmp_path, text, message):
    with pytest.raises(SettingError, match=message):
        read_goal_table(written(tmp_path, text))


def test_stdin_and_the_shells_pipes_are_read_and_other_pipes_are_not(tmp_path, monkeypatch):
    text = "batch_size,steps\n1,100\n2,55\n4,30\n8,20\n"
    expected = read_goal_table(written(tmp_path, text))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    pd.testing.assert_frame_equal(read_goal_table(Path("-")), expected)
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    pd.testing.assert_frame_equal(read_goal_table(Path(f"/dev/fd/{reader}")), expected)
    os.close(reader)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SettingError, match="is a pipe: give a regular file"):
        read_goal_table(tmp_path / "pipe")


def test_a_file_that_is_not_there_or_no_text(tmp_path):
    with pytest.raises(SettingError, match="cannot be read"):
        read_goal_table(tmp_path / "absent.csv")
    path = tmp_path / "picture.csv"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(SettingError, match=r"cannot be read|no column"):
        read_goal_table(path)


def test_a_goal_with_too_few_batch_sizes_does_not_cost_the_others():
    table = synthetic()
    few = table[(table["goal"] == 1.0) | (table["batch_size"] <= 4)]
    fits = fit_goals(few)
    assert fits[1.0].resolved
    assert fits[0.5].reason == "3 batch sizes have runs that did not diverge, and it takes 4"
    assert not fit_goals(table[table["batch_size"] <= 4])[1.0].resolved


def runs(*rows):
    columns = ["goal", "batch_size", "learning_rate", "seed", "steps", "censored", "diverged"]
    return pd.DataFrame([(1.0, 8, *row) for row in rows], columns=columns)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        # the mean of both seeds counts, not seed 1's luckiest run
        (
            [(0.1, 0, 30, 0, 0), (0.1, 1, 30, 0, 0), (0.2, 0, 90, 0, 0), (0.2, 1, 20, 0, 0)],
            [(0, 30, 0), (1, 30, 0)],
        ),
        # a rate that one of three seeds has tried does not
        (
            [(0.1, 0, 30, 0, 0), (0.1, 1, 40, 0, 0), (0.1, 2, 50, 0, 0), (0.2, 1, 5, 0, 0)],
            [(0, 30, 0), (1, 40, 0), (2, 50, 0)],
        ),
        # one at which both reach the goal comes before a faster one at which one does
        (
            [(0.1, 0, 90, 0, 0), (0.1, 1, 90, 0, 0), (0.2, 0, 9, 0, 0), (0.2, 1, 99, 1, 0)],
            [(0, 90, 0), (1, 90, 0)],
        ),
        # else the other's steps are a bound
        (
            [(0.1, 0, 90, 1, 0), (0.1, 1, 90, 1, 0), (0.2, 0, 9, 0, 0), (0.2, 1, 99, 1, 0)],
            [(0, 9, 0), (1, 99, 1)],
        ),
        # no run reaches it: the longest, of those that did not diverge
        ([(0.1, 0, 70, 1, 0), (0.2, 0, 80, 1, 0), (0.4, 0, 95, 1, 1)], [(0, 80, 1)]),
        ([(0.4, 0, 95, 1, 1)], []),
        # a rate at which one of three seeds diverges is not one at which all reach the goal
        (
            [
                *((0.1, seed, 40, 0, 0) for seed in range(3)),
                *((0.4, seed, 10, 0, 0) for seed in range(2)),
                (0.4, 2, 5, 1, 1),
            ],
            [(0, 40, 0), (1, 40, 0), (2, 40, 0)],
        ),
        # one that diverged after it had reached the goal has reached it
        ([(0.4, 0, 95, 0, 1)], [(0, 95, 0)]),
        # without rates all runs are at one
        ([(math.nan, 0, 30, 0, 0), (math.nan, 1, 40, 0, 0)], [(0, 30, 0), (1, 40, 0)]),
    ],
)
def test_the_fastest_rate_of_all_seeds_counts(rows, expected):
    found = fastest_runs(runs(*rows))
    assert list(found[["seed", "steps", "censored"]].itertuples(index=False, name=None)) == expected


def test_the_fastest_runs_are_chosen_for_each_goal_and_batch_size():
    found = fastest_runs(synthetic())
    assert len(found) == 2 * len(SIZES) * 2
    assert list(found) == list(synthetic())


def test_fits_rates_and_laws_of_a_known_table():
    table = synthetic()
    fits = fit_goals(table)
    rates = best_rates(table)
    for goal, fit in fits.items():
        # the grid's fastest run is at most a factor of √2 from the best: exp(.3·(log √2)²) = 1.037
        assert fit.critical_batch_size.value == pytest.approx(16, rel=0.06)
        laws = fit_laws(rates, goal)
        assert laws[0].name == "noise"
        assert laws[0].bend == pytest.approx(10, rel=0.01)
        assert laws[0].scale == pytest.approx(0.8, rel=0.01)
    assert len(fits_table(fits)) == 2
    assert len(laws_table({goal: fit_laws(rates, goal) for goal in fits})) == 10
    json.dumps(fit_record(0.5, fits[0.5], fit_laws(rates, 0.5)), allow_nan=False)
    assert rates["goal"].is_monotonic_decreasing


def test_steps_that_rise_with_the_batch_size_are_said_aloud():
    table = synthetic()
    assert rises(fastest_runs(table), 1.0) == []
    table.loc[(table["batch_size"] == 64) & (table["goal"] == 1.0), "steps"] *= 2
    ((small, large, factor),) = rises(fastest_runs(table), 1.0)
    assert (small, large) == (32, 64)
    assert factor == pytest.approx(2 * 1.25 / 1.5, rel=0.1)
    assert rises(fastest_runs(table), 0.5) == []


def test_runs_without_the_names_of_seeds_are_those_of_one():
    rows = [
        {"goal": 1.0, "batch_size": size, "learning_rate": rate, "steps": steps, "censored": 0}
        for size in (1, 2, 4, 8)
        for rate, steps in ((0.1, 60.0), (0.2, 50.0), (0.4, 55.0))
    ]
    blank = best_rates(pd.DataFrame(rows).assign(seed=math.nan))
    named = best_rates(pd.DataFrame(rows).assign(seed=0))
    pd.testing.assert_frame_equal(blank, named)
    assert (blank["num_seeds"] == 1).all()
