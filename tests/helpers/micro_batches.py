"""What a trainer's noise must be: replayed from the micro-batches that its updates were made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from noisescale.statistics.gradient_noise import GradientNoise
from noisescale.statistics.running_noise import RunningNoise, two_batch

BATCH, STEPS = 2, 4  # examples in a micro-batch, micro-batches in an update
NAMES = ("squared_gradient_norm", "gradient_variance")

Part = tuple[Tensor, Tensor]  # inputs (b, 3) and targets (b, 1) of a micro-batch
Update = tuple[Tensor, list[Part]]  # the weight (1, 3), and the micro-batches at it


def data(count: int = 22) -> list[Part]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(3, generator=generator), 5 * torch.randn(1, generator=generator))
        for _ in range(count)
    ]


def mean_gradient(weight: Tensor, inputs: Tensor, targets: Tensor) -> np.ndarray:
    """Of (w·x − y)², in closed form."""
    return (2 * inputs * (inputs @ weight.T - targets)).mean(0).numpy()


def replayed(
    updates: Sequence[Update],
    weights: Callable[[list[Part]], np.ndarray] | None = None,
    *,
    adam: tuple[float, float] | None = None,
) -> GradientNoise:
    """The averages over updates, each the weight and the micro-batches it was made of.

    adam: β₂ and ε of the Adam that they were made with, under whose P norms are then taken.
    """
    running = RunningNoise()
    moments, scale = np.zeros(3), np.ones(3)
    for step, (weight, parts) in enumerate(updates):
        means = [mean_gradient(weight, *part) for part in parts]
        counts = np.array([len(part[0]) for part in parts])
        shares = np.full(len(parts), 1 / len(parts)) if weights is None else weights(parts)
        whole, size = shares @ means, 1 / (shares**2 / counts).sum()
        if adam is not None and step:
            beta, eps = adam
            scale = 1 / (np.sqrt(moments / (1 - beta**step)) + eps)
        if len(parts) > 1 and (adam is None or step):
            running.memory = running.memory or 100 * size
            small, big = scale @ means[0] ** 2, scale @ whole**2
            running.add(*two_batch(small, counts[0], big, size), num_examples=size)
        if adam is not None:
            moments = adam[0] * moments + (1 - adam[0]) * whole**2
    return running.noise


def assert_same(found: GradientNoise, expected: GradientNoise) -> None:
    for name in NAMES:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one.value, one.stderr) == pytest.approx((other.value, other.stderr), rel=1e-4)
