"""What gradient noise is made of: from records to tables to pictures."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.composition import anatomy, heterogeneity, model_size, temperature
from analysis.composition.anatomy import jackknife_of_pairs
from analysis.composition.slopes import slopes_by_seed
from paper_figures.__main__ import PENDING
from tests.helpers import composition_records
from tests.helpers.composition_records import COMPOSITION


@pytest.fixture(scope="module")
def tables():
    """Those of every experiment, by its name."""
    modules = (anatomy, heterogeneity, model_size, temperature)
    names = [module.__name__.rpartition(".")[2] for module in modules]
    return {
        name: module.tables(getattr(composition_records, name)())
        for name, module in zip(names, modules, strict=True)
    }


@pytest.mark.parametrize("name", sorted(COMPOSITION & set(PENDING)))
def test_tables_become_a_picture(name, tables, tmp_path):
    (tmp_path / name).mkdir()
    for table, rows in tables[name].items():
        rows.to_csv(tmp_path / name / f"{table}.csv", index=False, na_rep="nan")
    drawn = PENDING[name](tmp_path)
    drawn.draw_without_rendering()
    assert all(axes.has_data() for axes in drawn.axes if axes.axison)


def test_slopes_are_within_seeds():
    """A seed's own level, here against the slope's sign, is not taken for one."""
    x = np.array([1.0, 2.0, 4.0, 8.0])
    table = pd.concat(
        pd.DataFrame({"seed": seed, "x": x * 10**seed, "y": x**0.5 * 10.0 ** (-3 * seed)})
        for seed in (0, 1)
    )
    assert slopes_by_seed(table, "y", ["x"]).ravel() == pytest.approx([0.5, 0.5])
    lonely = pd.concat([table, pd.DataFrame({"seed": [2], "x": [1.0], "y": [1.0]})])
    assert len(slopes_by_seed(lonely, "y", ["x"])) == 2  # of one point there is no slope


def test_sizes_have_the_slope_that_was_put_in(tables):
    slopes = tables["model_size"]["slopes"].set_index(
        ["learning_rate", "goal", "quantity", "family"]
    )
    width = slopes.loc[(0.1, 0.25, "simple", "widths")]
    assert width["slope"] == pytest.approx(0.1)
    assert width["slope_stderr"] == pytest.approx(0.01 / np.sqrt(3))
    assert width["num_seeds"] == 3
    p = 2 * stats.t.sf(0.1 / (0.01 / np.sqrt(3)), 2)
    assert width["p"] == pytest.approx(2 * p)  # Holm's first of two losses
    depth = slopes.loc[(0.05, 0.5, "full", "depths")]
    assert depth["slope"] == pytest.approx(-0.3)
    sizes = tables["model_size"]["sizes"]
    assert (sizes["full"] / sizes["simple"]).to_numpy() == pytest.approx(2)
    assert set(sizes["num_looks"]) == {2}


def test_temperature_s_exponents_are_those_put_in(tables):
    exponents = tables["temperature"]["exponents"].set_index(["goal", "exponent"])
    assert exponents.loc[(0.25, "B"), "value"] == pytest.approx(1)
    assert exponents.loc[(0.25, "1/ε"), "value"] == pytest.approx(0.5)
    assert exponents.loc[(0.25, "B/ε"), "value"] == pytest.approx(0.75)  # factors of 4 in both
    assert exponents.loc[(0.5, "B"), "value_stderr"] == pytest.approx(0.01 / np.sqrt(3))


def test_the_law_s_excess_is_found_and_later_ratios_are_paired(tables):
    law = tables["heterogeneity"]["law"].set_index(["classes", "label_noise"])
    for case in ((10, 0.2), (10, 0.4), (2, 0.2)):
        assert law.loc[case, "ratio"] == pytest.approx(1.1)
        logs = np.log(1.1) + np.array([-0.01, 0, 0.01])
        assert law.loc[case, "p"] == pytest.approx(3 * stats.ttest_1samp(logs, 0).pvalue)
    assert law.loc[(10, 0.0), "ratio"] == pytest.approx(1)
    assert np.isnan(law.loc[(10, 0.0), "p"])
    # two classes, a fifth wrong: the signal is 1 − .4 of what it was
    assert law.loc[(2, 0.2), "predicted"] == pytest.approx(47 / 0.36 - 1, rel=1e-3)
    ratios = tables["heterogeneity"]["ratios"]
    ratios = ratios.set_index(["quantity", "over", "classes", "label_noise", "point"])["ratio"]
    assert ratios["simple", "right labels", 10, 0.4, "step 100"] == pytest.approx(3)
    assert ratios["simple", "right labels", 2, 0.2, "equal loss"] == pytest.approx(2)
    fewer = np.exp(np.log([45 / 90, 46 / 91, 47 / 92]).mean())
    assert ratios["simple", "ten classes", 2, 0.0, "step 100"] == pytest.approx(fewer)


def test_the_anatomy_s_primary_statistics(tables):
    results = tables["anatomy"]["results"].set_index("quantity")
    assert results.loc["log growth", "value"] == pytest.approx(np.log(4))  # 100 to 400
    assert results.loc["growth_of_signal", "value"] == pytest.approx(2)  # 16 of 4
    assert results.loc["log deletion", "value"] == pytest.approx(np.log(0.5))
    assert results.loc["log clear_first", "value"] == pytest.approx(np.log(4))
    overlaps = tables["anatomy"]["overlaps"].set_index(["between", "goal"])["overlap"]
    assert overlaps["seeds", 0.02] == pytest.approx(0.4)
    assert overlaps["losses", 0.4] == pytest.approx(0.4)
    assert overlaps["losses", 0.02] == 1


def test_the_jackknife_of_pairs_is_the_plain_one():
    """Against the mean over pairs, with each set left out in turn."""
    rng = np.random.default_rng(0)
    sets = [rng.choice(60, size=30, replace=False) for _ in range(5)]

    def mean_overlap(some):
        shared = [
            len(set(first) & set(second)) / 30
            for place, first in enumerate(some)
            for second in some[:place]
        ]
        return np.mean(shared)

    expected = [
        5 * mean_overlap(sets) - 4 * mean_overlap(sets[:place] + sets[place + 1 :])
        for place in range(5)
    ]
    assert jackknife_of_pairs(sets) == pytest.approx(expected)
    assert jackknife_of_pairs(sets).mean() == pytest.approx(mean_overlap(sets))
