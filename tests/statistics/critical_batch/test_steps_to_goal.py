"""The first passage of a goal, from looks at the loss, smoothed or as they are."""

import math

import numpy as np
import pytest

from noisescale.statistics.critical_batch.curves.steps_to_goal import smoothed_losses, steps_to_goal


def test_steps_to_a_goal_are_interpolated():
    at, losses = [0, 1, 2, 4, 8], [2.0, 1.8, 1.0, 0.6, 0.7]
    assert steps_to_goal(at, losses, 1.4) == pytest.approx(1.5)
    assert steps_to_goal(at, losses, 0.7) == pytest.approx(3.5)
    assert steps_to_goal(at, losses, 0.5) is None
    assert steps_to_goal(at, losses, 2.0) == 0.0
    assert steps_to_goal([0, 1, 2], [2.0, math.nan, 0.5], 1.0) == 2.0
    assert steps_to_goal([0, 1], [math.nan, math.nan], 1.0) is None


def test_smoothing_leaves_a_line_in_log_step_alone_and_ends_with_its_last_window():
    at = np.unique([round(10 ** (k / 24)) for k in range(97)])
    losses = 3 - 0.5 * np.log(at)
    centres, smooth = smoothed_losses(at, losses)
    assert smooth == pytest.approx(3 - 0.5 * np.log(centres), abs=1e-9)
    assert centres[-1] * 10**0.1 <= at[-1] < 1.1 * centres[-1] * 10**0.1
    assert list(centres) == list(at[: len(centres)])


def test_smoothing_takes_out_jitter_without_a_lag():
    """A power law with jitter: the passage without it, to a few per cent; a raw one is early."""
    at = np.unique([round(10 ** (k / 24)) for k in range(97)])
    rng = np.random.default_rng(0)
    raw, smooth = [], []
    for _ in range(50):
        losses = at**-0.5 * np.exp(0.15 * rng.standard_normal(len(at)))
        raw.append(steps_to_goal(at, losses, 0.1))
        smooth.append(steps_to_goal(*smoothed_losses(at, losses), 0.1))
    assert np.mean(np.log(raw)) < math.log(85)
    assert abs(np.mean(np.log(smooth)) - math.log(100)) < 0.12
    assert steps_to_goal(*smoothed_losses(at, at**-0.5), 0.1) == pytest.approx(100, rel=0.02)


def test_smoothing_does_not_hide_a_loss_that_is_not_finite():
    at = np.arange(1, 60)
    losses = np.where(at == 30, math.nan, 1.0)
    _, smooth = smoothed_losses(at, losses)
    assert np.isnan(smooth[(at[: len(smooth)] > 26) & (at[: len(smooth)] < 34)]).all()
    assert smooth[5] == pytest.approx(1.0)
