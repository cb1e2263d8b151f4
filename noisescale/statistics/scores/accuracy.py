"""The accuracy of a classifier, from how many examples of a split it gets right."""

from __future__ import annotations

import math

from noisescale.errors import SettingError
from noisescale.statistics.estimate import Estimate, undefined

NORMAL_95 = 1.959963984540054  # standard deviations that hold 95 % of a normal distribution


def accuracy_estimate(num_correct: int, num_examples: int) -> Estimate:
    """The share of right answers, with Wilson's score interval (1927).

    The shares p with |p̂ − p| ≤ z √(p(1 − p)/n): it stays within 0 and 1, and has a length where
    all answers are right. It is of the split alone, as a sample of examples like these: how far
    another seed's model would score otherwise is no part of it.

    Args:
        num_correct: k, of examples whose largest output is that of their class.
        num_examples: n.

    Returns:
        k/n; the stderr is of a normal interval as long. Undefined for no examples.

    Raises:
        SettingError: more right answers than examples, or fewer than none.

    Examples:
        >>> from noisescale import accuracy_estimate
        >>> accuracy_estimate(1940, 2000)
        Estimate(0.9700 ± 0.0038 (0.9616–0.9766))
    """
    if not 0 <= num_correct <= max(num_examples, 0):
        raise SettingError(
            f"{num_correct} right answers of {num_examples}: give 0 to {max(num_examples, 0)}"
        )
    if num_examples < 1:
        return undefined(num_samples=0)
    share = num_correct / num_examples
    z, n = NORMAL_95, num_examples
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Estimate.from_interval(
        share,
        min(middle - half, share),  # at 0 and 1 rounding would leave the value outside
        max(middle + half, share),
        num_samples=n,
        widths=2 * z,
        scale="linear",
    )
