"""A batch size for each aim, with the learning rate that goes with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from noisescale.statistics.critical_batch.advice.result import AimedSize
from noisescale.statistics.critical_batch.advice.words import number_text, two_digits
from noisescale.statistics.critical_batch.learning_rate_law import LearningRateLaw
from noisescale.statistics.critical_batch.recommendation import AIMS, size_for
from noisescale.statistics.estimate import Estimate

NEAR = 4.0  # times a batch size at which there was a run: beyond, its sizes are extrapolated to
FOLD = 3.0  # between two values of B_crit, from which on a choice between them matters


def aimed_sizes(
    critical: Estimate,
    *,
    population_size: int | None,
    rate: Callable[[int], float] | None,
    measured_at: Sequence[float] = (),
    beta2: Callable[[int], float | None] | None = None,
    weight_decay: Callable[[int], float | None] | None = None,
) -> tuple[AimedSize, ...]:
    """A tenth of B_crit, B_crit and ten times it, with the ends that its interval gives them.

    Args:
        critical: B_crit.
        population_size: the training examples, which no batch can exceed; None: not known.
        rate: the learning rate at a batch size; None: not known.
        measured_at: the batch sizes at which there were runs.
        beta2: the β₂ that goes with a batch size; None: not known, or there is none.
        weight_decay: the weight decay that goes with it, likewise.
    """
    largest = population_size or math.inf
    sizes = []
    for aim in AIMS:
        size, low, high = (
            size_for(aim, end, largest=largest)
            for end in (critical.value, critical.low, critical.high)
        )
        assert size is not None
        sizes.append(
            AimedSize(
                aim=aim,
                batch_size=size,
                low=min(low or 1, size),
                high=None if high is None else max(high, size),
                learning_rate=None if rate is None else two_digits(rate(size)),
                worth=_worth(size, measured_at, largest=largest),
                beta2=None if beta2 is None else _near_one(beta2(size)),
                weight_decay=None if weight_decay is None else _rounded(weight_decay(size)),
                exact=critical.low == critical.high,
            )
        )
    return tuple(sizes)


def _near_one(value: float | None) -> float | None:
    """A number below 1 with two digits of what is lacking, which is what counts of a decay."""
    return None if value is None else float(f"{1 - two_digits(1 - value):.12g}")


def _rounded(value: float | None) -> float | None:
    return None if value is None else two_digits(value)


def _worth(size: int, measured_at: Sequence[float], *, largest: float) -> str:
    """Whether runs were made near a batch size, or how far it lies from those that were."""
    if size >= largest:
        return "bound: all examples"
    if size == 1:
        return "bound: one example"
    if not measured_at:
        return ""
    far = min(max(size / near, near / size) for near in measured_at)
    return "measured near it" if far <= NEAR else f"extrapolated ×{number_text(far)}"


def rate_law(
    optimizer: str, *, batch_size: int, learning_rate: float, critical: float
) -> LearningRateLaw:
    """The law ε(B) through the one learning rate that is known.

    For SGD, with momentum or without, ε ∝ 1/(1 + B_crit/B) (McCandlish et al. 2018, 2.6, with
    B_crit for B_noise, as whose average it stands); for Adam and AdamW ε ∝ √B (Krizhevsky 2014;
    Malladi et al. 2022).

    Args:
        optimizer: "sgd", "adam" or "adamw".
        batch_size: at which the rate is known.
        learning_rate: there.
        critical: B_crit.
    """
    by_noise = optimizer == "sgd"
    law = LearningRateLaw(
        name="noise" if by_noise else "sqrt",
        scale=1.0,
        bend=critical if by_noise else math.nan,
        power=math.nan if by_noise else 0.5,
        batch_size=None,
        held_out_error=math.nan,
    )
    return replace(law, scale=learning_rate / law.rate(batch_size))


def rate_between(
    batch_sizes: list[float], rates: list[float], law: LearningRateLaw | None
) -> Callable[[int], float]:
    """The learning rate at a batch size from the best ones measured at others.

    Between two of them the straight line in logs; beyond their ends the law that follows them best,
    through the nearest; without a law, the nearest.

    Args:
        batch_sizes: ascending (n,), one or more.
        rates: the best learning rate at each (n,).
        law: of the best rates; None: none could be fitted.
    """

    def rate(size: int) -> float:
        log_rate = np.interp(math.log(size), np.log(batch_sizes), np.log(rates))
        nearest = min(max(float(size), batch_sizes[0]), batch_sizes[-1])
        beyond = 1.0 if law is None else law.rate(size) / law.rate(nearest)
        return math.exp(float(log_rate)) * beyond

    return rate


def differ(one: Estimate, other: Estimate) -> bool:
    """Whether two values of B_crit lead to different choices: apart, and by more than a little.

    Args:
        one: with its interval.
        other: with its own.
    """
    if not (one.value > 0 and other.value > 0):
        return False
    apart = max(one.value / other.value, other.value / one.value)
    overlap = one.low <= other.high and other.low <= one.high
    return apart > FOLD or (not overlap and apart > math.sqrt(FOLD))
