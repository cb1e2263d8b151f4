"""The committed coverage of tasks not seen: a part of it recomputed, and what it promises."""

import pytest

from experiments.coverage.new_task import TABLES, simulate
from paper_figures.style import read_table


@pytest.fixture(scope="module")
def committed():
    return read_table(TABLES / "new_task.csv").set_index(["own", "tasks"])


def test_a_part_of_the_table_is_recomputed(committed):
    """Within three errors of twelve draws, whose scatter is that of the table's."""
    row, found = committed.loc[("normal", 24)], simulate("normal", 24, 12)
    error = row["coverage_stderr"] * (row["draws"] / 12) ** 0.5
    assert found["coverage"] == pytest.approx(row["coverage"], abs=3 * error)
    assert found["factor"] == pytest.approx(row["factor"], rel=0.15)


def test_intervals_hold_as_often_as_they_say_and_not_on_a_shuffled_table(committed):
    assert committed["coverage"].between(0.87, 0.95).all()
    assert (committed["coverage_shuffled"] < 0.6).all()
