"""y = a·(1 + c/x) fitted in logs, to values some of which are lower bounds, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from scipy.special import log_ndtr

from noisescale.errors import MeasurementError
from noisescale.statistics.estimate import CONFIDENCE, Estimate, student_t

if TYPE_CHECKING:
    from scipy import optimize

LEAST_SPREAD = 1e-6  # standard deviation of log y below which values count as exact: rounding
FEWEST = 3  # values that are known: two parameters, and one to tell the spread
FARTHEST = 20.0  # e-folds from the best value, a factor of 5e8, beyond which there is no end
NEGLIGIBLE = 12.0  # e-folds below the values, 6e-6 of them, at which a parameter is nothing
LOG_ROOT = 0.5 * math.log(2 * math.pi)
STARTS = 25  # bends tried before the search: a third of an e-fold apart over three decades
FIRST_STEP = 0.02  # e-folds, of the search for an interval's end: below any real interval

Quantity = Literal["plateau", "slope", "bend"]
# log a, log(a·c) and log c as functions of the free parameters of a fit in which one of them is
# held fixed: (log a, log ac, log spread) = fixed value × the first + the free ones × the second
_HELD: dict[Quantity, tuple[np.ndarray, np.ndarray]] = {
    "plateau": (np.array([1.0, 0.0, 0.0]), np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])),
    "slope": (np.array([0.0, 1.0, 0.0]), np.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])),
    "bend": (np.array([-1.0, 0.0, 0.0]), np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])),
}


class Curve(NamedTuple):
    """y = plateau + slope/x, and the standard deviation of log y about it."""

    plateau: float
    slope: float
    spread: float

    @property
    def bend(self) -> float:
        """c, where y is twice its plateau."""
        return self.slope / self.plateau

    def at(self, x: np.ndarray) -> np.ndarray:
        """Y at these x."""
        return self.plateau + self.slope / x


@dataclass(frozen=True)
class Hyperbola:
    """Values y > 0 at x > 0, one for each x, of which the `bounds` are known to lie above y.

    log y = log(plateau + slope/x) + a normal deviation, equal for all x: maximum likelihood, a
    bound counting with the probability that it is exceeded (Tobin 1958). MeasurementError for fewer
    than three known values.
    """

    x: np.ndarray
    y: np.ndarray
    bounds: np.ndarray

    def __post_init__(self) -> None:
        if (num_known := int((~self.bounds).sum())) < FEWEST:
            raise MeasurementError(
                f"{num_known} of {len(self.x)} values are known, the others bounds: it takes "
                f"{FEWEST}"
            )

    def fit(self, near: Curve | None = None) -> Curve:
        """The most likely curve; its plateau or slope goes to zero where values show no bend.

        near: where to search; None: at the best of many bends among the values.
        """
        log_x, log_y = np.log(self.x), np.log(self.y)
        start = self._start(log_x, log_y) if near is None else np.log(near)
        likeliest = self._minimise(start, np.zeros(3), np.eye(3))
        plateau = max(likeliest.x[0], log_y.min() - NEGLIGIBLE)
        slope = max(likeliest.x[1], (log_x + log_y).min() - NEGLIGIBLE)
        log_spread = likeliest.x[2]
        return Curve(math.exp(plateau), math.exp(slope), math.exp(log_spread))

    def _start(self, log_x: np.ndarray, log_y: np.ndarray) -> np.ndarray:
        """The likeliest of curves with their bends among the values, at their mean level."""
        known = ~self.bounds
        starts = []
        for bend in np.linspace(log_x.min(), log_x.max(), STARTS):
            distances = log_y - np.logaddexp(0.0, bend - log_x)
            level = float(np.mean(distances[known]))
            spread = 1e-3 + float(np.std(distances[known]))
            starts.append(np.array([level, level + bend, math.log(spread)]))
        return min(starts, key=lambda params: self._deviance(params)[0])

    def interval(
        self, quantity: Quantity, curve: Curve, *, confidence: float = CONFIDENCE
    ) -> Estimate:
        """`quantity` of the most likely curve, with its interval by the profile of the likelihood.

        The interval is cut where that of a linear model with normal deviations has exactly this
        coverage: at a deviance of m·log(1 + t²/(m − 2)), m known values. stderr: half the interval
        in logs over t, times the value. An interval without an upper or lower end leaves the value
        undefined.
        """
        num_known = int((~self.bounds).sum())
        t = student_t(num_known - 2, confidence=confidence)
        allowed = num_known * math.log1p(t**2 / (num_known - 2))
        starts = np.log(curve)
        best = {"plateau": starts[0], "slope": starts[1], "bend": starts[1] - starts[0]}[quantity]
        least = self._deviance(starts)[0]

        def excess(value: float) -> float:
            offset, free = _HELD[quantity]
            other = starts[0] if quantity == "slope" else starts[1]
            if quantity == "bend":  # at which the curve lies among the values
                other = float(np.mean(np.log(self.y) - np.logaddexp(-value, -np.log(self.x))))
            start = np.array([other, starts[2]])
            return float(self._minimise(start, value * offset, free).fun) - least - allowed

        low, high = (_end(excess, best, direction) for direction in (-1.0, 1.0))
        value = math.exp(best)
        if low == 0.0 or math.isinf(high):
            value = math.nan
        return Estimate.from_interval(value, low, high, num_samples=num_known, widths=2 * t)

    def _minimise(
        self, start: np.ndarray, offset: np.ndarray, free: np.ndarray
    ) -> optimize.OptimizeResult:
        """The least deviance over the free parameters, of which the last is log spread."""
        from scipy import optimize  # takes a quarter of a second, which remembered fits need not

        def deviance(values: np.ndarray) -> tuple[float, np.ndarray]:
            total, gradient = self._deviance(offset + free @ values)
            return total, free.T @ gradient

        bounds = [(None, None)] * (len(start) - 1) + [(math.log(LEAST_SPREAD), 5.0)]
        return optimize.minimize(deviance, start, jac=True, method="L-BFGS-B", bounds=bounds)

    def _deviance(self, params: np.ndarray) -> tuple[float, np.ndarray]:
        """−2 log-likelihood at (log plateau, log slope, log spread), and its gradient."""
        plateau, slope, log_spread = params
        spread = math.exp(log_spread)
        falling = slope - np.log(self.x)
        fitted = np.logaddexp(plateau, falling)
        distance = (np.log(self.y) - fitted) / spread  # in standard deviations
        beyond = log_ndtr(-distance[self.bounds])  # log-probability that a bound is exceeded
        # d(−2 log-likelihood)/d distance: of a known value's density, of a bound's probability
        pull = 2 * distance
        pull[self.bounds] = 2 * np.exp(-0.5 * distance[self.bounds] ** 2 - LOG_ROOT - beyond)
        num_known = int((~self.bounds).sum())
        total = (
            float(np.sum(distance[~self.bounds] ** 2))
            + 2 * num_known * log_spread
            - 2 * float(beyond.sum())
        )
        share = np.exp(plateau - fitted)  # of the plateau in the curve
        gradient = np.array(
            [
                -float(np.sum(pull * share)) / spread,
                -float(np.sum(pull * (1 - share))) / spread,
                -float(np.sum(pull * distance)) + 2 * num_known,
            ]
        )
        return total, gradient


def _end(excess: Callable[[float], float], best: float, direction: float) -> float:
    """Exp of where `excess` turns positive on one side of `best`; 0 or infinity if nowhere."""
    allowed = -excess(best)
    inside, outside = 0.0, FIRST_STEP
    while (there := excess(best + direction * outside)) < 0:
        # to where a parabola through the two is above zero, but by steps that stay in reach
        parabola = outside * math.sqrt(allowed / (allowed + there)) if allowed + there > 0 else 0.0
        inside, outside = outside, min(max(1.2 * parabola, 2 * outside), 8 * outside)
        if outside > FARTHEST:
            return 0.0 if direction < 0 else math.inf
    from scipy import optimize  # here, as above

    root = optimize.brentq(
        lambda distance: excess(best + direction * distance), inside, outside, xtol=1e-4
    )
    return math.exp(best + direction * float(root))
