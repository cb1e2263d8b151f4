"""How far a curve's parameters differ between seeds, and intervals that hold that as well."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from noisescale.statistics.critical_batch.curves.hyperbola import Curve, Quantity
from noisescale.statistics.critical_batch.curves.runs import FEWEST_SIZES, Runs
from noisescale.statistics.estimate import CONFIDENCE, Estimate, student_t

QUANTITIES: tuple[Quantity, ...] = ("plateau", "slope", "bend")


@dataclass(frozen=True)
class SeedSpread:
    """Standard errors of the logs of a curve's parameters, from how far seeds differ.

    errors: by parameter. dof: of Student's t. left_over: the share of the means' variance about the
    curve that single runs do not explain, see `left_over`.
    """

    errors: dict[Quantity, float]
    dof: int
    left_over: float

    def widen(
        self, profile: Estimate, best: float, quantity: Quantity, *, confidence: float = CONFIDENCE
    ) -> Estimate:
        """The profile's interval of a parameter, about its `best` value, with the seeds' spread.

        The distances of its ends, in logs, are Student's t over the seeds and the left-over share
        of the profile's, added in squares. An end at zero or infinity stays.
        """
        error, t = self.errors[quantity], student_t(self.dof, confidence=confidence)

        def distance(end: float) -> float:
            return math.hypot(t * error, math.sqrt(self.left_over) * math.log(end / best))

        low = best * math.exp(-distance(profile.low)) if profile.low > 0 else 0.0
        high = best * math.exp(distance(profile.high)) if profile.high < math.inf else math.inf
        relative = math.hypot(error, math.sqrt(self.left_over) * profile.stderr / best)
        stderr = profile.value * relative
        return Estimate(
            value=profile.value, stderr=stderr, low=low, high=high, num_samples=profile.num_samples
        )


def seed_spread(runs: Runs, curve: Curve, *, left_over: float) -> SeedSpread | None:
    """Between the seeds of crossed runs, each fitted alone; None where they cannot tell.

    Where one of them cannot be fitted alone (fewer than four batch sizes reach the goal, or its
    bend lies outside of them), from the fits that leave out one seed each: the jackknife.
    """
    if not runs.crossed:
        return None
    num_seeds = len(runs.log_steps)
    alone = np.eye(num_seeds, dtype=bool)
    logs, factor = _logs(runs, alone, curve), 1 / (num_seeds - 1)
    if logs is None:
        logs, factor = _logs(runs, ~alone, curve), (num_seeds - 1)
    if logs is None:
        return None
    variances = factor * logs.var(axis=0)
    errors = dict(zip(QUANTITIES, np.sqrt(variances).tolist(), strict=True))
    return SeedSpread(errors, dof=num_seeds - 1, left_over=left_over)


def _logs(runs: Runs, subsets: np.ndarray, near: Curve) -> np.ndarray | None:
    """Log plateau, slope and bend (R, 3) of subsets of the seeds (R, R); None where one has none.

    near: where the searches start.
    """
    rows = []
    for kept in subsets:
        part = runs.rows(kept)
        reached = part.sizes[part.reached]
        if len(reached) < FEWEST_SIZES:
            return None
        curve = part.hyperbola().fit(near)
        if not reached.min() < curve.bend < reached.max():
            return None
        rows.append([math.log(curve.plateau), math.log(curve.slope), math.log(curve.bend)])
    return np.array(rows)
