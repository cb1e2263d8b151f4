"""A batch size that follows the noise scale of the gradients it is training with."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor, nn

from noisescale.statistics.critical_batch.curves.steps_vs_examples import Tradeoff
from noisescale.statistics.display import one_line
from noisescale.statistics.gradient_noise import GradientNoise
from noisescale.training.config import AdaptiveConfig, TrainConfig

# of the whole batch: where a part is small the two norms differ much, where it is large it is less
# noisy
SMALL_PART = 4
FEWEST_UPDATES = 10  # before the first change: fewer give B_simple to a factor of two at best
LARGEST_BATCH = 4096  # unless it is said
# standard error of the 𝓑_0 that all rates go by, relative: the first resolved value is uncertain to
# a factor of two and more where few directions carry the noise
FIRST_ERROR = 0.25


class AdaptiveBatchSize:
    """B = √(r·B_simple), smoothed and bounded, and the learning rate that goes with it.

    Two norms per update, from the first fourth of each batch and all of it, give the running
    B_simple of a NoiseScaleMonitor. The batch size changes where √(r·B_simple) has left the present
    one by the factor `hysteresis`; where |G|² is not resolved, the lower bound of B_simple may
    raise it, and nothing lowers it; where tr Σ comes out below zero, nothing changes it.

    The learning rate of the configuration is that of the initial batch size B_0. From there it
    goes, by `lr_scaling`, not at all; as √(B/B_0); as B/B_0; or by the noise as (1 + 𝓑_0/B_0)/(1 +
    𝓑/B), with B_simple for 𝓑, and for 𝓑_0 its first value that is known to a quarter; until there
    is one, its present value. It changes with the batch size alone, so not at its bounds.

    McCandlish et al. 2018 (arXiv 1812.06162), appendix D, with B_simple in the place of B_noise.

    Args:
        config: its learning rate and adaptive settings, see `AdaptiveConfig`.
        parameters: the model that is trained.
        num_examples: in the training set.
    """

    def __init__(self, config: TrainConfig, parameters: nn.Module, *, num_examples: int) -> None:
        # here, for few runs need it, and what it loads of torch takes the better part of a second
        from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor

        self.settings = settings = config.adaptive or AdaptiveConfig()
        self.max_batch_size = settings.max_batch_size or max(
            settings.initial_batch_size, min(num_examples, LARGEST_BATCH)
        )
        self.monitor = NoiseScaleMonitor(parameters, reduction="sum", memory=settings.noise_memory)
        self.batch_size = settings.initial_batch_size
        self.learning_rate = self.initial_rate = config.learning_rate
        self.changed_at_step = 0
        self.tradeoff = Tradeoff()  # over the updates at which B_simple was resolved
        self.num_resolved = 0
        self._first_scale: float | None = None  # 𝓑_0
        self._counts = True  # whether each part of the batch so far counts for something

    def __repr__(self) -> str:
        return one_line(
            self,
            f"batch size {self.batch_size:,} since step {self.changed_at_step:,}",
            f"learning rate {self.learning_rate:.4g}",
        )

    def parts(self, indices: Tensor, *, largest: int) -> list[Tensor]:
        """The batch as the small batch, whose norm is taken by itself, and the rest in pieces.

        Args:
            indices: of the batch's examples (B,).
            largest: examples in a piece at most, the small batch included.
        """
        first = min(max(1, len(indices) // SMALL_PART), largest)
        rest = indices[first:]
        return [indices[:first], *(rest.split(largest) if len(rest) else ())]

    def take(self, num_examples: int, *, weight: float | None) -> None:
        """Takes note of a part of the batch, after its backward pass.

        Args:
            num_examples: in it.
            weight: what its mean gradient counts for, such as its tokens; None: as many as the
                examples are. Of a batch with a part that counts nothing no norms are taken.
        """
        if weight == 0:
            self._counts = False
        elif self._counts:
            self.monitor.micro_batch(num_examples, weight=weight)

    @property
    def noise(self) -> GradientNoise | None:
        """The running estimates; None before there are any."""
        return self.monitor.noise() if self.monitor.num_updates else None

    def update(self, step: int) -> None:
        """Sets batch size and learning rate from the gradient of an update, which is in place.

        Args:
            step: the number of that update, from 1.
        """
        used = sum(self.monitor.pending)
        if not self._counts:
            self._counts = True
            self.monitor.discard()
            return
        self.monitor.update()
        noise = self.noise
        if noise is None:
            return
        scale = noise.simple.value if noise.resolved else math.nan  # B_simple
        if scale > 0:
            self.tradeoff = self.tradeoff.after(scale, batch_size=used)
            self.num_resolved += 1
        if self.monitor.num_updates < FEWEST_UPDATES:
            return
        if self._first_scale is None and scale > 0 and noise.simple.stderr < FIRST_ERROR * scale:
            self._first_scale = scale
        wanted = self._wanted(noise)
        if 1 / self.settings.hysteresis < wanted / self.batch_size < self.settings.hysteresis:
            return
        self.batch_size = wanted
        self.learning_rate = self._rate(noise)
        self.changed_at_step = step

    def _wanted(self, noise: GradientNoise) -> int:
        """√(r·B_simple) within the bounds; from its lower bound where that alone is larger."""
        settings = self.settings
        scale = _value_or_bound(noise)
        if not scale > 0:  # unknown, or tr Σ below zero by chance
            return self.batch_size
        wanted = round(math.sqrt(settings.exchange_rate * scale))
        wanted = min(max(wanted, settings.min_batch_size), self.max_batch_size)
        return wanted if noise.resolved else max(wanted, self.batch_size)

    def _rate(self, noise: GradientNoise) -> float:
        """The learning rate at the present batch size."""
        initial_size, scaling = self.settings.initial_batch_size, self.settings.lr_scaling
        growth = self.batch_size / initial_size
        if scaling == "sqrt":
            return self.initial_rate * math.sqrt(growth)
        if scaling == "linear":
            return self.initial_rate * growth
        if scaling == "noise":
            scale = _value_or_bound(noise)
            first_scale = self._first_scale or scale
            largest_rate = self.initial_rate * (1 + first_scale / initial_size)
            return largest_rate / (1 + scale / self.batch_size)
        return self.initial_rate

    def summary(self, steps: int) -> dict[str, Any]:
        """Where the batch size ended, and what theory predicts of its course.

        Args:
            steps: updates made.

        Returns:
            final_batch_size, and under "predicted" B_crit (critical_batch_size), γ (gain), the
            share of steps saved (steps_saved) and that of the updates which this follows from
            (resolved_share): those at which the running B_simple was resolved.
            None where there was none.
        """
        course, predicted = self.tradeoff, None
        if course.min_steps > 0:
            predicted = {
                "critical_batch_size": course.critical_batch_size,
                "gain": course.gain,
                "resolved_share": self.num_resolved / steps,
                "steps_saved": course.steps_saved(self.settings.exchange_rate),
            }
        return {"final_batch_size": self.batch_size, "predicted": predicted}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, from which another goes on bit for bit."""
        return {
            "monitor": self.monitor.state_dict(),
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "changed_at_step": self.changed_at_step,
            "tradeoff": dataclasses.asdict(self.tradeoff),
            "num_resolved": self.num_resolved,
            "first_scale": self._first_scale,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from where another was.

        Args:
            state: its `state_dict`.
        """
        self.monitor.load_state_dict(state["monitor"])
        self.batch_size = state["batch_size"]
        self.learning_rate = state["learning_rate"]
        self.changed_at_step = state["changed_at_step"]
        self.tradeoff = Tradeoff(**state["tradeoff"])
        self.num_resolved = state["num_resolved"]
        self._first_scale = state["first_scale"]


def _value_or_bound(noise: GradientNoise) -> float:
    """B_simple or, where it is not resolved, its lower bound; nan where there is none either."""
    return noise.simple.value if noise.resolved else noise.simple.low
