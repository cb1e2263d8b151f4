"""The learning rate at each update: a warm-up, then a constant, a cosine or a late decay."""

from __future__ import annotations

import math

from noisescale.errors import SettingError
from noisescale.training.config import TrainConfig


def num_updates(config: TrainConfig, *, batch_size: int, num_examples: int) -> int:
    """How many updates a run makes, unless it diverges.

    Args:
        config: its epochs and max_steps.
        batch_size: examples per update.
        num_examples: in the training set, of which an epoch's last batch takes what is left.
    """
    updates = config.epochs * math.ceil(num_examples / batch_size)
    return updates if config.max_steps is None else min(updates, config.max_steps)


def warmup_updates(config: TrainConfig, *, num_steps: int) -> int:
    """The updates of the warm-up.

    Args:
        config: its warmup, in updates or as a share of them.
        num_steps: of the run.

    Raises:
        SettingError: as many as the run has, or more.
    """
    if config.warmup < 1:
        return min(round(config.warmup * num_steps), num_steps - 1)
    if config.warmup >= num_steps:
        raise SettingError(
            f"warm-up {config.warmup:g}: the run has {num_steps:,} updates; give fewer, or a share "
            "of them such as 0.05"
        )
    return int(config.warmup)


def rate_at(config: TrainConfig, step: int, *, num_steps: int) -> float:
    """The learning rate of the update that follows `step` others; at the end, of the last one.

    With w updates of warm-up, the n-th of them has n/w of the rate. After it, x being the share of
    the decay that lies behind: (1 + cos πx)/2 of it ("cosine", which decays from there on) or 1 − x
    ("wsd", in the last `decay_share` of all updates). No update has a rate of zero.

    Args:
        config: the rate and its course.
        step: updates made.
        num_steps: of the run.

    Raises:
        SettingError: a warm-up as long as the run, or longer.
    """
    step = min(step, num_steps - 1)
    warmup = warmup_updates(config, num_steps=num_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.lr_schedule == "cosine":
        done = (step - warmup) / (num_steps - warmup)
        return config.learning_rate * (1 + math.cos(math.pi * done)) / 2
    if config.lr_schedule == "wsd":
        decay = min(round(config.decay_share * num_steps), num_steps - warmup)
        done = (step - (num_steps - decay)) / max(decay, 1)
        return config.learning_rate * (1 - max(done, 0.0))
    return config.learning_rate
