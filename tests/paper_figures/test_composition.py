"""What gradient noise is made of: from records to tables to pictures."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.composition import (
    adam,
    anatomy,
    heterogeneity,
    importance,
    model_size,
    temperature,
)
from analysis.composition.anatomy import jackknife_of_pairs
from analysis.composition.fronts import ratios_table
from analysis.composition.slopes import slopes_by_seed
from paper_figures.__main__ import FIGURES
from tests.helpers import composition_records
from tests.helpers.composition_records import COMPOSITION


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Those of every experiment, by its name."""
    out = tmp_path_factory.mktemp("composition")
    front, made = composition_records.front, composition_records
    # B_crit ∝ P^.1 at a loss of .25, and P^0 at .5
    of_size = [
        front(out / "size" / "fronts" / f"width{width}", {0.5: 50.0, 0.25: 20.0 * width**0.1})
        for width in (8, 32, 128)
    ]
    # twice the law at .2, the law at .4
    of_noise = [
        front(out / "noise" / "fronts" / f"noise{share:g}", {0.9: 60 * factor}, spread=0.0)
        for share, factor in ((0.0, 1.0), (0.2, 2 / (1 - 2 / 9) ** 2), (0.4, (1 - 4 / 9) ** -2))
    ]
    return {
        "anatomy": anatomy.tables(made.anatomy()),
        "temperature": temperature.tables(made.temperature()),
        "model_size": model_size.tables([*made.model_size(), *itertools.chain(*of_size)]),
        "heterogeneity": heterogeneity.tables([*made.heterogeneity(), *itertools.chain(*of_noise)]),
        "importance": importance.tables(made.importance(out / "importance")),
        "adam": adam.tables(made.adam(out / "adam")),
    }


@pytest.mark.parametrize("name", sorted(COMPOSITION))
def test_tables_become_a_picture(name, tables, tmp_path):
    (tmp_path / name).mkdir()
    for table, rows in tables[name].items():
        rows.to_csv(tmp_path / name / f"{table}.csv", index=False, na_rep="nan")
    drawn = FIGURES[name](tmp_path)
    drawn.draw_without_rendering()
    assert all(axes.has_data() for axes in drawn.axes if axes.axison)


def test_seeds_that_happen_to_resolve_are_no_sample_of_all():
    rows = [
        {"front": front, "seed": seed, "goal": goal, "critical_batch_size": 10.0 + seed}
        for front in ("base", "other")
        for seed in range(3)
        for goal in (0.5, 0.2)
    ]
    by_seed = pd.DataFrame(rows)
    by_seed.iloc[-1, -1] = np.nan  # the last seed's lowest goal
    ratios = ratios_table(by_seed, "base", quantities=["critical_batch_size"]).set_index("goal")
    assert ratios.loc[0.5, "log_ratio"] == pytest.approx(0)
    assert ratios.loc[0.5, "num_seeds"] == 3
    assert np.isnan(ratios.loc[0.2, "log_ratio"])
    assert np.isnan(ratios.loc[0.2, "p"])
    assert ratios.loc[0.2, "num_seeds"] == 2


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
    assert law["over_approximate"].tolist() == pytest.approx(law["ratio"].tolist())
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
    assert ("losses", 0.02) not in overlaps  # of one with itself


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


def test_critical_batch_sizes_have_the_slope_that_was_put_in(tables):
    slopes = tables["model_size"]["front_slopes"].set_index("goal")["slope"]
    assert slopes[0.5] == pytest.approx(0, abs=0.01)
    assert slopes[0.25] == pytest.approx(0.1, rel=0.02)
    assert len(tables["model_size"]["looks"]) == len(
        model_size.looks_table(composition_records.model_size())
    )  # of the experiment's own runs alone


def test_critical_batch_sizes_stand_beside_the_law_of_wrong_labels(tables):
    fronts = tables["heterogeneity"]["fronts"].set_index("label_noise")
    assert set(fronts.index) == {0.2, 0.4}
    excess = fronts["log_ratio"] - fronts["predicted"]
    assert excess[0.2] == pytest.approx(np.log(2), abs=0.02)
    assert excess[0.4] == pytest.approx(0, abs=0.02)


def test_mixtures_stand_over_equal_classes(tables):
    mixtures = tables["heterogeneity"]["mixtures"].set_index(["quantity", "imbalance", "point"])
    of_start = mixtures.loc[("simple", 10.0, "step 0")]
    assert of_start["ratio"] == pytest.approx(1.5)
    logs = np.log(1.5) + np.array([-0.01, 0, 0.01])
    assert of_start["p"] == pytest.approx(2 * stats.ttest_1samp(logs, 0).pvalue)  # of two points
    assert set(tables["heterogeneity"]["law"]["num_seeds"]) == {3}


def test_importance_is_held_against_what_was_forecast(tables):
    results = tables["importance"]["results"].set_index(["goal", "quantity"])
    for goal, left in ((0.4, 0.4), (0.1, 0.6)):
        assert results.loc[(goal, "measured"), "log"] == pytest.approx(np.log(0.5), abs=0.02)
        assert results.loc[(goal, "left"), "log"] == pytest.approx(np.log(left))
        assert results.loc[(goal, "best"), "log"] == pytest.approx(np.log(left / 2))
        excess = results.loc[(goal, "excess")]
        assert excess["log"] == pytest.approx(np.log(0.5 / left), abs=0.02)
        assert excess["num_seeds"] == 3
        assert excess["p"] < 0.01  # seeds are .01 apart
    ratios = tables["importance"]["ratios"].set_index(["goal", "quantity"])["log_ratio"]
    assert ratios[0.1, "min_steps"] == pytest.approx(0, abs=0.02)
    assert set(tables["importance"]["courses"]["seed"]) == {0, 1, 2}


def test_noise_scales_are_held_against_the_critical_batch_size_of_adam(tables):
    results = tables["adam"]["results"].set_index(["front", "scale", "quantity"])["value"]
    spreads = tables["adam"]["spreads"].set_index(["front", "seed", "scale"])
    for front in ("epsilon1e-08", "epsilon0.001"):
        # 60 over 1, 2 and 3 in the mean of logs; the scales are constant, B_crit doubles
        plain = np.log(60) - np.log([1, 2, 3]).mean()
        assert results[front, "simple", "ratio"] == pytest.approx(plain, abs=0.02)
        full = results[front, "preconditioned_full", "ratio"]
        assert full == pytest.approx(plain - np.log(200), abs=0.02)
        assert results[front, "preconditioned_simple", "against_plain"] == pytest.approx(
            0, abs=1e-6
        )
        spread = spreads.loc[(front, 1, "simple"), "spread"]
        assert spread == pytest.approx(np.log(2), abs=0.02)
