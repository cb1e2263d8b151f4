"""How the best learning rate depends on the batch size: measured, and by three laws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.curves.hyperbola import FEWEST, Hyperbola
from noisescale.statistics.estimate import Estimate, from_log_samples, jsonable, undefined

LawName = Literal["noise", "sqrt", "linear"]
# ε ∝ B^power of the laws that are powers
POWERS: dict[LawName, float] = {"sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True, kw_only=True)
class LearningRateLaw:
    """A law of the best learning rate ε(B), fitted in logs to those at several batch sizes.

    Attributes:
        name: "noise", ε_max/(1 + B_c/B) (McCandlish et al. 2018, 2.6); "sqrt", ∝ √B (Krizhevsky
            2014); "linear", ∝ B (Goyal et al. 2017).
        scale: ε_max of "noise", else ε at B = 1.
        bend: B_c of "noise" in examples, else nan.
        batch_size: B_c with its 95 % interval, by the profile of the likelihood, undefined where
            the interval is open; None for the others.
        held_out_error: root mean square of log(ε/prediction), each batch size predicted from the
            others alone.
    """

    name: LawName
    scale: float
    bend: float
    batch_size: Estimate | None
    held_out_error: float

    def rate(self, batch_size: float) -> float:
        """ε(B), the learning rate that the law gives.

        Args:
            batch_size: B, in examples.

        Returns:
            The learning rate.
        """
        if self.name == "noise":
            return self.scale / (1 + self.bend / batch_size)
        return self.scale * math.exp(POWERS[self.name] * math.log(batch_size))

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON."""
        stored = ("name", "scale", "batch_size", "held_out_error")
        record: dict[str, Any] = jsonable({name: getattr(self, name) for name in stored})
        return record


def best_rate(seeds: Sequence[Mapping[float, float]]) -> Estimate:
    """The best learning rate at one batch size and goal, from the steps of each seed's runs.

    A seed's best rate is the vertex of the parabola through the fastest run and its two neighbours,
    in logs, or the fastest run's own where a neighbour did not reach the goal. Seeds whose fastest
    run is at an end of the rates tried do not count.

    Args:
        seeds: of each the steps by learning rate, infinite where the goal was not reached.

    Returns:
        The seeds' geometric mean with Student's t interval. Of one seed, the interval is from the
        next smaller to the next larger rate that was tried, and no narrower than that where some
        seed's best rate is the grid's own. Undefined where no seed counts.
    """
    vertices, ends, parabolic = [], [], True
    for steps in seeds:
        rates = sorted(steps)
        fastest = min(range(len(rates)), key=lambda index: steps[rates[index]]) if rates else 0
        if not 0 < fastest < len(rates) - 1 or math.isinf(steps[rates[fastest]]):
            continue
        around = rates[fastest - 1 : fastest + 2]
        steps_around = np.array([steps[rate] for rate in around])  # (3,)
        vertices.append(_vertex(np.log(around), np.log(steps_around)))
        ends.append((around[0], around[2]))
        parabolic &= bool(np.isfinite(steps_around).all())
    if not vertices:
        return undefined(num_samples=0)
    low, high = np.exp(np.mean(np.log(ends), axis=0)).tolist()
    if len(vertices) == 1:
        return Estimate(value=vertices[0], stderr=math.nan, low=low, high=high, num_samples=1)
    mean = from_log_samples(vertices)
    return mean if parabolic else replace(mean, low=min(mean.low, low), high=max(mean.high, high))


def _vertex(log_rates: np.ndarray, log_steps: np.ndarray) -> float:
    """Exp of where the parabola through three points is least, the middle of which is the least."""
    if not np.isfinite(log_steps).all():
        return float(np.exp(log_rates[1]))
    curvature, slope, _ = np.polyfit(log_rates - log_rates[1], log_steps, 2)
    return (
        float(np.exp(log_rates[1] - slope / (2 * curvature)))
        if curvature > 0
        else float(np.exp(log_rates[1]))
    )


def fit_learning_rate_laws(
    batch_sizes: Sequence[float] | np.ndarray, rates: Sequence[float] | np.ndarray
) -> list[LearningRateLaw]:
    """The three laws fitted to the best learning rates, the least held-out error first.

    Least squares in logs, each batch size with equal weight.

    Args:
        batch_sizes: B, in examples (n,).
        rates: the best learning rate at each (n,).

    Returns:
        The laws "noise", "sqrt" and "linear", in order of their error.

    Raises:
        MeasurementError: fewer than four batch sizes.
    """
    sizes, best = np.asarray(batch_sizes, dtype=float), np.asarray(rates, dtype=float)
    if len(sizes) < FEWEST + 1:
        raise MeasurementError(
            f"{len(sizes)} batch sizes have a best learning rate between others that were tried: "
            f"laws of it take {FEWEST + 1}"
        )
    others = [np.arange(len(sizes)) != index for index in range(len(sizes))]
    laws = []
    for name, power in POWERS.items():
        distances = np.log(best) - power * np.log(sizes)
        left_out = [distances[index] - distances[kept].mean() for index, kept in enumerate(others)]
        laws.append(
            LearningRateLaw(
                name=name,
                scale=float(np.exp(distances.mean())),
                bend=math.nan,
                batch_size=None,
                held_out_error=_root_mean_square(left_out),
            )
        )
    whole = _inverse(sizes, best)
    curve = whole.fit()
    left_out = [
        math.log(best[index] * _inverse(sizes[kept], best[kept]).fit().at(sizes[index]))
        for index, kept in enumerate(others)
    ]
    laws.append(
        LearningRateLaw(
            name="noise",
            scale=1 / curve.plateau,
            bend=curve.bend,
            batch_size=whole.interval("bend", curve),
            held_out_error=_root_mean_square(left_out),
        )
    )
    return sorted(laws, key=lambda law: law.held_out_error)


def _inverse(sizes: np.ndarray, rates: np.ndarray) -> Hyperbola:
    """1/ε = (1 + B_c/B)/ε_max."""
    return Hyperbola(sizes, 1 / rates, np.zeros(len(sizes), dtype=bool))


def _root_mean_square(values: Sequence[float]) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
