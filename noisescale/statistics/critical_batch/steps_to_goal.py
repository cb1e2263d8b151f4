"""The step at which a run's loss reaches a goal, from its losses at some steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

WINDOW = 0.1  # decades of steps on either side: a quarter of the step, five looks at 24 a decade


def smoothed_losses(
    steps: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The steps whose smoothing window is complete, and the smoothed losses there.

    A line in log step, by least squares with weights that fall to zero a quarter of the step away
    on either side, is drawn through the looks around each; where fewer than three lie within, the
    loss stands as it is. The window is centred and as wide, in relation, at every batch size: it
    shifts nothing, where a mean over the latest updates would. What it takes out is the jitter of a
    constant learning rate, of which a first passage is the luckiest moment, the more so the smaller
    the batch: on a quadratic of 20 dimensions B_crit comes out at a quarter of the exact one
    without it and with the rate chosen seed by seed.
    """
    looked_at, values = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    log_steps = np.log10(np.maximum(looked_at, 0.5))  # step 0 has no logarithm
    centres, smoothed = [], []
    for step, centre, loss in zip(looked_at, log_steps, values, strict=True):
        distance = log_steps - centre
        near = np.abs(distance) < WINDOW
        if near.sum() >= 3:
            if centre + WINDOW > log_steps[-1]:
                break
            roots = np.sqrt(1 - (distance[near] / WINDOW) ** 2)  # of the weights
            design = np.stack([roots, roots * distance[near]], axis=1)  # (looks, 2)
            if np.isfinite(values[near]).all():
                loss = float(np.linalg.lstsq(design, roots * values[near])[0][0])
            else:
                loss = math.nan
        centres.append(step)
        smoothed.append(loss)
    return np.array(centres), np.array(smoothed)


def steps_to_goal(
    steps: Sequence[float] | np.ndarray, losses: Sequence[float] | np.ndarray, goal: float
) -> float | None:
    """The step, interpolated, at which a loss is first at or below a goal; None if never.

    Linear between two looks, which should lie close in log step. A loss that is nan is above any
    goal.

    Args:
        steps: after which the loss was looked at (n,), ascending.
        losses: there (n,).
        goal: the loss to reach.

    Returns:
        The number of updates, or None.

    Example:
        >>> from noisescale import steps_to_goal
        >>> steps_to_goal([0, 10, 20, 40], [2.3, 1.2, 0.8, 0.5], 1.0)
        15.0
    """
    looked_at, values = np.asarray(steps, dtype=float), np.asarray(losses, dtype=float)
    reached = np.flatnonzero(values <= goal)
    if not len(reached):
        return None
    after = reached[0]
    if after == 0 or not math.isfinite(values[after - 1]):
        return float(looked_at[after])
    share = (values[after - 1] - goal) / (values[after - 1] - values[after])
    return float(looked_at[after - 1] + share * (looked_at[after] - looked_at[after - 1]))
