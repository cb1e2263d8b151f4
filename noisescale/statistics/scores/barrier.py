"""How high a line of models rises between its ends, from the losses of single examples."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from noisescale.statistics.estimate import Estimate, from_stderr, undefined


class Barrier(NamedTuple):
    """The highest point of a line above the chord between its ends.

    Attributes:
        height: L(α) − (1 − α)L(0) − αL(1) there, with the error of the examples.
        alpha: where that is, on the grid.
    """

    height: Estimate
    alpha: float


def line_barrier(
    losses: np.ndarray, alphas: np.ndarray, *, weights: np.ndarray | None = None
) -> Barrier:
    """The barrier between the models at α = 0 and α = 1.

    The largest L(α) − (1 − α)L(0) − αL(1) strictly between the ends (Entezari et al. 2022, arXiv
    2110.06296, definition 2.2); negative where the loss lies below the chord all along. The
    standard error is that of the mean of the single examples' own differences, so that what makes
    an example hard at both ends and between them cancels. It is of the examples as a sample: over
    all examples that training descends on, the height itself is exact.

    Args:
        losses: (K, N), of each example at each α, in units that are averaged.
        alphas: (K,), with 0 and 1 among them, and one at least between.
        weights: (N,), what each example counts for in the mean; None: all alike.

    Returns:
        The height with Student's t interval, at the α of the grid where the mean is largest;
        undefined where a loss between the ends is not finite.
    """
    start, end = (int(np.flatnonzero(np.isclose(alphas, place))[0]) for place in (0, 1))
    between = np.flatnonzero((alphas > alphas[start]) & (alphas < alphas[end]))
    share = alphas[between, None]
    num_examples = losses.shape[1]
    with np.errstate(invalid="ignore"):  # inf − inf
        rises = losses[between] - (1 - share) * losses[start] - share * losses[end]  # (k, N)
    counts = np.ones(num_examples) if weights is None else weights / weights.mean()
    means = (rises * counts).mean(1)
    if not np.isfinite(means).all():
        broken = float(alphas[between][~np.isfinite(means)][0])
        return Barrier(undefined(num_samples=num_examples), broken)
    highest = int(means.argmax())
    influence = counts * (rises[highest] - means[highest])  # of a weighted mean, of first order
    stderr = influence.std(ddof=1) / math.sqrt(num_examples) if num_examples > 1 else math.nan
    height = from_stderr(float(means[highest]), float(stderr), num_samples=num_examples)
    return Barrier(height, float(alphas[between][highest]))
