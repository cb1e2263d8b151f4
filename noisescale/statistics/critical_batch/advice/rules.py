"""What goes with a change of the batch size: learning rate, β₂ and weight decay."""

from __future__ import annotations

from dataclasses import dataclass

from noisescale.statistics.critical_batch.advice.result import Rule
from noisescale.statistics.critical_batch.advice.sizes import rate_law

ROOT = Rule(
    setting="learning rate",
    short="lr ∝ √B",
    text="the learning rate ∝ √B, up to B_crit",
    source="Malladi et al. 2022, arXiv 2205.10287",
)
HALF_LIFE = Rule(
    setting="β₂",
    short="β₂^(B'/B)",
    text="β₂ to the power of B'/B, so that its half-life in examples stays",
    source="Marek et al. 2025, arXiv 2507.07101",
)
MEMORY = Rule(
    setting="weight decay",
    short="decay",
    text="the weight decay ∝ √B, up to B_crit, with the rate: their product ∝ B, so that the "
    "weights' memory in examples stays",
    source="Wang and Aitchison 2024, arXiv 2405.13698",
)


@dataclass(frozen=True, kw_only=True)
class ScalingRules:
    """How a training is to be set at another batch size, from how it is set at its own.

    SGD: the law ε ∝ 1/(1 + B_crit/B) through the rate in use, see `rate_law`; nothing else.
    Adaptive optimizers: ε ∝ √B, as the stochastic differential equation of Adam has it while noise
    rules (Malladi et al. 2022), up to B_crit, beyond which a larger batch has little less noise;
    β₂' = β₂^(B'/B), so that the mean of squared gradients forgets after as many examples (Marek et
    al. 2025); and a decoupled weight decay λ grows as the rate does: ελ ∝ B, so that the weights
    forget after as many (Wang and Aitchison 2024).

    A larger batch has less noise, so that what trains at the one in use is stable at a larger one
    too; the curvature, which bounds the rate however large the batch is, no law here knows of. So
    no rate at a larger batch goes beyond the largest that is known to train.

    Attributes:
        optimizer: as TrainConfig names it.
        batch_size: in use.
        learning_rate: at that batch size.
        critical: B_crit.
        beta2: in use; None of an optimizer without one.
        weight_decay: in use.
        largest_rate: the largest learning rate at which runs at the batch size in use have trained;
            None: not known, and nothing bounds the law.
    """

    optimizer: str
    batch_size: int
    learning_rate: float
    critical: float
    beta2: float | None = None
    weight_decay: float = 0.0
    largest_rate: float | None = None

    @property
    def by_noise(self) -> bool:
        """Whether the rate follows the law of SGD, which is no rule of thumb."""
        return self.optimizer == "sgd"

    @property
    def decays(self) -> bool:
        """Whether there is a weight decay that is no part of the gradient."""
        return self.optimizer in ("adamw", "muon") and self.weight_decay > 0

    def rate_at(self, batch_size: int) -> float:
        """The learning rate.

        Args:
            batch_size: to be used.
        """
        rate = self._by_law(batch_size)
        return rate if self.largest_rate is None else min(rate, self.largest_rate)

    def is_bound_at(self, batch_size: int) -> bool:
        """Whether the law goes beyond the largest rate that is known to train.

        Args:
            batch_size: to be used.
        """
        return self.rate_at(batch_size) < self._by_law(batch_size)

    def _by_law(self, batch_size: int) -> float:
        if self.by_noise:
            law = rate_law(
                self.optimizer,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                critical=self.critical,
            )
            return law.rate(batch_size)
        ratio = min(batch_size, self.critical) / min(self.batch_size, self.critical)
        return float(self.learning_rate * ratio**0.5)

    def beta2_at(self, batch_size: int) -> float | None:
        """β₂; None where there is none.

        Args:
            batch_size: to be used.
        """
        if self.beta2 is None or self.by_noise:
            return None
        return float(self.beta2 ** (batch_size / self.batch_size))

    def weight_decay_at(self, batch_size: int) -> float | None:
        """The weight decay; None where there is none, or it is a part of the gradient.

        Args:
            batch_size: to be used.
        """
        if not self.decays:
            return None
        return self.weight_decay * self.rate_at(batch_size) / self.learning_rate

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Those that are followed; none of SGD."""
        if self.by_noise:
            return ()
        with_decay = (MEMORY,) if self.decays else ()
        return (ROOT, *((HALF_LIFE,) if self.beta2 is not None else ()), *with_decay)
