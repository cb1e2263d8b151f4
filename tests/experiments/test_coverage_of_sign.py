"""The committed coverage of B_ℓ1: a part of it recomputed, and what it promises."""

import pytest

from experiments.coverage.sign import TABLES, simulate
from paper_figures.style import read_table
from tests.helpers.coverage import fewest_hits


@pytest.fixture(scope="module")
def committed():
    return read_table(TABLES / "sign.csv").set_index(["ratio", "tails"])


@pytest.mark.parametrize("ratio", [3.0, 1.0])
def test_a_part_of_the_table_is_recomputed(committed, ratio):
    row, found = committed.loc[(ratio, "Gaussian")], simulate(ratio, "Gaussian", 30)
    for name in ("gradient_norm", "largest_gradient_norm"):
        assert found[name] == pytest.approx(row[name], abs=0.04), name
    assert found["noise_norm"] == pytest.approx(row["noise_norm"], abs=0.005)
    assert round(30 * found["simple_coverage"]) >= fewest_hits(30)


def test_intervals_hold_and_the_norms_lie_to_either_side(committed):
    for name in ("simple_coverage", "noise_norm_coverage"):
        for _, row in committed.iterrows():
            assert round(row["draws"] * row[name]) >= fewest_hits(row["draws"]), name
    assert (committed["gradient_norm"] < 1).all()
    assert (committed["largest_gradient_norm"] > 1).all()
