"""|G|² and tr Σ from gradient norms at two batch sizes, and their averages along training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from noisescale.errors import LARGEST, SettingError, is_real
from noisescale.statistics.display import counted, one_line
from noisescale.statistics.estimate import from_stderr, ratio, student_t
from noisescale.statistics.gradient_noise import GradientNoise

LEAST_UPDATES = 1.5  # equally weighted ones, below which the spread says nothing


def two_batch(
    small_square: float, small_size: float, big_square: float, big_size: float
) -> tuple[float, float]:
    """|G|² and tr Σ from the squared norms of mean gradients over b < B examples.

    |G|² = (B|g_B|² − b|g_b|²)/(B − b) and tr Σ = (|g_b|² − |g_B|²)/(1/b − 1/B), both unbiased, also
    where the small batch is a part of the big one; either may come out negative. McCandlish et al.
    2018 (arXiv 1812.06162), appendix A.1.

    Args:
        small_square: |g_b|².
        small_size: b. Of a weighted mean gradient Σ a_i g_i with Σ a_i = 1, the size is 1/Σ a_i².
        big_square: |g_B|².
        big_size: B.

    Returns:
        |G|² and tr Σ.

    Raises:
        SettingError: unless 0 < b < B.

    Examples:
        >>> from noisescale import two_batch
        >>> squared_norm, variance = two_batch(9.0, 8, 5.0, 32)
        >>> round(squared_norm, 2), round(variance, 2), round(variance / squared_norm, 1)
        (3.67, 42.67, 11.6)
    """
    if not 0 < small_size < big_size:
        raise SettingError(
            f"batches of {small_size:g} and {big_size:g} examples: give the smaller one first"
        )
    squared_norm = (big_size * big_square - small_size * small_square) / (big_size - small_size)
    variance = (small_square - big_square) / (1 / small_size - 1 / big_size)
    return squared_norm, variance


class RunningNoise:
    """|G|², tr Σ and B_simple of training batches, averaged over the latest updates of a run.

    The population is "training". With G_N and Σ of the N training examples, batches drawn from them
    without replacement give |G_N|² − tr Σ/N in place of |G|², Σ with 1/(N − 1), whether the small
    batch is a part of the big one or not. While no example has been used before, that is unbiased
    for the population "distribution", of fresh examples. Once the parameters were fitted to them,
    it is neither that nor the |G_N|² of the population "dataset", below which it lies by tr Σ/N:
    the difference matters where N is not large beside B_simple.

    Numerator and denominator are averaged separately and only then divided: the expectation of a
    mean of ratios need not even exist. Each update counts in proportion to its examples, and the
    average is over those seen, not over a start at zero.

    The standard error is that of a weighted mean of independent updates, from their spread, which
    contains what the quantities themselves moved meanwhile; degrees of freedom are those of
    (Σw)²/Σw² updates, and the interval of B_simple is Fieller's. It assumes that the deviations of
    updates are independent and nearly normal. Batches of one epoch, drawn without replacement, are
    slightly anti-correlated, which makes it too large; quantities that drift within the memory
    also make it too large, and are then those of no one moment; a few updates that hold most of the
    noise, as late in training, make it too small.

    Args:
        memory: examples after which an update's weight has fallen to 1/e; None: updates are never
            forgotten.

    Raises:
        SettingError: a memory that is no positive number.

    Examples:
        >>> from noisescale import RunningNoise, two_batch
        >>> running = RunningNoise()
        >>> for small, big in [(9.1, 5.2), (8.7, 4.9), (9.4, 5.0), (8.9, 5.1)]:  # |g_b|², |g_B|²
        ...     running.add(*two_batch(small, 8, big, 32), num_examples=32)
        >>> running.noise
        Gradient noise over 4 updates (population: training)
          B_simple = tr Σ/|G|²  11.38 ± 0.62 (9.54–13.48)
          |G|²                  3.725 ± 0.085 (3.453–3.997)
          tr Σ                  42.4 ± 1.5 (37.5–47.3)
    """

    def __init__(self, *, memory: float | None = None) -> None:
        if memory is not None and not (is_real(memory) and 0 < memory <= LARGEST):
            raise SettingError(f"memory {memory!r}: give a number of examples above 0, or None")
        self.memory = memory
        self.num_updates = 0
        self._weight = 0.0  # Σ w
        self._sums = np.zeros(2)  # Σ w x, x = (tr Σ, |G|²)
        self._squared_weight = 0.0  # Σ w²
        self._squared_sums = np.zeros(2)  # Σ w² x
        self._squares = np.zeros((2, 2))  # Σ w² x xᵀ

    def __repr__(self) -> str:
        memory = "" if self.memory is None else f"memory {self.memory:,.6g} examples"
        return one_line(self, counted(self.num_updates, "update"), memory)

    def add(self, squared_norm: float, variance: float, *, num_examples: float) -> None:
        """Takes in one update's estimates.

        Args:
            squared_norm: |G|² of the update, of either sign.
            variance: tr Σ.
            num_examples: that the update saw, its weight.

        Raises:
            SettingError: an estimate that is not finite, or a weight that is not above zero.
        """
        if not (is_real(num_examples) and 0 < num_examples <= LARGEST):
            raise SettingError(f"num examples {num_examples!r}: give a number above 0")
        x = np.array([variance, squared_norm])
        if not np.isfinite(x).all():
            raise SettingError(
                f"|G|² {squared_norm} and tr Σ {variance}: not finite; leave this update out"
            )
        kept = 1.0 if self.memory is None else math.exp(-num_examples / self.memory)
        self._weight = kept * self._weight + num_examples
        self._sums = kept * self._sums + num_examples * x
        self._squared_weight = kept**2 * self._squared_weight + num_examples**2
        self._squared_sums = kept**2 * self._squared_sums + num_examples**2 * x
        self._squares = kept**2 * self._squares + num_examples**2 * np.outer(x, x)
        self.num_updates += 1

    @property
    def noise(self) -> GradientNoise:
        """The averages with their errors, of as many samples as updates; one gives no error."""
        if self.num_updates == 0:
            raise SettingError("no update yet: there is nothing to average")
        mean = self._sums / self._weight
        variance, squared_norm = mean.tolist()
        # as many as there would be, were they equally weighted
        updates = self._weight**2 / self._squared_weight
        dof = updates - 1
        covariance = np.full((2, 2), math.nan)
        if updates >= LEAST_UPDATES:
            crossed = np.outer(mean, self._squared_sums)
            spread = (
                self._squares - crossed - crossed.T + np.outer(mean, mean) * self._squared_weight
            )
            covariance = spread / self._weight**2 * updates / dof
        # a negative variance is one of rounding alone
        stderr_variance, stderr_norm = np.sqrt(np.maximum(covariance.diagonal(), 0.0))
        samples = self.num_updates
        simple = ratio(variance, squared_norm, covariance, num_samples=samples, dof=dof)
        needed = None
        if math.isnan(simple.value) and stderr_norm > 0:
            t = student_t(dof)
            needed = math.ceil(
                self._weight * (t * stderr_norm / max(squared_norm, stderr_norm)) ** 2
            )
        return GradientNoise(
            squared_gradient_norm=from_stderr(
                squared_norm, stderr_norm, num_samples=samples, dof=dof
            ),
            gradient_variance=from_stderr(variance, stderr_variance, num_samples=samples, dof=dof),
            simple=simple,
            examples_to_resolve=needed,
            population="training",
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers: for JSON, or for torch.load with weights_only=True."""
        return {
            "memory": self.memory,
            "num_updates": self.num_updates,
            "weight": self._weight,
            "sums": self._sums.tolist(),
            "squared_weight": self._squared_weight,
            "squared_sums": self._squared_sums.tolist(),
            "squares": self._squares.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over another's averages, bit for bit.

        Args:
            state: what `state_dict` gave.

        Raises:
            SettingError: a state of something else; the averages stay as they were.
        """
        try:
            memory, num_updates = state["memory"], int(state["num_updates"])
            weights = float(state["weight"]), float(state["squared_weight"])
            sums = np.array([state["sums"], state["squared_sums"]], dtype=float).reshape(2, 2)
            squares = np.array(state["squares"], dtype=float).reshape(2, 2)
            RunningNoise(memory=memory)  # which checks it
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError(
                "a state of something else: give what state_dict() of a RunningNoise or a "
                f"NoiseScaleMonitor returned ({type(error).__name__}: {error})"
            ) from error
        self.memory, self.num_updates = memory, num_updates
        self._weight, self._squared_weight = weights
        self._sums, self._squared_sums = sums
        self._squares = squares
