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
    updates: Sequence[Update], weights: Callable[[list[Part]], np.ndarray] | None = None
) -> GradientNoise:
    """The averages over updates, each the weight and the micro-batches it was made of."""
    running = RunningNoise()
    for weight, parts in updates:
        means = [mean_gradient(weight, *part) for part in parts]
        counts = np.array([len(part[0]) for part in parts])
        shares = np.full(len(parts), 1 / len(parts)) if weights is None else weights(parts)
        whole, size = shares @ means, 1 / (shares**2 / counts).sum()
        if len(parts) > 1:
            running.memory = running.memory or 100 * size
            found = two_batch(means[0] @ means[0], counts[0], whole @ whole, size)
            running.add(*found, num_examples=size)
    return running.noise


def assert_same(found: GradientNoise, expected: GradientNoise) -> None:
    for name in NAMES:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one.value, one.stderr) == pytest.approx((other.value, other.stderr), rel=1e-4)
