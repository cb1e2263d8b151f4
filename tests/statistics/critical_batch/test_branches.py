"""The largest batch size whose loss is as good as that of every smaller one."""

import math

import numpy as np
import pandas as pd
import pytest

from noisescale.errors import SettingError
from noisescale.statistics.critical_batch.branches import (
    BRANCH_COLUMNS,
    at_base,
    branch_critical_batch,
    branch_means,
    branch_tolerances,
)

SIZES = (16, 32, 64, 128, 256)


def branches(losses, *, spread=0.0, seeds=6, seed=0):
    """`seeds` losses about each of these."""
    rng = np.random.default_rng(seed)
    rows = [
        (
            size,
            size / 160,
            number,
            1000,
            loss + spread * rng.standard_normal(),
            int(math.isinf(loss)),
        )
        for size, loss in zip(SIZES, losses, strict=True)
        for number in range(seeds)
    ]
    return pd.DataFrame(rows, columns=list(BRANCH_COLUMNS))


def test_the_crossing_is_interpolated_in_log_b():
    found = branch_critical_batch(branches([1.0, 1.0, 1.0, 1.2, 2.0]), tolerance=0.1)
    assert found.value == pytest.approx(64 * math.sqrt(2))
    assert (found.low, found.high) == (pytest.approx(found.value), pytest.approx(found.value))


def test_every_smaller_size_counts_not_the_smallest_alone():
    falling = branch_critical_batch(branches([1.0, 0.8, 0.95, 1.0, 1.5]), tolerance=0.1)
    assert 32 < falling.value < 64


def test_a_larger_size_that_passes_again_counts():
    found = branch_critical_batch(branches([1.0, 1.0, 1.2, 1.05, 1.5]), tolerance=0.1)
    assert 128 < found.value < 256


def test_divergence_ends_it_at_the_last_size_that_passes():
    found = branch_critical_batch(branches([1.0, 1.0, 1.0, math.inf, math.inf]), tolerance=0.1)
    assert found.value == 64


@pytest.mark.parametrize("seeds", [1, 6])
def test_where_all_pass_there_is_a_bound(seeds):
    table = branches([1.0, 1.0, 1.0, 1.0, 1.05], seeds=seeds)
    found = branch_critical_batch(table, tolerance=0.1)
    assert math.isnan(found.value)
    assert found.low == 256


@pytest.mark.parametrize(
    ("losses", "highest"),
    [
        ([1.0, 1.2, 1.5, 2.0, 3.0], 16 * math.sqrt(2)),
        ([1.0, math.inf, math.inf, math.inf, math.inf], 16),
    ],
)
def test_nothing_is_resolved_at_the_smallest_batch_size(losses, highest):
    """It passes whatever its loss, as there is none smaller to hold it against: a bound."""
    found = branch_critical_batch(branches(losses), tolerance=0.1)
    assert at_base(found)
    assert math.isnan(found.value)
    assert (found.low, found.high) == (0, pytest.approx(highest))
    one_seed = branch_critical_batch(branches(losses, seeds=1), tolerance=0.1)
    assert at_base(one_seed)
    assert one_seed.high == pytest.approx(highest)
    assert not at_base(branch_critical_batch(branches([1.0] * 5), tolerance=0.1))


def test_an_interval_that_reaches_the_smallest_batch_size_is_open_below():
    table = branches([1.0, 1.06, 1.2, 1.5, 2.0], spread=0.04, seeds=5, seed=2)
    found = branch_critical_batch(table, tolerance=0.1)
    assert found.value > 32
    assert (found.low, found.kind) == (0, "interval")


def test_every_tolerance_has_its_size():
    """Losses 3 % apart from one size to the next: 5 % is crossed after the second, 1 % before."""
    table = branches([2.0, 2.06, 2.12, 2.18, 2.24])
    found = branch_tolerances(table, tolerance=0.04)
    assert list(found) == [0.01, 0.02, 0.04, 0.05, 0.1]
    assert at_base(found[0.01])
    assert at_base(found[0.02])
    assert found[0.04].value == pytest.approx(32 * 2 ** (1 / 3))
    assert found[0.05].value == pytest.approx(32 * 2 ** (2 / 3))
    assert found[0.1].value == pytest.approx(128 * 2 ** (1 / 3))


@pytest.mark.parametrize("seeds", [3, 6])
def test_the_interval_covers(seeds):
    """The curve 1 + (B/64)²/10 leaves a tolerance of .1 above its start at just above 64."""
    curve = [1 + (size / 64) ** 2 / 10 for size in SIZES]
    truth = branch_critical_batch(branches(curve), tolerance=0.1).value
    hits = 0
    for seed in range(100):
        found = branch_critical_batch(
            branches(curve, spread=0.04, seeds=seeds, seed=seed), tolerance=0.1
        )
        hits += found.low <= truth <= found.high
    assert hits >= 90


def test_losses_that_differ_by_orders_of_magnitude_do_not_pass_by_chance():
    table = branches([1.0, 1.0, 1.0, 1.2, 2.0], spread=0.01)
    table.loc[table["batch_size"] == 256, "loss"] = [1e9, 1e18, 1e11, 5.0, 1e17, 1e12]
    found = branch_critical_batch(table, tolerance=0.1)
    assert 64 < found.low < found.value < found.high < 128


def test_one_seed_has_no_interval():
    found = branch_critical_batch(branches([1.0, 1.0, 1.0, 1.2, 2.0], seeds=1), tolerance=0.1)
    assert math.isnan(found.low)
    assert found.value > 64


def test_means_are_over_the_seeds():
    means = branch_means(branches([1.0, 2.0, 3.0, 4.0, math.inf], spread=0.1))
    assert means["loss"].isna().tolist() == [False] * 4 + [True]
    assert abs(means["loss"][1] - 2) < 4 * means["loss_stderr"][1]
    assert (means["num_seeds"] == 6).all()


def test_bad_input():
    with pytest.raises(SettingError, match="2 batch sizes"):
        branch_critical_batch(branches([1.0] * 5).query("batch_size < 64"), tolerance=0.1)
    with pytest.raises(SettingError, match="batch size 16 diverged"):
        branch_critical_batch(branches([math.inf] * 5), tolerance=0.1)
    with pytest.raises(SettingError, match="tolerance 0"):
        branch_critical_batch(branches([1.0] * 5), tolerance=0)
