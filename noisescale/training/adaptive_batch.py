"""A batch size that follows the noise scale of the gradients it is training with."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor, nn

from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.statistics.critical_batch.steps_vs_examples import Tradeoff
from noisescale.statistics.gradient_noise import GradientNoise
from noisescale.training.config import AdaptiveConfig, TrainConfig

FIRST_PART = 4  # the small batch is a fourth of the whole
LEAST_UPDATES = 10  # before the first change
LARGEST_BATCH = 4096  # unless it is said


class AdaptiveBatchSize:
    """B = √(r·B_simple) with smoothing, hysteresis and bounds, and the learning rate that goes with it.

    Two norms per update, from the first fourth of each batch and all of it, give the running B_simple of a
    NoiseScaleMonitor. The batch size changes where √(r·B_simple) has left the present one by the factor
    `hysteresis`; where |G|² is not resolved, the lower bound of B_simple may raise it, and nothing lowers
    it; where tr Σ comes out below zero, nothing changes it.

    config: of its adaptive settings `exchange_rate` is r, the examples worth a step; `min_batch_size` to `max_batch_size`;
        `noise_memory`, in examples. num_examples: of the training set. `learning_rate` is that of the
        initial batch size B_0, from which the rate goes by `lr_scaling`: none; √(B/B_0); B/B_0; or by the
        noise, (1 + 𝓑_0/B_0)/(1 + 𝓑/B) with B_simple for 𝓑, and for 𝓑_0 its first resolved value, uncertain
        as it is. The rate changes with the batch size alone, so not at its bounds.

    McCandlish et al. 2018 (arXiv 1812.06162), appendix D, with B_simple in the place of B_noise.
    """

    def __init__(self, config: TrainConfig, parameters: nn.Module, *, num_examples: int) -> None:
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

    def parts(self, indices: Tensor, *, largest: int) -> list[Tensor]:
        """The batch's indices (B,) as the small batch and the rest, in pieces of at most `largest`."""
        first = min(max(1, len(indices) // FIRST_PART), largest)
        rest = indices[first:]
        return [indices[:first], *(rest.split(largest) if len(rest) else ())]

    @property
    def noise(self) -> GradientNoise | None:
        """The running estimates; None before there are any."""
        return self.monitor.noise() if self.monitor.num_updates else None

    def update(self, step: int) -> None:
        """To be called with the gradient of update number `step` in place; sets batch size and rate."""
        used = sum(self.monitor.pending)
        self.monitor.update()
        noise = self.noise
        if noise is None:
            return
        scale = noise.simple.value if noise.resolved else math.nan
        if scale > 0:
            self.tradeoff = self.tradeoff.after(scale, batch_size=used)
            self.num_resolved += 1
            self._first_scale = self._first_scale or scale
        if self.monitor.num_updates < LEAST_UPDATES:
            return
        wanted = self._wanted(noise)
        if 1 / self.settings.hysteresis < wanted / self.batch_size < self.settings.hysteresis:
            return
        self.batch_size = wanted
        self.learning_rate = self._rate(noise)
        self.changed_at_step = step

    def _wanted(self, noise: GradientNoise) -> int:
        """√(r·B_simple) within the bounds; what the lower bound alone says where it is larger than now."""
        settings = self.settings
        scale = noise.simple.value if noise.resolved else noise.simple.low
        if not scale > 0:  # unknown, or tr Σ below zero by chance
            return self.batch_size
        wanted = round(math.sqrt(settings.exchange_rate * scale))
        wanted = min(max(wanted, settings.min_batch_size), self.max_batch_size)
        return wanted if noise.resolved else max(wanted, self.batch_size)

    def _rate(self, noise: GradientNoise) -> float:
        rate, initial, scaling = (
            self.initial_rate,
            self.settings.initial_batch_size,
            self.settings.lr_scaling,
        )
        growth = self.batch_size / initial
        if scaling == "sqrt":
            return rate * math.sqrt(growth)
        if scaling == "linear":
            return rate * growth
        if scaling == "noise":
            scale = noise.simple.value if noise.resolved else noise.simple.low
            first = self._first_scale or scale
            return rate * (1 + first / initial) / (1 + scale / self.batch_size)
        return rate

    def summary(self, steps: int) -> dict[str, Any]:
        """Where the batch size ended, and what theory says of such a course: B_crit, γ, and the steps saved.

        From the updates, out of `steps`, at which the running B_simple, of fresh examples, was resolved:
        their share is with it.
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
        """Plain numbers, with which another goes on bit for bit."""
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
        self.monitor.load_state_dict(state["monitor"])
        self.batch_size = state["batch_size"]
        self.learning_rate = state["learning_rate"]
        self.changed_at_step = state["changed_at_step"]
        self.tradeoff = Tradeoff(**state["tradeoff"])
        self.num_resolved = state["num_resolved"]
        self._first_scale = state["first_scale"]
