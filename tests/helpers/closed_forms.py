"""Moments, gradients and constants of stability in closed form or by dense matrices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn

from noisescale.statistics.stability.curves import StabilityConstants


def exact(gradients: np.ndarray) -> tuple[float, float]:
    """|G|² and tr Σ of fresh examples: the mean product of pairs, the covariance with 1/(n−1)."""
    pairs = [a @ b for a, b in itertools.permutations(gradients, 2)]
    return np.mean(pairs), np.trace(np.cov(gradients.T))


def regression(num_examples: int = 5) -> tuple[nn.Linear, Tensor, Tensor, np.ndarray]:
    """A linear model, its data, and the gradients (n, 3) of its squared errors, in closed form."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(num_examples, 3, generator=generator, dtype=torch.float64)
    targets = torch.randn(num_examples, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    weight = model.weight.detach().normal_(generator=generator)[0]
    return model, inputs, targets, (inputs * (inputs @ weight - targets)[:, None]).numpy()


def constants_of(curvatures: Tensor) -> StabilityConstants:
    """The constants of dense H_i (n, d, d)."""
    mean = curvatures.mean(0)
    values, vectors = torch.linalg.eigh(mean)
    along = torch.einsum("p,npq,q->n", vectors[:, -1], curvatures, vectors[:, -1])
    deviation = (curvatures @ curvatures).mean(0) - mean @ mean
    return StabilityConstants(
        sharpness=values[-1].item(),
        concentration=(along.square().mean() / values[-1] ** 2).item(),
        largest_example=torch.linalg.eigvalsh(curvatures)[:, -1].max().item(),
        trace=values.sum().item(),
        square_deviation=torch.linalg.eigvalsh(deviation)[-1].item(),
        best_rate=math.nan,
        noise_batch_size=math.nan,
        num_examples=len(curvatures),
    )
