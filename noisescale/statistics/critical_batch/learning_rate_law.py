"""How the best learning rate depends on the batch size: measured, and by five laws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.critical_batch.curves.rate_laws import (
    FEWEST_RATES,
    BestRates,
    LawName,
    common_weights,
    fit_law,
    held_out_error,
)
from noisescale.statistics.estimate import Estimate, from_log_samples, jsonable, undefined


@dataclass(frozen=True, kw_only=True)
class LearningRateLaw:
    """A law of the best learning rate ε(B), fitted in logs to those at several batch sizes.

    Attributes:
        name: "noise", ε_max/(1 + B_c/B) (McCandlish et al. 2018, 2.6); "capped", min(ε_max·B/B_c,
            ε_max), linear up to a largest stable rate; "power", ∝ B^a; "sqrt", ∝ √B (Krizhevsky
            2014); "linear", ∝ B (Goyal et al. 2017).
        scale: ε_max of "noise" and "capped", else ε at B = 1.
        bend: B_c of "noise" and "capped" in examples, else nan.
        power: a of "power", "sqrt" and "linear", else nan.
        batch_size: B_c with its 95 % interval, by the profile of the likelihood, undefined where
            the interval is open; None for the others.
        held_out_error: root mean square of log(ε/prediction), each batch size predicted from the
            others alone, and weighted as in the fit.

    Examples:
        >>> from noisescale import fit_learning_rate_laws
        >>> law = fit_learning_rate_laws([1, 4, 16, 64, 256], [0.06, 0.2, 0.45, 0.66, 0.77])[0]
        >>> round(law.rate(8), 2)
        0.32
    """

    name: LawName
    scale: float
    bend: float
    power: float
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
        if self.name == "capped":
            return self.scale * min(1.0, batch_size / self.bend)
        return self.scale * math.exp(self.power * math.log(batch_size))

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON."""
        stored = ("name", "scale", "power", "bend", "batch_size", "held_out_error")
        record: dict[str, Any] = jsonable({name: getattr(self, name) for name in stored})
        return record


def best_rate(seeds: Sequence[Mapping[float, float]]) -> Estimate:
    """The best learning rate at one batch size and goal, from the steps of each seed's runs.

    A seed's best rate is the vertex of the parabola through the fastest run and its two neighbours,
    in logs, or the fastest run's own where a neighbour did not reach the goal. A seed whose fastest
    run is at an end of the rates tried bounds its best rate on one side.

    Args:
        seeds: of each the steps by learning rate, infinite where the goal was not reached.

    Returns:
        The seeds' geometric mean with Student's t interval. Of one seed, the interval is from the
        next smaller to the next larger rate that was tried, and no narrower than that where some
        seed's best rate is the grid's own. Where some seeds give bounds, the median and all that
        the seeds span, open where a bound is; undefined where most do.

    Raises:
        SettingError: a rate that is not above 0, or steps that are not.

    Examples:
        >>> from noisescale import best_rate
        >>> first, second = {0.1: 90, 0.2: 50, 0.4: 60}, {0.2: 55, 0.4: 52, 0.8: 70}  # rate: steps
        >>> best_rate([first, second])
        Estimate(0.275 ± 0.038 (0.048–1.571))
    """
    for rate, num_steps in (run for steps in seeds for run in steps.items()):
        if not (0 < rate < math.inf and num_steps > 0):
            raise SettingError(
                f"{num_steps} steps at the learning rate {rate}: give numbers above 0, and "
                "infinity for a goal that was not reached"
            )
    vertices, ends, bounds, parabolic = [], [], [], True
    for steps in seeds:
        rates = sorted(steps)
        # of equally fast ones that with neighbours on either side
        order = [*range(1, len(rates) - 1), 0, len(rates) - 1]
        fastest = min(order, key=lambda index: steps[rates[index]]) if rates else 0
        if len(rates) < 2 or math.isinf(steps[rates[fastest]]):
            continue
        if not 0 < fastest < len(rates) - 1:
            bounds.append(0.0 if fastest == 0 else math.inf)
            continue
        around = rates[fastest - 1 : fastest + 2]
        steps_around = np.array([steps[rate] for rate in around])  # (3,)
        vertices.append(_vertex(np.log(around), np.log(steps_around)))
        ends.append((around[0], around[2]))
        parabolic &= bool(np.isfinite(steps_around).all())
    if bounds:
        return _median([*vertices, *bounds])
    if not vertices:
        return undefined(num_samples=0)
    low, high = np.exp(np.mean(np.log(ends), axis=0)).tolist()
    if len(vertices) == 1:
        return Estimate(value=vertices[0], stderr=math.nan, low=low, high=high, num_samples=1)
    mean = from_log_samples(vertices)
    return mean if parabolic else replace(mean, low=min(mean.low, low), high=max(mean.high, high))


def _median(rates: list[float]) -> Estimate:
    """Of seeds' best rates, 0 or infinite where one is bounded, and all that they span."""
    ordered = sorted(rates)
    middle = ordered[(len(rates) - 1) // 2], ordered[len(rates) // 2]
    if not (middle[0] > 0 and middle[1] < math.inf):
        return undefined(num_samples=0)
    return Estimate(
        value=math.sqrt(middle[0] * middle[1]),
        stderr=math.nan,
        low=ordered[0],
        high=ordered[-1],
        num_samples=len(rates),
    )


def _vertex(log_rates: np.ndarray, log_steps: np.ndarray) -> float:
    """Exp of where the parabola through three points is least, the middle of which is the least."""
    if not np.isfinite(log_steps).all():
        return float(np.exp(log_rates[1]))
    # slopes on either side, which are 0 of equal steps without rounding
    left, right = np.diff(log_steps) / np.diff(log_rates)
    if not right > left:
        return float(np.exp(log_rates[1]))
    before, after = np.diff(log_rates)
    # where the slope, which is linear and these two at the middles of the two intervals, is 0
    middle = log_rates[1] - before / 2
    return float(np.exp(middle - left * (before + after) / (2 * (right - left))))


def fit_learning_rate_laws(
    batch_sizes: Sequence[float] | np.ndarray,
    rates: Sequence[float] | np.ndarray,
    *,
    log_errors: Sequence[float] | np.ndarray | None = None,
) -> list[LearningRateLaw]:
    """The five laws fitted to the best learning rates, the least held-out error first.

    Least squares in logs. With errors each batch size weighs 1/(σ² + τ²), σ its own error and τ
    what the law that follows the rates best still lies off them (the estimator of Paule and Mandel
    1982), so that a rate that seeds happen to agree on does not decide alone; without, all weigh
    the same.

    Args:
        batch_sizes: B, in examples (n,).
        rates: the best learning rate at each (n,).
        log_errors: the standard error of the log of each (n,), nan where it is not known, which
            counts as the largest; None: equal weights.

    Returns:
        The laws "noise", "capped", "power", "sqrt" and "linear", in order of their error.

    Raises:
        SettingError: not as many rates or errors as batch sizes, or numbers that are not above 0.
        MeasurementError: fewer than four batch sizes.

    Examples:
        >>> from noisescale import fit_learning_rate_laws
        >>> laws = fit_learning_rate_laws([1, 4, 16, 64, 256], [0.06, 0.2, 0.45, 0.66, 0.77])
        >>> laws[0].name, round(laws[0].rate(32), 2)
        ('noise', 0.58)
    """
    sizes, best = np.asarray(batch_sizes, dtype=float), np.asarray(rates, dtype=float)
    shapes = {sizes.shape, best.shape} | (set() if log_errors is None else {np.shape(log_errors)})
    if len(shapes) > 1 or sizes.ndim != 1:
        raise SettingError(
            "batch sizes, rates and errors of shapes "
            f"{', '.join(map(str, sorted(shapes)))}: give as many of each"
        )
    if not (np.isfinite([sizes, best]).all() and (sizes > 0).all() and (best > 0).all()):
        raise SettingError("batch sizes and rates: give finite numbers above 0")
    num_sizes = len(set(sizes.tolist()))
    if num_sizes < FEWEST_RATES:
        raise MeasurementError(
            f"{num_sizes} batch sizes have a best learning rate between others that were tried: "
            f"laws of it take {FEWEST_RATES}"
        )
    measured = BestRates(np.log(sizes), np.log(best))
    weights = common_weights(measured, log_errors)
    laws = []
    for name in get_args(LawName):
        fit = fit_law(name, measured, weights)
        bends = name in ("noise", "capped")
        laws.append(
            LearningRateLaw(
                name=name,
                scale=math.exp(fit.level),
                bend=math.exp(fit.shape) if bends else math.nan,
                power=math.nan if bends else fit.shape,
                batch_size=fit.bend_interval() if bends else None,
                held_out_error=held_out_error(name, measured, weights),
            )
        )
    return sorted(laws, key=lambda law: law.held_out_error)
