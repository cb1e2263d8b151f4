"""The batch size from which on a goal takes 20 % more examples, read from the measured curve."""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from noisescale.statistics.critical_batch.curves.runs import Runs, left_over
from noisescale.statistics.estimate import CONFIDENCE, Estimate, undefined

OVERHEAD = 0.2  # of examples, beyond the smallest batch sizes': the share of Zhang et al. 2024
RESAMPLES = 500  # leave the ends of the interval a few per cent of its width of noise
VAGUE = 10.0  # between the ends of an interval, from which on it says no more than a magnitude


def overhead_batch_size(
    runs: Runs,
    *,
    smooth: np.ndarray,
    scatter: float,
    noise: float,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """Where examples, as an isotonic curve in log B, are 20 % above its first level.

    The interval is that of a bootstrap about a smooth curve; about the isotonic one itself, whose
    first level is too low by chance, it would be too low twice. The draws take the seeds'
    deviations with random normal weights, whole seeds at once as their runs belong together, and
    what of the scatter of the means single runs do not explain; of runs that are not crossed, the
    scatter alone. Both are wider by Student's t over the normal quantile, as they are estimated
    themselves. An interval whose ends lie a factor of ten apart leaves the value undefined.

    Args:
        runs: to the goal.
        smooth: log S of the curve at the batch sizes that reach the goal (n,).
        scatter: standard deviation of the means' log S about it.
        noise: the variance of a mean that the scatter of single runs explains.
        confidence: of the interval.
    """
    sizes = np.log(runs.sizes[runs.reached])
    value = _crossing(sizes, runs.means[runs.reached] + sizes)
    draws = _deviations(runs, len(sizes), scatter, noise, confidence)  # (RESAMPLES, n)
    crossings = [_crossing(sizes, smooth + sizes + draw) for draw in draws]
    tail = (1 - confidence) / 2
    low, high = np.quantile([*crossings, value], [tail, 1 - tail], method="nearest").tolist()
    low, high = min(low, value), max(high, value)
    if math.isinf(high):
        return undefined(num_samples=len(sizes), low=math.exp(min(low, sizes[-1])))
    resolved = high - low < math.log(VAGUE)
    return Estimate.from_interval(
        math.exp(value) if resolved else math.nan,
        math.exp(low),
        math.exp(high),
        num_samples=len(sizes),
    )


def _deviations(
    runs: Runs, num_sizes: int, scatter: float, noise: float, confidence: float
) -> np.ndarray:
    """Draws of the means' deviations (RESAMPLES, n) from what they estimate."""
    generator = np.random.default_rng(0)
    tail = (1 - confidence) / 2

    def widened(dof: int) -> float:
        return float(special.stdtrit(max(dof, 1), tail) / special.ndtri(tail))

    draws = generator.standard_normal((RESAMPLES, num_sizes))
    draws *= scatter * widened(num_sizes - 2)
    if runs.crossed:
        num_seeds = len(runs.log_steps)
        deviations = _comparable((runs.log_steps - runs.means)[:, runs.reached])  # (R, n)
        weights = generator.standard_normal((RESAMPLES, num_seeds))
        weights *= widened(num_seeds - 1) / math.sqrt(num_seeds * (num_seeds - 1))
        draws = left_over(scatter, noise) ** 0.5 * draws + weights @ deviations
    return draws


def _comparable(deviations: np.ndarray) -> np.ndarray:
    """Seeds' deviations (R, n) as if each size had all seeds: 0 for nan, the others larger.

    So that sums of them, which are drawn for R seeds, have the variance of the mean of those there
    are. A size with one seed, which has no deviation, has that of a run at the others.
    """
    num_seeds = len(deviations)
    known = np.isfinite(deviations)
    counts = known.sum(0)  # (n,)
    deviations = np.where(known, deviations, 0.0)
    dof = (counts - 1).clip(min=0).sum()
    of_a_run = math.sqrt(np.square(deviations).sum() / dof) if dof else 0.0
    pairs = num_seeds * (num_seeds - 1)
    scale = np.sqrt(pairs / (counts * (counts - 1)).clip(min=1))
    lone = known & (counts == 1)
    return np.where(lone, of_a_run * math.sqrt(pairs), deviations * scale)


def _crossing(log_sizes: np.ndarray, log_examples: np.ndarray) -> float:
    """Log B where the isotonic curve, interpolated, leaves 1 + OVERHEAD times its first level."""
    from scipy import optimize  # takes a quarter of a second, which remembered fits need not

    level = optimize.isotonic_regression(log_examples).x
    goal = level[0] + math.log1p(OVERHEAD)
    beyond = np.flatnonzero(level > goal)
    if not len(beyond):
        return math.inf
    after = beyond[0]
    share = (goal - level[after - 1]) / (level[after] - level[after - 1])
    return float(log_sizes[after - 1] + share * (log_sizes[after] - log_sizes[after - 1]))
