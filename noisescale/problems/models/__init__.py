"""The studies' models and losses, and copies of any model."""

from noisescale.problems.models.copies import copy_of, rebind_closures
from noisescale.problems.models.ghost_norm import GhostBatchNorm, has_batch_norm
from noisescale.problems.models.gpt import GPT, gpt
from noisescale.problems.models.losses import (
    LOSSES,
    LossGradient,
    chance_loss,
    cross_entropy,
    gradient_of,
    sequence_cross_entropy,
    squared_error,
)
from noisescale.problems.models.networks import build_model, cnn, mlp

__all__ = [
    "GPT",
    "LOSSES",
    "GhostBatchNorm",
    "LossGradient",
    "build_model",
    "chance_loss",
    "cnn",
    "copy_of",
    "cross_entropy",
    "gpt",
    "gradient_of",
    "has_batch_norm",
    "mlp",
    "rebind_closures",
    "sequence_cross_entropy",
    "squared_error",
]
