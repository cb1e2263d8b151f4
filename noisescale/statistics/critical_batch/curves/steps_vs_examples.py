"""Steps against examples: what a run whose noise scale is known would take at other batch sizes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tradeoff:
    """What one course of training takes in steps S and in examples E, by its batch size.

    McCandlish et al. 2018 (arXiv 1812.06162), (2.11), (2.12) and appendix D. It assumes the
    learning rate that is best for each batch size and a course that does not depend on it. s counts
    noiseless updates; one at batch size B makes 1/(1 + 𝓑/B) of such a step, where 𝓑 is the noise
    scale at the time.

    Attributes:
        min_steps: S_min = ∫ds, updates with the noiseless gradient.
        min_examples: E_min = ∫𝓑 ds, examples one at a time.
        root: R = ∫√𝓑 ds.

    Examples:
        >>> from noisescale import Tradeoff
        >>> course = Tradeoff().after(20.0, batch_size=32, steps=100)  # a noise scale of 20
        >>> course = course.after(200.0, batch_size=32, steps=300)
        >>> round(course.critical_batch_size)
        92
        >>> [round(ratio, 2) for ratio in course.fixed(64)]  # S/S_min and E/E_min
        [2.44, 1.69]
    """

    min_steps: float = 0.0
    min_examples: float = 0.0
    root: float = 0.0

    def after(self, noise_scale: float, *, batch_size: float, steps: float = 1.0) -> Tradeoff:
        """The course after more updates.

        Args:
            noise_scale: 𝓑 during them, in examples; infinite where the noise is all there is, so
                that they take examples and make no noiseless step.
            batch_size: B, in examples.
            steps: the number of updates.

        Returns:
            The longer course.
        """
        progress = steps / (1 + noise_scale / batch_size)
        examples = batch_size * (steps - progress)  # 𝓑·progress
        return Tradeoff(
            min_steps=self.min_steps + progress,
            min_examples=self.min_examples + examples,
            root=self.root + math.sqrt(progress * examples),
        )

    @property
    def critical_batch_size(self) -> float:
        """B_crit = E_min/S_min, at which a fixed batch size takes twice the least of both.

        It is 𝓑 averaged over the progress made; infinite where none was.
        """
        return self.min_examples / self.min_steps if self.min_steps > 0 else math.inf

    @property
    def gain(self) -> float:
        """γ = R²/(S_min E_min), at most 1; 1 where the noise scale does not change.

        nan where there was no progress, or no noise. (S/S_min − 1)(E/E_min − 1) is 1 at a fixed
        batch size and γ where B = √(r𝓑).
        """
        return _quotient(self.root**2, self.min_steps * self.min_examples)

    def fixed(self, batch_size: float) -> tuple[float, float]:
        """S/S_min and E/E_min at a fixed batch size.

        Args:
            batch_size: B, in examples.

        Returns:
            The two ratios.
        """
        critical = self.critical_batch_size
        return 1 + critical / batch_size, 1 + _quotient(batch_size, critical)

    def adaptive(self, exchange_rate: float) -> tuple[float, float]:
        """S/S_min and E/E_min where the batch size follows the noise, B = √(r𝓑).

        Args:
            exchange_rate: r, the examples that a step is worth.

        Returns:
            The two ratios.
        """
        root = math.sqrt(exchange_rate)
        return (
            1 + _quotient(self.root, root * self.min_steps),
            1 + _quotient(root * self.root, self.min_examples),
        )

    def steps_saved(self, exchange_rate: float) -> float:
        """The share of steps that B = √(r𝓑) saves against a fixed batch size of as many examples.

        Args:
            exchange_rate: r, the examples that a step is worth.

        Returns:
            1 − S/S_fixed.
        """
        excess = _quotient(math.sqrt(exchange_rate) * self.root, self.min_examples)  # E/E_min − 1
        return 1 - self.adaptive(exchange_rate)[0] / (1 + _quotient(1, excess))


def _quotient(top: float, bottom: float) -> float:
    """Infinite over 0, and nan of 0 over 0."""
    if bottom == 0:
        return math.inf if top > 0 else math.nan
    return top / bottom
