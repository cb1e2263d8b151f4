"""Critical sharpness: how far the loss falls along an update, by forward passes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisescale.errors import SettingError, is_real
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples
from noisescale.statistics.estimate import Estimate, undefined

MOST_PASSES = 10
GROWTH = 10.0  # of the rate at most from one pass to the next while the loss still falls
SHRINKAGE = 10.0  # where the loss is not finite, which says nothing of where it rises
# Of the bracket's width that the next rate lies beyond where the loss seems to come back: so that
# two passes, one on each side, end the search
BESIDE = 0.45
HALVED_EVERY = 3  # passes: against a bracket of which one end stands still


@dataclass(frozen=True, kw_only=True)
class CriticalSharpness:
    """2/η_c, with η_c the smallest learning rate at which a step raises the loss.

    Attributes:
        value: λ_c = 2/η_c. Its interval is the bracket of the search, and no sampling error.
        learning_rate: η_c, with the same bracket.
        num_passes: forward passes over the examples.
        reason: why there is no value; empty where there is one.
    """

    value: Estimate
    learning_rate: Estimate
    num_passes: int
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON."""
        return {
            "value": self.value.to_dict(),
            "learning_rate": self.learning_rate.to_dict(),
            "num_passes": self.num_passes,
            "reason": self.reason or None,
        }


def critical_sharpness(
    objective: Objective,
    update: Tensor | None = None,
    *,
    start: float | None = None,
    rtol: float = 0.02,
    max_passes: int = MOST_PASSES,
) -> CriticalSharpness:
    """2/η_c, η_c the smallest η > 0 with L(θ − ηΔ) > L(θ) along an update Δ.

    As Kalra et al. 2026, arXiv 2601.16979, define it. Of a quadratic loss it is ΔᵀHΔ/Δᵀg, which
    along the gradient is the curvature gᵀHg/|g|². The search goes by h(η) = (L(θ − ηΔ) − L(θ))/η,
    which begins at −Δᵀg and is a straight line on a quadratic, so that about four passes find η_c
    to 2 %, where doubling and halving take six to 6 %. What lies between the rates that were tried
    is not seen: a loss that rises and falls again there may have an earlier η_c.

    It is that of these examples' mean loss, as if they were the batch of the step: with few of them
    the gradient fits their own noise, and their loss falls further along it than that of others.

    Args:
        objective: the loss, its examples and the point θ.
        update: Δ (P,), as `next_update` gives it; None: the gradient.
        start: the first learning rate that is tried, such as the one in use; None: L/Δᵀg, at which
            a loss without curvature would be zero.
        rtol: the width of the bracket to reach, in units of η_c.
        max_passes: forward passes at most.

    Returns:
        λ_c and η_c; a bound where the loss still fell at the last rate tried; undefined, with the
        reason, where the update does not point downhill or the loss's rounding hides its fall.

    Raises:
        SettingError: a start, tolerance or number of passes out of range, or an update of another
            length.
        MeasurementError: the loss cannot be computed.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, Objective, critical_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> critical_sharpness(Objective(problem)).num_passes <= 10
        True
    """
    _check(start, rtol, max_passes)
    objective.check_any_company()
    loss, gradient = objective.value_and_gradient()
    gradient = gradient.double()
    along = gradient if update is None else update.detach().to(gradient)
    if along.shape != gradient.shape:
        raise SettingError(
            f"an update of shape {tuple(along.shape)}: give ({objective.dim},), as the point"
        )
    descent = float(gradient @ along)  # −dL/dη at 0
    if not descent > 0:
        return _without("the update does not point downhill: any step along it raises the loss")
    point = objective.point.double()
    # what the rounding of the losses, and of the parameters, leaves open of a change of the loss
    rounding = torch.finfo(objective.coarsest_dtype).eps * (
        abs(loss) + float((gradient * point).norm())
    )

    def change(rate: float) -> float:
        return _mean_loss(objective, point - rate * along) - loss

    bracket = _Bracket(slope=-descent, rtol=rtol)
    bracket.search(change, start or max(abs(loss), rounding) / descent, max_passes)
    return _result(bracket, rounding / descent, objective.num_examples)


def _check(start: float | None, rtol: float, max_passes: int) -> None:
    if start is not None and not (is_real(start) and 0 < start < math.inf):
        raise SettingError(f"start {start!r}: give a learning rate above 0, or None")
    if not 0 < rtol < 1:
        raise SettingError(f"rtol {rtol!r}: give a number between 0 and 1, such as 0.02")
    if max_passes < 1:
        raise SettingError(f"max passes {max_passes!r}: give 1 or more")


def _mean_loss(objective: Objective, point: Tensor) -> float:
    """L at another point, by a forward pass alone."""
    params = objective.params(point)
    total = 0.0

    def add(chunk: Examples, start: int) -> None:
        nonlocal total
        with torch.no_grad():
            total += float(objective.example_losses(params, chunk).double().sum())

    objective.for_each_chunk(add)
    return total / objective.num_examples


class _Bracket:
    """Rates between which the loss comes back to where it was, with h(η) at both.

    slope: h(0), below zero. rtol: of the width to reach.
    """

    def __init__(self, *, slope: float, rtol: float) -> None:
        self.slope = slope
        self.rtol = rtol
        self.low, self.at_low = 0.0, slope
        self.high, self.at_high = math.inf, math.nan
        self.num_passes = 0

    @property
    def is_narrow(self) -> bool:
        return self.high - self.low <= self.rtol * self.high < math.inf

    def search(self, change: Callable[[float], float], start: float, max_passes: int) -> None:
        rate = start
        while self.num_passes < max_passes and not self.is_narrow:
            mean_slope = change(rate) / rate
            self.num_passes += 1
            if mean_slope < 0:
                self.low, self.at_low = rate, mean_slope
            else:  # nan too
                self.high, self.at_high = rate, mean_slope
            rate = self._next()

    def _next(self) -> float:
        if math.isinf(self.high):
            beyond = self.root * (1 + BESIDE * self.rtol)
            least = 1 + self.rtol if self.num_passes == 1 else 2.0
            return min(max(beyond, least * self.low), GROWTH * self.low)
        if not math.isfinite(self.at_high):
            return math.sqrt(max(self.low, self.high / SHRINKAGE**2) * self.high)
        if self.num_passes % HALVED_EVERY == 0 and not self.is_narrow:
            wide = self.low > 0 and self.high > 4 * self.low
            middle = math.sqrt(self.low * self.high) if wide else (self.low + self.high) / 2
            if self.high - self.low > 4 * self.rtol * self.high:
                return middle
        root = self.root
        beside = BESIDE * self.rtol * root
        towards = beside if root - self.low < self.high - root else -beside
        rate = root + towards
        return rate if self.low < rate < self.high else (self.low + self.high) / 2

    @property
    def root(self) -> float:
        """Where h would be zero if it were a straight line between both ends, or from 0 on."""
        if math.isfinite(self.at_high):
            share = self.at_low / (self.at_low - self.at_high)
            return self.low + share * (self.high - self.low)
        if self.at_low > self.slope:
            return self.low * self.slope / (self.slope - self.at_low)
        return math.inf


def _result(bracket: _Bracket, unresolved: float, num_examples: int) -> CriticalSharpness:
    """The critical sharpness in a bracket; unresolved: the rate within which rounding decides."""
    passes = bracket.num_passes
    if not math.isfinite(bracket.at_high):
        if math.isinf(bracket.high):
            what = "the loss still falls at the largest learning rate that was tried"
        else:
            what = "the loss falls, and then is not finite: where it rises was not found"
        rate, inverse = (
            Estimate(value=math.nan, stderr=math.nan, low=low, high=high, num_samples=num_examples)
            for low, high in (
                (bracket.low, bracket.high),
                (2 / bracket.high, 2 / bracket.low if bracket.low else math.inf),
            )
        )
        return CriticalSharpness(value=inverse, learning_rate=rate, num_passes=passes, reason=what)
    low = min(bracket.low, bracket.root - unresolved)
    high = max(bracket.high, bracket.root + unresolved)
    if not low > 0:
        return _without("the loss changes along the update by no more than its rounding", passes)
    return CriticalSharpness(
        value=Estimate.from_interval(
            2 / bracket.root, 2 / high, 2 / low, num_samples=num_examples, scale="linear"
        ),
        learning_rate=Estimate.from_interval(
            bracket.root, low, high, num_samples=num_examples, scale="linear"
        ),
        num_passes=passes,
    )


def _without(reason: str, num_passes: int = 0) -> CriticalSharpness:
    nothing = undefined(num_samples=0)
    return CriticalSharpness(
        value=nothing, learning_rate=nothing, num_passes=num_passes, reason=reason
    )
