"""Numbers of batch sizes in words."""

from __future__ import annotations

import math

from noisescale.statistics.estimate import Estimate


def number_text(value: float) -> str:
    """Two significant digits, all of them from a hundred on, without an exponent.

    Args:
        value: to be printed.
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.2g}'):g}"


def interval_text(estimate: Estimate) -> str:
    """The interval of a batch size in two digits: "20 or more" where it is open, "exact".

    Args:
        estimate: the batch size.
    """
    if estimate.low == estimate.high:
        return "exact"
    low, high = (number_text(two_digits(end)) for end in (estimate.low, estimate.high))
    return f"{low} or more" if math.isinf(estimate.high) else f"{low}–{high}"


def factor_text(value: float) -> str:
    """A factor in two digits; three where two would be 1.

    Args:
        value: to be printed.
    """
    return f"{value:,.0f}" if value >= 100 else f"{float(f'{value:.{3 if value < 1.1 else 2}g}'):g}"


def in_use_text(batch_size: int, critical: Estimate) -> str:
    """What a batch size takes beside the least of both: 1 + B/B_crit and 1 + B_crit/B.

    Args:
        batch_size: in use.
        critical: B_crit.
    """
    examples = 1 + batch_size / critical.value
    fewest, most = (1 + batch_size / end for end in (critical.high, critical.low or math.nan))
    steps = 1 + critical.value / batch_size
    interval = f"{factor_text(fewest)}–{factor_text(most)}"
    if math.isnan(most):
        interval = f"{factor_text(fewest)} or more"
    within = "" if critical.low == critical.high else f" ({interval})"
    return (
        f"You use {batch_size:,}: {factor_text(examples)} times the least examples{within}, "
        f"{factor_text(steps)} times the steps."
    )


def two_digits(value: float) -> float:
    """The number to two significant digits.

    Args:
        value: to be rounded.
    """
    return float(f"{value:.2g}")
