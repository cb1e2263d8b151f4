"""What a batch size makes of a noise scale: the norm test, and signal to noise."""

from __future__ import annotations

from typing import NamedTuple

from noisescale.errors import SettingError, is_real
from noisescale.statistics.estimate import Estimate
from noisescale.statistics.gradient_noise.result import GradientNoise, NoiseScale


class NormTest(NamedTuple):
    """Whether a batch's mean gradient points the right way often enough, and what it would take.

    Attributes:
        batch_size: B, in examples.
        theta: θ, the relative error that the test allows.
        squared_error: tr Σ/(B|G|²) = B_simple/B, the expected squared error of the batch's
            gradient over |G|², which the test compares with θ².
        signal_to_noise: its inverse, B/B_simple; with B = 1 that of an example's gradient.
        least_batch_size: B_simple/θ², from which on the test holds.
        holds: whether it does at B; None where the interval leaves it open.
    """

    batch_size: float
    theta: float
    squared_error: Estimate
    signal_to_noise: Estimate
    least_batch_size: Estimate
    holds: bool | None


def norm_test(
    noise: GradientNoise | NoiseScale, *, batch_size: float, theta: float = 1.0
) -> NormTest:
    """The norm test tr Σ/B ≤ θ²|G|² of a batch size B, with its error.

    Byrd, Chin, Nocedal and Wu 2012, equation 3.3, of adaptive batch sizes; on expectations, and so
    of no one batch. It is B_simple in other words: all three numbers are multiples of it or of its
    inverse, with its interval.

    Args:
        noise: of `measure_noise` or of a monitor.
        batch_size: B, in examples.
        theta: θ; 1 lets the noise be as large as the gradient, 0.5 half of it.

    Returns:
        The test; where B_simple is unresolved, its numbers are bounds as B_simple is.

    Raises:
        SettingError: a batch size or a θ that is not positive.

    Examples:
        >>> from noisescale import RunningNoise, norm_test, two_batch
        >>> running = RunningNoise()
        >>> for small, big in [(9.1, 5.2), (8.7, 4.9), (9.4, 5.0), (8.9, 5.1)]:  # |g_b|², |g_B|²
        ...     running.add(*two_batch(small, 8, big, 32), num_examples=32)
        >>> test = norm_test(running.noise, batch_size=32)
        >>> f"{test.squared_error:.2f}", test.holds
        ('0.36 ± 0.02 (0.30–0.42)', True)
    """
    for name, value in (("batch size", batch_size), ("theta", theta)):
        if not is_real(value) or not 0 < value < float("inf"):
            raise SettingError(f"{name} {value!r}: give a positive number")
    simple = noise.simple
    error = simple.scaled(1 / batch_size)
    holds = None
    if error.high <= theta**2:
        holds = True
    elif error.low > theta**2:
        holds = False
    return NormTest(
        batch_size=batch_size,
        theta=theta,
        squared_error=error,
        signal_to_noise=_inverse(error),
        least_batch_size=simple.scaled(1 / theta**2),
        holds=holds,
    )


def _inverse(estimate: Estimate) -> Estimate:
    """1/x of a positive estimate, the ends of its interval inverted; from 0 to infinity if open."""

    def inverse(value: float) -> float:
        return float("inf") if value <= 0 else 1 / value

    value = inverse(estimate.value)
    return Estimate(
        value=value,
        stderr=estimate.stderr * value**2,
        low=inverse(estimate.high),
        high=inverse(estimate.low),
        num_samples=estimate.num_samples,
    )
