"""The committed coverage of a subset's λ_max: a part of it recomputed, and what it promises."""

import pytest

from experiments.coverage.sharpness import TABLES, logistic_case, rare_case, simulate
from paper_figures.style import read_table
from tests.helpers.coverage import fewest_hits

# where a few examples in a hundred carry the curvature, and a subset may hold none of them
TOO_FEW = "rare class, fitted"


@pytest.fixture(scope="module")
def committed():
    return read_table(TABLES / "sharpness.csv").set_index(["problem", "num_examples"])


def test_a_part_of_the_table_is_recomputed(committed):
    case = logistic_case("isotropic")
    row = committed.loc[("isotropic", 300)]
    found = simulate(case, 300, 30)
    assert round(30 * found["coverage"]) >= fewest_hits(30)
    assert found["below"] + found["above"] == pytest.approx(1 - found["coverage"])
    assert found["plain_bias"] == pytest.approx(row["plain_bias"], abs=0.05)
    assert found["bias"] == pytest.approx(row["bias"], abs=0.06)
    assert found["width"] == pytest.approx(row["width"], rel=0.15)
    assert found["plain_width"] == pytest.approx(row["plain_width"], rel=0.15)


def test_the_truth_is_that_of_all_examples():
    from noisescale import measure_sharpness

    for case in (logistic_case("close pair"), rare_case(fitted=True)):
        whole = measure_sharpness(case.problem).largest
        assert whole.value.value == pytest.approx(case.truth, rel=1e-4)


def test_intervals_cover_but_where_single_examples_carry_the_curvature(committed):
    for (problem, size), row in committed.iterrows():
        hits = round(row["draws"] * row["coverage"])
        if problem != TOO_FEW:
            assert hits >= fewest_hits(row["draws"]), (problem, size)
        assert row["coverage"] >= row["plain_coverage"] - 0.02, (problem, size)
    # what the plain interval, about the subset's own eigenvalue, does where no top is isolated
    assert committed.loc["isotropic"]["plain_coverage"].min() < 0.8
