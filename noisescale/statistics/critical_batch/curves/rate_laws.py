"""Laws of the best learning rate, log ε = level + shape(log B), by weighted least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from noisescale.statistics.critical_batch.curves.hyperbola import LEAST_SPREAD, NEGLIGIBLE
from noisescale.statistics.estimate import Estimate, student_t

LawName = Literal["noise", "capped", "power", "sqrt", "linear"]
POWERS: dict[LawName, float] = {"sqrt": 0.5, "linear": 1.0}  # ε ∝ B^power of those that have one
FEWEST_RATES = 4  # batch sizes: two parameters, one to leave out, and one to tell the spread
STEP = 0.02  # between the shapes tried: e-folds of a bend, or a power; refined by a parabola
STEEPEST = 3.0  # power tried
NO_STEP = 1e-15  # of what Newton's method has reached
ROUNDS = 3  # of weights and fit in turn, which settle in two


class BestRates(NamedTuple):
    """What laws are fitted to: log B and log ε (n,)."""

    log_sizes: np.ndarray
    log_rates: np.ndarray


class LawFit(NamedTuple):
    """A fitted law.

    level: log ε_max, or log ε at B = 1. shape: log B_c, or the power. tried, squares: shapes and
    the weighted sums of squares they leave (G,). residuals: of log ε (n,).
    """

    level: float
    shape: float
    tried: np.ndarray
    squares: np.ndarray
    residuals: np.ndarray

    def bend_interval(self) -> Estimate:
        """B_c with the interval of its profile, as `Hyperbola.interval` cuts it."""
        num_rates = len(self.residuals)
        dof = num_rates - 2
        t = student_t(dof)
        least = self.squares.min() + LEAST_SPREAD**2 * num_rates
        outside = self.squares > least * (1 + t**2 / dof)
        best = int(self.squares.argmin())
        below, above = np.flatnonzero(outside[:best]), best + np.flatnonzero(outside[best:])
        low = math.exp(self.tried[below[-1]]) if len(below) else 0.0
        high = math.exp(self.tried[above[0]]) if len(above) else math.inf
        value = math.exp(self.shape) if low > 0 and high < math.inf else math.nan
        return Estimate.from_interval(value, low, high, num_samples=num_rates, widths=2 * t)


def fit_law(name: LawName, rates: BestRates, weights: np.ndarray) -> LawFit:
    """The law that is nearest to the rates with these weights (n,)."""
    tried = _tried(name, rates.log_sizes)
    curves = _curves(name, rates.log_sizes, tried)  # (G, n)
    squares = _squares(curves, rates.log_rates, weights[None])[0]
    shape = float(_least(tried, squares[None])[0])
    distances = rates.log_rates - _curves(name, rates.log_sizes, np.array([shape]))[0]
    level = float(np.average(distances, weights=weights))
    return LawFit(level, shape, tried, squares, distances - level)


def held_out_error(name: LawName, rates: BestRates, weights: np.ndarray) -> float:
    """Root mean square of what each rate lies off the law fitted to the others, weighted."""
    tried = _tried(name, rates.log_sizes)
    curves = _curves(name, rates.log_sizes, tried)
    others = weights * (1 - np.eye(len(weights)))  # (n, n), of each rate's others
    shapes = _least(tried, _squares(curves, rates.log_rates, others))  # (n,)
    distances = rates.log_rates - _curves(name, rates.log_sizes, shapes)  # (n, n)
    levels = (others * distances).sum(1) / others.sum(1)
    errors = np.diagonal(distances) - levels
    return float(np.sqrt(np.average(errors**2, weights=weights)))


def common_weights(rates: BestRates, log_errors: Sequence[float] | np.ndarray | None) -> np.ndarray:
    """1/(σ² + τ²) for each rate (n,), τ what the best of the laws lies off beyond the errors σ."""
    sigma = np.full(len(rates.log_rates), np.nan)
    if log_errors is not None:
        sigma = np.asarray(log_errors, dtype=float)
    if not np.isfinite(sigma).any():
        return np.ones(len(sigma))
    sigma = np.where(np.isfinite(sigma), sigma, np.nanmax(sigma[np.isfinite(sigma)]))
    variances = sigma**2 + LEAST_SPREAD**2
    excess = min(_excess(name, rates, variances) for name in ("noise", "capped", "power"))
    weights: np.ndarray = 1 / (variances + excess)
    weights /= weights.mean()
    return weights


def _excess(name: LawName, rates: BestRates, variances: np.ndarray) -> float:
    """τ² with which the rates lie off a law of two parameters as far as they should."""
    excess = 0.0
    for _ in range(ROUNDS):
        squares = fit_law(name, rates, 1 / (variances + excess)).residuals ** 2  # (n,)
        excess = _excess_of(squares, variances, dof=len(squares) - 2)
    return excess


def _excess_of(squares: np.ndarray, variances: np.ndarray, *, dof: int) -> float:
    """The τ² ≥ 0 with Σ squares/(variances + τ²) = dof, or zero where that is too much.

    By Newton's method, which from below climbs to the root of a convex falling function without
    passing it: until rounding alone moves it.
    """
    excess = 0.0
    while True:
        terms = squares / (variances + excess)
        step = (terms.sum() - dof) / (terms / (variances + excess)).sum() if terms.any() else 0.0
        if step <= NO_STEP * excess or step <= 0:
            return excess
        excess += float(step)


def _tried(name: LawName, log_sizes: np.ndarray) -> np.ndarray:
    """Shapes (G,): log B_c from far below to far above the sizes, or powers."""
    if name in POWERS:
        return np.array([POWERS[name]])
    if name == "power":
        return np.arange(-STEEPEST, STEEPEST, STEP)
    return np.arange(log_sizes.min() - NEGLIGIBLE, log_sizes.max() + NEGLIGIBLE, STEP)


def _curves(name: LawName, log_sizes: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """Log ε less its level (G, n)."""
    shapes = shapes[:, None]
    curves: np.ndarray = shapes * log_sizes
    if name == "noise":
        curves = -np.logaddexp(0, shapes - log_sizes)
    elif name == "capped":
        curves = np.minimum(log_sizes - shapes, 0)
    return curves


def _squares(curves: np.ndarray, log_rates: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sums of squares (k, G) about the curves (G, n) at their best levels.

    weights: (k, n).
    """
    distances = log_rates - curves  # (G, n)
    first, second = weights @ distances.T, weights @ (distances**2).T  # (k, G)
    squares: np.ndarray = second - first**2 / weights.sum(1, keepdims=True)
    squares[squares < 0] = 0.0  # by rounding
    return squares


def _least(tried: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """The shapes (k,) at which the squares (k, G) are least, by a parabola through the lowest."""
    if len(tried) == 1:
        return np.repeat(tried, len(squares))
    middle = np.clip(squares.argmin(1), 1, len(tried) - 2)
    rows = np.arange(len(squares))
    before, at, after = (squares[rows, middle + shift] for shift in (-1, 0, 1))
    curvature = np.maximum(before - 2 * at + after, np.finfo(float).tiny)
    shapes: np.ndarray = tried[middle] + STEP * np.clip((before - after) / (2 * curvature), -1, 1)
    return shapes
