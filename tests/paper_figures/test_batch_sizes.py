"""Small batches, minima, costs, bias and variance, first updates: from records to pictures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.batches import batch_cost, bias_variance, sharp_minima, small_batches
from analysis.batches.intervals import bootstrap_interval, holm, median_interval
from analysis.stability import catapult
from noisescale.statistics.scores.bias_variance import bias_variance as decompose
from paper_figures.__main__ import FIGURES
from tests.helpers import batch_records


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """Those of every experiment, by its name."""
    root = tmp_path_factory.mktemp("predictions")
    return {
        "small_batches": small_batches.tables(batch_records.small_batches()),
        "sharp_minima": sharp_minima.tables(batch_records.sharp_minima()),
        "batch_cost": batch_cost.tables(batch_records.batch_cost()),
        "bias_variance": bias_variance.tables(batch_records.bias_variance(root)),
        "catapult": catapult.tables(batch_records.catapult()),
    }


@pytest.mark.parametrize(
    "name", ["small_batches", "sharp_minima", "batch_cost", "bias_variance", "catapult"]
)
def test_tables_become_a_picture(name, tables, tmp_path):
    (tmp_path / name).mkdir()
    for table, rows in tables[name].items():
        rows.to_csv(tmp_path / name / f"{table}.csv", index=False, na_rep="nan")
    drawn = FIGURES[name](tmp_path)
    drawn.draw_without_rendering()
    assert all(axes.has_data() for axes in drawn.axes if axes.axison)


@pytest.mark.parametrize("number", range(6, 40))
def test_order_statistics_hold_the_median_as_often_as_they_say(number):
    """The narrowest symmetric pair with 95 %, by adding up the binomial distribution."""
    _, low, high = median_interval(np.arange(number))
    place = int(low)
    assert high == number - 1 - place

    def held(place):
        return sum(stats.binom.pmf(k, number, 0.5) for k in range(place + 1, number - place))

    assert held(place) >= 0.95
    assert place + 1 >= number / 2 or held(place + 1) < 0.95


def test_holm_by_hand():
    assert holm([0.01, 0.04, np.nan, 0.03]) == pytest.approx(
        [0.03, 0.06, np.nan, 0.06], nan_ok=True
    )


def test_a_bootstrap_of_a_mean_has_the_mean_s_error():
    values = np.random.default_rng(1).normal(size=(400, 1))
    mean, low, high = bootstrap_interval(values, lambda rows: float(rows.mean()))
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_the_usable_range_ends_where_the_line_meets_the_limit():
    exponents = np.arange(-13.0, -3)
    triangle = 0.95 - 0.01 * np.abs(exponents + 9)
    low, high = small_batches.usable_range(exponents, triangle[None])
    assert (low.value, high.value) == pytest.approx((-10, -8))
    assert high.low == high.high == high.value
    cliff = np.where(exponents > -9, 0.1, 0.95)  # somewhere in the octave from −9 on
    low, high = small_batches.usable_range(exponents, cliff[None])
    assert (low.value, high.value) == (-13, -8.5)
    assert (high.low, high.high) == (-9, -8)
    columns = small_batches._range_columns(exponents, np.array([cliff, cliff]))
    assert (columns["high_end_low"], columns["high_end_high"]) == (-9, -8)
    assert (columns["width"], columns["width_low"], columns["width_high"]) == (4.5, 4, 5)


def test_small_batches_are_compared_by_seed(tables):
    found = tables["small_batches"]
    fixed = found["fixed_ratio"].query("norm == 'none'").set_index("batch_size")
    assert fixed.loc[16, "compared_with"] == 16
    assert fixed.loc[16, "difference"] == 0
    differences = 1e-6 * np.array([0, 1, 4]) * (64 - 16)  # what seeds share has cancelled
    assert fixed.loc[64, "difference"] == pytest.approx(differences.mean())
    assert fixed.loc[64, "accuracy_stderr"] == pytest.approx(0.001 / np.sqrt(3), rel=0.2)
    usable = found["usable"].query("norm == 'none'").set_index("batch_size")
    assert usable.loc[1, "width"] == pytest.approx(2)
    assert (usable["best_exponent"] == -9).all()
    assert not usable[["open_low", "open_high"]].any().any()
    norms = found["norms"]
    assert norms["difference"].tolist() == pytest.approx([0.005] * 3)
    assert (norms["batch"] - norms["running"]).tolist() == pytest.approx([0.02] * 3)
    ghosts = found["ghosts"].set_index("ghost_size")
    assert ghosts.loc[4, "share_best"] == 1
    assert ghosts.loc[16, "difference"] == 0


def test_minima_are_compared_by_seed_and_lines_by_their_chord(tables):
    found = tables["sharp_minima"]
    comparisons = found["comparisons"].set_index(["case", "stop", "quantity"])
    row = comparisons.loc[("sgd", "loss", "sharpness")]
    assert row["value"] == pytest.approx(2)  # e^(−.1), 1 and e^.1 times that
    assert row["num_seeds"] == 3
    assert comparisons.loc[("adam", "epochs", "test_accuracy"), "value"] == pytest.approx(-0.002)
    assert "f1-adam" not in found["comparisons"]["case"].tolist()  # one seed has no interval
    of_one = comparisons.xs("sharpness", level="quantity")["p"]
    logs = np.log(2) + np.array([-0.1, 0, 0.1])
    assert of_one.max() == pytest.approx(6 * stats.ttest_1samp(logs, 0).pvalue)  # Holm's first
    barriers = found["barriers"].set_index(["case", "stop"])
    assert barriers.loc[("sgd", "loss"), "train_barrier"] == pytest.approx(0.3)
    assert barriers.loc[("sgd", "loss"), "test_barrier"] == pytest.approx(0.6)


def test_a_change_is_charged_to_all_steps_between_two(tables):
    changes = tables["batch_cost"]["changes"].query("source == 'tensors'").set_index("every")
    assert changes.loc[10, "slowdown"] == pytest.approx(1.25)
    assert changes["added_steps"].tolist() == pytest.approx([0, 2.5, 2.5, 2.5])
    assert changes.loc[1, "added_milliseconds"] == pytest.approx(5 * 1.25)  # the middle round
    full = tables["batch_cost"]["full_batch"].query("way == 'one pass'").set_index("batch_size")
    assert full["per_epoch"].tolist() == pytest.approx([64 / 60_000, 4096 / 60_000, 1])


def test_runs_are_tamed_where_the_curvature_falls(tables):
    shares = tables["catapult"]["shares"].set_index("batch_size")
    # of 2e-4, 1e-3 and 2.5e-3, which lie between 2/λ = 1e-4 and what trains at B = 1,024
    assert shares["tamed"].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert shares["trained"].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert shares["diverged"].tolist() == [4, 2, 0]
    assert shares["survived"].tolist() == shares["trained"].tolist()
    assert shares["highest_surviving"].tolist() == [2e-4, 1e-3, 2.5e-3]
    assert shares["start"].tolist() == pytest.approx([2, 10, 25])
    # the median over the steps 41 to 50 of the run or runs there
    last = np.median(np.exp(-np.arange(41, 51) / 8))
    assert shares["settled"].tolist() == pytest.approx([2 * last, 6 * last, 10 * last])
    assert shares["tamed_not_trained"].tolist() == [0, 0, 0]
    runs = tables["catapult"]["runs"].query("part == 'watched'")
    row = runs.query("batch_size == 32 and learning_rate == 1e-3").iloc[0]
    assert row["start"] == pytest.approx(10)
    assert row["tamed_step"] == 19  # the first with 10·e^(−t/8) < 1
    assert set(runs["label"]) == {"converged", "diverged"}
    below = tables["catapult"]["runs"].query("part == 'watched' and start < 1")
    assert below["tamed"].isna().all()  # it need not be tamed


@pytest.mark.parametrize(
    ("change", "tamed"),
    [
        ({}, 1),
        ({"loss": lambda step: 30.0 + step}, 0),  # outputs have blown up and saturate
        ({"loss": lambda step: 5.0 if step != 20 else None}, 0),
        # below 1 once, and back
        ({"sharpness": lambda step: 1e3 if step == 5 else 3e4}, 0),
        ({"sharpness": lambda step: 1e3 if step % 3 else 3e4}, 1),  # about the edge
    ],
)
def test_a_single_low_curvature_tames_nothing(change, tamed):
    course = {"loss": lambda step: 20.0 - 0.1 * step, "sharpness": lambda step: 3e4 * 0.9**step}
    course |= change
    rows = [{"step": step, **{name: of(step) for name, of in course.items()}} for step in range(51)]
    record = {"batch_size": 1, "learning_rate": 1e-3, "seed": 0, "part": "watched", "rows": rows}
    record |= {"start_loss": 20.0, "largest_loss": 50.0, "chance_loss": 2.3, "largest_share": 0.2}
    record |= {"train": {"loss": 15.0}, "diverged_at_step": None}
    runs = [(Path("run"), record)]
    (row,) = catapult.runs_table(runs, catapult.curves_table(runs)).to_dict("records")
    assert row["tamed"] == tamed
    assert row["label"] == "slow"
    assert row["trained"] == 0  # its loss is above that at chance


def test_crossed_runs_come_in_the_order_of_their_draws(tmp_path):
    runs = batch_records.bias_variance(tmp_path)
    found = bias_variance.parts_table(bias_variance.decompositions(runs[::-1]))
    stored = [
        [
            [
                np.load(tmp_path / f"bs4-{sample}-{start}-{order}" / "predictions.npz")
                for order in range(2)
            ]
            for start in range(2)
        ]
        for sample in range(3)
    ]
    test = np.array([[[each["test"] for each in row] for row in plane] for plane in stored])
    expected = decompose(test, stored[0][0][0]["test_targets"], factors=bias_variance.FACTORS)
    of_small = found[found["batch_size"] == 4].set_index("part")["value"]
    for part, estimate in expected.estimates.items():
        assert of_small[part] == pytest.approx(estimate.value)


def test_folds_choose_by_their_own_error_alone(tables):
    ends = tables["bias_variance"]["runs"].set_index("batch_size").loc[256]
    assert ends.to_dict() == pytest.approx(
        {"num_runs": 12, "train_loss": 0.0215, "largest_train_loss": 0.024, "epochs": 10.5}
    )
    choices = tables["bias_variance"]["choices"].query("batch_size == 4").set_index("rule")
    assert choices.loc["lowest", "factor"] == 2
    assert choices.loc["lowest", "excess"] == pytest.approx(0.01)
    assert choices.loc["one standard error", "factor"] == 1
    assert choices.loc["one standard error", "excess"] == pytest.approx(0)
    assert isinstance(tables["bias_variance"]["out_of_bag"], pd.DataFrame)
