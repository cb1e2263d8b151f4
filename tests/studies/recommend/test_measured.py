"""What fronts and maps whose answer is known say of the batch size to use."""

import math

import pandas as pd
import pytest

from noisescale.statistics.estimate import Estimate, estimate_row
from noisescale.statistics.scores.cross_validation import choose_rate
from noisescale.studies.critical_batch.results import analyse
from noisescale.studies.recommend.measured import advise_on_front, advise_on_map

CRITICAL, MIN_STEPS = 30.0, 100.0
SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]


def front(critical=CRITICAL):
    """Steps of the exact curve at three rates for each size, the middle one the best."""
    rows = [
        {
            "goal": 0.5,
            "batch_size": size,
            "learning_rate": factor * 0.1 / (1 + critical / size),
            "seed": seed,
            "steps": MIN_STEPS * (1 + critical / size) * slower * (1 + 0.02 * seed),
            "censored": 0,
            "diverged": 0,
        }
        for size in SIZES
        for factor, slower in ((0.5, 1.3), (1.0, 1.0), (2.0, 1.3))
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def predicted(value):
    estimate = Estimate(
        value=value, stderr=0.05 * value, low=0.9 * value, high=1.1 * value, num_samples=3
    )
    row = {"goal": 0.5, "quantity": "simple", **estimate_row("by_progress", estimate)}
    return pd.DataFrame([row])


def advice(table, noise=None):
    found = analyse(table)
    rows = found.predicted if noise is None else predicted(noise)
    return advise_on_front(table, found.fits, found.rates, found.laws, rows)


def test_a_front_gives_its_own_critical_batch_size_and_tuned_rates():
    rows = advice(front()).sizes
    assert [row.batch_size for row in rows] == [3, 30, 300]
    assert [row.learning_rate for row in rows] == pytest.approx(
        [0.1 / (1 + CRITICAL / size) for size in (3, 30, 300)], rel=0.1
    )
    assert "to a loss of 0.5" in advice(front()).heading


@pytest.mark.parametrize(
    ("noise", "says"), [(43.0, "which agrees"), (900.0, "believe the runs"), (1.0, "believe the")]
)
def test_one_sentence_says_which_to_believe(noise, says):
    (sentence,) = [text for text in advice(front(), noise).worth if "noise scale" in text]
    assert says in sentence


def test_without_a_front_the_noise_scale_stands_in_and_without_both_nothing_does():
    flat = front(critical=1e-6)  # all sizes take as many steps: the bend lies below them
    instead = advice(flat, 43.0)
    assert instead.heading.endswith("by the noise scale along runs:")
    assert instead.sizes[1].batch_size == pytest.approx(30, rel=0.1)
    assert "Believe the noise scale" in instead.worth[0]
    nothing = advice(flat)
    assert nothing.sizes == ()
    assert "give more batch sizes" in nothing.reason


def test_a_table_without_rates_has_sizes_alone():
    table = front().query("learning_rate > 0").assign(learning_rate=math.nan)
    best = table.groupby(["batch_size", "seed"], as_index=False)["steps"].min()
    table = best.assign(goal=0.5, learning_rate=math.nan, censored=0, diverged=0)
    assert [row.learning_rate for row in advice(table).sizes] == [None] * 3


def cells(losses, *, diverged=()):
    """A map: of each size two rates with their final losses."""
    rows = [
        {
            "batch_size": size,
            "learning_rate": rate,
            "seed": 0,
            "start_loss": 2.3,
            "final_loss": loss,
            "label": "diverged" if (size, rate) in diverged else "trained",
            "error": "",
        }
        for size, of_size in losses.items()
        for rate, loss in of_size.items()
    ]
    return pd.DataFrame(rows)


MAP = {
    4: {0.01: 0.9, 0.02: 0.50},
    16: {0.04: 0.40, 0.08: 0.41},
    64: {0.1: 0.9, 0.2: 0.415},
    256: {0.4: 0.47},
    "full": {0.4: 1.5, 0.8: math.nan},
}


def test_after_equal_examples_larger_sizes_that_lose_little_save_steps():
    found = advise_on_map(
        cells(MAP, diverged=[("full", 0.8)]), horizon="1 epoch", equal_steps=False, num_examples=999
    )
    assert [(row.batch_size, row.learning_rate) for row in found.sizes] == [
        (16, 0.04),
        (64, 0.2),
        (256, 0.4),
    ]
    assert [(row.low, row.high) for row in found.sizes] == [(4, 64), (16, 256), (64, 999)]
    heading = found.block()[1]  # the next sizes tried, which are no interval of confidence
    assert "next tried" in heading
    assert "95 %" not in heading
    assert "tried beyond" not in " ".join(found.worth)


def test_after_equal_steps_smaller_ones_save_examples():
    losses = {4: {0.1: 0.5}, 16: {0.1: 0.47}, 64: {0.1: 0.41}, 256: {0.1: 0.40}}
    found = advise_on_map(cells(losses), horizon="9 steps", equal_steps=True, num_examples=999)
    assert [row.batch_size for row in found.sizes] == [16, 64, 256]
    assert found.sizes[2].worth == "loss 0.4, an end"
    assert found.worth[-1] == "No size was tried beyond 256, where another may do better (--bs)."


def test_a_rate_at_which_a_seed_diverges_is_not_recommended():
    losses = {4: {0.1: 0.5, 0.2: 0.3}, 16: {0.1: 0.6}}
    found = advise_on_map(
        cells(losses, diverged=[(4, 0.2)]), horizon="1 epoch", equal_steps=False, num_examples=99
    )
    assert found.sizes[0].learning_rate == 0.1


def test_a_held_out_error_of_zero_is_the_best_there_is():
    folds = {
        size: choose_rate([0.1, 0.2], [[error, 0.5]] * 3)
        for size, error in ((4, 0.0), (16, 0.1), (64, 0.3))
    }
    found = advise_on_map(
        cells({4: {0.1: 0.0}, 16: {0.1: 0.2}, 64: {0.1: 0.4}}),
        horizon="1 epoch",
        equal_steps=False,
        num_examples=99,
        folds=folds,
        score="error",
    )
    assert found.reason is None
    assert found.sizes[0].batch_size == 4
    assert found.sizes[0].learning_rate == 0.1


def test_a_map_on_which_nothing_trains_says_so():
    found = advise_on_map(
        cells({4: {1.0: math.nan}}, diverged=[(4, 1.0)]),
        horizon="1 epoch",
        equal_steps=False,
        num_examples=99,
    )
    assert found.sizes == ()
    assert "lower learning rates" in found.reason
