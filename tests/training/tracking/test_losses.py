"""The loss of every step, thinned: a function of the losses alone, small, and resumable."""

import math

import numpy as np
import pytest

from noisescale.training.tracking.losses import (
    KEPT,
    PER_DOUBLING,
    LossHistory,
    ends_window,
    window_width,
)


def history_of(losses, *, resumed_at=()):
    """The losses in a history that is stored and restored after each of the steps given."""
    history = LossHistory()
    for step, loss in enumerate(losses, start=1):
        history.add(step, epoch=step / 50, loss=float(loss))
        if step in resumed_at:
            history = LossHistory.restored(history.state())
    return history


def by_windows(losses):
    """The oracle: each window's end, length, mean and range by a loop over all losses kept."""
    rows, begun = [], []
    filed = max(0, len(losses) - KEPT)
    for step, loss in enumerate(losses[:filed], start=1):
        begun.append(loss)
        if step == filed or ends_window(step):
            rows.append((step, len(begun), np.mean(begun), min(begun), max(begun)))
            begun = []
    single = enumerate(losses[filed:], start=filed + 1)
    return rows + [(step, 1, loss, loss, loss) for step, loss in single]


@pytest.mark.parametrize("num_steps", [0, 1, 99, 100, 101, 257, 700, 3000])
def test_rows_are_means_over_growing_windows_and_the_last_steps(num_steps):
    losses = np.random.default_rng(0).exponential(size=num_steps)
    rows = history_of(losses).rows
    expected = by_windows(losses)
    assert [(row.step, row.num_steps) for row in rows] == [row[:2] for row in expected]
    assert sum(row.num_steps for row in rows) == num_steps
    for row, (step, _, mean, smallest, largest) in zip(rows, expected, strict=True):
        assert row.loss == pytest.approx(mean, rel=1e-12)
        assert (row.smallest, row.largest, row.epoch) == (smallest, largest, step / 50)


def test_windows_double_and_end_at_their_multiples():
    assert [window_width(step) for step in (1, 256, 257, 512, 513, 1024, 1025)] == [
        *(1, 1, 2, 2, 4, 4, 8)
    ]
    ends = [step for step in range(1, 5000) if ends_window(step)]
    lengths = np.diff([0, *ends])
    assert all(length == window_width(end) for length, end in zip(lengths, ends, strict=True))


def test_the_rows_of_a_resumed_run_are_the_same_to_the_last_bit():
    losses = np.random.default_rng(1).exponential(size=2000)
    resumed = history_of(losses, resumed_at=(1, 99, 100, 101, 102, 600, 1111, 1999))
    assert resumed.rows == history_of(losses).rows


def test_a_long_run_has_a_small_table():
    num_steps = 100_000
    most = PER_DOUBLING * (2 + math.log2(num_steps / PER_DOUBLING)) + KEPT + 1
    assert len(history_of(np.ones(num_steps)).rows) < most < 1700


def test_a_run_that_was_begun_without_goes_on_from_where_it_is():
    history = LossHistory.restored(None)
    for step in range(1001, 1301):
        history.add(step, epoch=0.0, loss=1.0)
    rows = LossHistory.restored(history.state()).rows
    assert rows == history.rows
    assert sum(row.num_steps for row in rows) == 300
    assert (rows[0].step, rows[0].num_steps) == (1004, 4)  # windows end where they always do


def test_the_latest_steps_can_be_asked_for():
    history = history_of(range(250))
    assert [row.step for row in history.since(247)] == [248, 249, 250]
    assert history.since(250) == history.since(400) == []
    assert len(history.since(0)) == KEPT
    assert LossHistory().since(0) == []
