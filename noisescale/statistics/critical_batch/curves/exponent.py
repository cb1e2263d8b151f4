"""A sharper or blunter bend than the hyperbola's, fitted in logs, and which of the two predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from noisescale.statistics.critical_batch.curves.hyperbola import LEAST_SPREAD, NEGLIGIBLE, Curve
from noisescale.statistics.critical_batch.curves.runs import Runs
from noisescale.statistics.estimate import CONFIDENCE, Estimate, student_t, undefined

FEWEST_FOR_EXPONENT = 5  # batch sizes: three parameters, the scatter, and one to leave out
FEWEST_WITH_NEIGHBOURS = 8  # from which on a batch size is left out with those beside it
LOG_EXPONENTS = np.arange(-6, 14) / 4  # tried: a from .22 to 26, a bend over decades to a corner
FINER = np.array([-0.08, 0.0, 0.08])  # about the best of them, for a second parabola
STEPS = 20  # of Gauss–Newton in log B_crit, which takes 5 to 10 from anywhere among the sizes
LONGEST_STEP, CONVERGED = 1.0, 1e-9  # e-folds


@dataclass(frozen=True, kw_only=True)
class SharperBend:
    """S = S_min(1 + (B_crit/B)^a)^(1/a), whose ends are the hyperbola's, beside the hyperbola.

    Attributes:
        exponent: a; 1 is the hyperbola, more a sharper bend.
        critical_batch_size: E_min/S_min of this curve.
        held_out_error: of this curve, root mean square of log(S/prediction), each batch size
            predicted from the others alone (from eight on, from those that are not its neighbours
            either, whose deviations often go with its own).
        hyperbola_error: that of the hyperbola.
        fitted: log S of this curve at the batch sizes that reach the goal (n,).
        scatter: standard deviation of log S about it, n − 3 in its denominator.
    """

    exponent: Estimate
    critical_batch_size: float
    held_out_error: float
    hyperbola_error: float
    fitted: np.ndarray
    scatter: float


class _Fits(NamedTuple):
    """Least-squares fits (k, A) of k sets of values, each at A exponents."""

    level: np.ndarray  # log S_min
    bend: np.ndarray  # log B_crit
    squares: np.ndarray  # Σ of the squared deviations


def sharper_bend(
    runs: Runs, *, hyperbola: Curve, noise: float, confidence: float = CONFIDENCE
) -> SharperBend:
    """The exponent fitted to the means of the batch sizes that reach the goal, and held-out errors.

    Its interval is that of the profile, its distance in logs added in squares to Student's t over
    the seeds (the jackknife) as that of B_crit is, see `SeedSpread.widen`. Fewer than five batch
    sizes leave the exponent undefined, and the curve is the hyperbola.

    Args:
        runs: to the goal.
        hyperbola: fitted to the same means.
        noise: the variance of a mean that the runs' own scatter explains; 0 where that is unknown.
        confidence: of the interval.
    """
    log_sizes, means = np.log(runs.sizes[runs.reached]), runs.means[runs.reached]
    if len(means) < FEWEST_FOR_EXPONENT:
        residuals = runs.residuals(hyperbola)
        return SharperBend(
            exponent=undefined(num_samples=len(means)),
            critical_batch_size=math.nan,
            held_out_error=math.nan,
            hyperbola_error=math.nan,
            fitted=means - residuals,
            scatter=float(np.sqrt(np.sum(residuals**2) / max(len(means) - 2, 1))),
        )
    start = float(np.clip(math.log(hyperbola.bend), log_sizes[0], log_sizes[-1]))
    kept = _held_out(len(means))
    leave_one_out = _without_one_seed(runs)
    values = np.concatenate([means[None], np.tile(means, (len(means), 1)), leave_one_out])
    parts = np.concatenate(
        [np.ones((1, len(means)), bool), kept, np.ones(leave_one_out.shape, bool)]
    )  # (k, n)
    tried = _fit(log_sizes, values, parts, np.exp(LOG_EXPONENTS)[None], start)
    coarse = np.tile(LOG_EXPONENTS, (len(values), 1))
    around = _lowest(coarse, tried.squares)[:, None] + FINER  # (k, 3)
    finer = _fit(log_sizes, values, parts, np.exp(around), start)
    logs = _lowest(around, finer.squares)  # (k,), log a of each set of values
    best = _fit(log_sizes, values, parts, np.exp(logs)[:, None], start)
    held = slice(1, 1 + len(means))
    plain = _fit(log_sizes, values[held], kept, np.ones((1, 1)), start)
    sharper = _Fits(*(part[held] for part in best))
    exponents = np.exp(logs[held])
    return SharperBend(
        exponent=_exponent(logs, tried.squares[0], leave_one_out, noise, confidence),
        critical_batch_size=math.exp(best.bend[0, 0]),
        held_out_error=_error(log_sizes, means, sharper, exponents),
        hyperbola_error=_error(log_sizes, means, plain, np.ones(len(means))),
        fitted=_curves(log_sizes, best, np.exp(logs))[0],
        scatter=math.sqrt(best.squares[0, 0] / (len(means) - 3)),
    )


def _held_out(num_sizes: int) -> np.ndarray:
    """Which batch sizes each is predicted from (n, n)."""
    reach = 1 if num_sizes >= FEWEST_WITH_NEIGHBOURS else 0
    places = np.arange(num_sizes)
    kept: np.ndarray = np.abs(places[:, None] - places) > reach
    return kept


def _without_one_seed(runs: Runs) -> np.ndarray:
    """Means (R, n) without each seed in turn; none of runs that are not crossed."""
    known = runs.log_steps[:, runs.reached]
    counts = runs.counts[runs.reached]
    if not runs.crossed or (counts < len(known)).any():
        return np.empty((0, known.shape[1]))
    without: np.ndarray = (known.sum(0) - known) / (len(known) - 1)
    return without


def _fit(
    log_sizes: np.ndarray,
    values: np.ndarray,
    kept: np.ndarray,
    exponents: np.ndarray,
    start: float,
) -> _Fits:
    """Log y = level + log(1 + (B_crit/B)^a)/a, by Gauss–Newton in log B_crit alone.

    log_sizes: (n,). values: (k, n). kept: those that count (k, n). exponents: (k or 1, A). start:
    log B_crit.
    """
    weights, values = kept[:, None, :], values[:, None, :]  # (k, 1, n)
    exponents = exponents[:, :, None]  # (k or 1, A, 1)
    totals = weights.sum(-1)
    bend = np.full((len(values), exponents.shape[1]), start)
    lowest, highest = log_sizes[0] - NEGLIGIBLE, log_sizes[-1] + NEGLIGIBLE
    for _ in range(STEPS):
        level, residuals = _residuals(log_sizes, values, weights, exponents, bend)
        slopes = special.expit(exponents * (bend[..., None] - log_sizes))  # (k, A, n)
        slopes = weights * (slopes - (weights * slopes).sum(-1, keepdims=True) / totals[..., None])
        steps = (residuals * slopes).sum(-1) / np.maximum((slopes**2).sum(-1), 1e-12)
        bend = np.clip(bend + np.clip(steps, -LONGEST_STEP, LONGEST_STEP), lowest, highest)
        if np.abs(steps).max() < CONVERGED:
            break
    level, residuals = _residuals(log_sizes, values, weights, exponents, bend)
    return _Fits(level=level, bend=bend, squares=(residuals**2).sum(-1))


def _residuals(
    log_sizes: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    exponents: np.ndarray,
    bend: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The best level (k, A) at these bends, and weighted deviations (k, A, n) from the curve."""
    distances = values - np.logaddexp(0, exponents * (bend[..., None] - log_sizes)) / exponents
    level = (weights * distances).sum(-1) / weights.sum(-1)
    return level, weights * (distances - level[..., None])


def _lowest(log_exponents: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Log a (k,) where the squares (k, A) are least, by a parabola through the least and beside.

    log_exponents: equally spaced (k, A).
    """
    middle = np.clip(squares.argmin(1), 1, squares.shape[1] - 2)
    rows = np.arange(len(squares))
    before, at, after = (squares[rows, middle + shift] for shift in (-1, 0, 1))
    curvature = np.maximum(before - 2 * at + after, np.finfo(float).tiny)
    shift = np.clip((before - after) / (2 * curvature), -1, 1)
    spacing = log_exponents[:, 1] - log_exponents[:, 0]
    logs: np.ndarray = log_exponents[rows, middle] + shift * spacing
    return logs


def _exponent(
    logs: np.ndarray,
    squares: np.ndarray,
    leave_one_out: np.ndarray,
    noise: float,
    confidence: float,
) -> Estimate:
    """The exponent with its interval.

    logs: log a of all values, of those held out and, last, of those without each seed. squares: by
    LOG_EXPONENTS. leave_one_out: the means of the latter (R, n).
    """
    num_sizes = len(logs) - 1 - len(leave_one_out)
    dof = num_sizes - 3
    t = student_t(dof, confidence=confidence)
    squares = squares + num_sizes * LEAST_SPREAD**2  # of exact values, rounding
    allowed = squares.min() * (1 + t**2 / dof)
    best = float(logs[0])
    seeds, left_over = 0.0, 1.0
    if num_seeds := len(leave_one_out):
        error = math.sqrt((num_seeds - 1) * logs[-num_seeds:].var())
        seeds = student_t(num_seeds - 1, confidence=confidence) * error
        left_over = max(0.0, 1 - noise * dof / squares.min())

    def end(direction: int) -> float:
        """Log a where the profile leaves what is allowed, widened; infinite where it does not."""
        side = direction * (LOG_EXPONENTS - best) > 0
        logs_there, squares_there = LOG_EXPONENTS[side], squares[side]
        if direction < 0:
            logs_there, squares_there = logs_there[::-1], squares_there[::-1]
        beyond = np.flatnonzero(squares_there > allowed)
        if not len(beyond):
            return direction * math.inf
        last = beyond[0]
        x0, y0 = (
            (best, squares.min()) if last == 0 else (logs_there[last - 1], squares_there[last - 1])
        )
        x1, y1 = logs_there[last], squares_there[last]
        crossing = x0 + (x1 - x0) * (allowed - y0) / (y1 - y0)
        return best + direction * math.hypot(seeds, math.sqrt(left_over) * (crossing - best))

    return Estimate.from_interval(
        math.exp(best), math.exp(end(-1)), math.exp(end(1)), num_samples=num_sizes
    )


def _curves(log_sizes: np.ndarray, fits: _Fits, exponents: np.ndarray) -> np.ndarray:
    """Log S (k, n) of curves (k, 1), each of its own exponent (k,)."""
    falling = exponents[:, None] * (fits.bend - log_sizes)
    curves: np.ndarray = fits.level + np.logaddexp(0, falling) / exponents[:, None]
    return curves


def _error(log_sizes: np.ndarray, means: np.ndarray, fits: _Fits, exponents: np.ndarray) -> float:
    """Root mean square of what each mean lies off the curve (n, 1) that was fitted without it."""
    predicted = np.diagonal(_curves(log_sizes, fits, exponents))
    return float(np.sqrt(np.mean((means - predicted) ** 2)))
