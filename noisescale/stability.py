"""Predicted limits of stable training."""

from __future__ import annotations

from noisescale.config import TrainConfig


def stable_sharpness(config: TrainConfig) -> float | None:
    """The λ_max above which gradient descent with this rate leaves a minimum: 2(1+m)/η − weight decay.

    For η the learning rate and m the heavy-ball momentum of SGD (Cohen et al. 2021, arXiv 2103.00065); the
    weight decay adds itself to every eigenvalue of the loss's Hessian. A statement about full batches. None
    for Adam and AdamW, whose preconditioner the Hessian's eigenvalues leave out, and where the weight decay
    alone is beyond the limit.
    """
    limit = 2 * (1 + config.momentum) / config.learning_rate - config.weight_decay
    return limit if config.optimizer == "sgd" and limit > 0 else None


def side_of(limit: float, *, low: float, high: float) -> str:
    """Whether an interval lies "below", "at" or "above" a limit."""
    if high < limit:
        return "below"
    return "above" if low > limit else "at"
