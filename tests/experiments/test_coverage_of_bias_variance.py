"""The committed coverages: what they show, and a design of them simulated again."""

import pandas as pd
import pytest

from experiments.coverage.bias_variance import CELLS, Cell, simulate
from experiments.coverage.tables import TABLES


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(TABLES / "bias_variance.csv", comment="#")


def test_intervals_hold_where_each_factor_has_three_draws_or_more(table):
    assert len(table) == 8 * len(CELLS)
    assert table["mean_error"].abs().max() < 3.5  # of 64, in standard errors: no part is biased
    enough = table[table["num_seeds"] >= 3]
    assert enough["coverage"].between(0.91, 1).all()
    assert enough["stated_over_true"].min() > 0.9
    two = table[(table["num_seeds"] == 2) & (table["shared"] > 0)].set_index("part")
    assert two["coverage"]["variance, seed"] < 0.6  # which the result's note says


def test_a_design_is_what_the_simulation_gives(table):
    cell = Cell(8, 3, 0.5)
    rows = table[(table[list(Cell._fields)] == list(cell)).all(axis=1)].set_index("part")
    for row in simulate(cell, 60):  # binomial: four standard errors of 60 draws
        expected = rows["coverage"][row["part"]]
        assert row["coverage"] == pytest.approx(expected, abs=4 * (0.25 * 0.2 / 60) ** 0.5)
