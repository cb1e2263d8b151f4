"""Two gradients out of an update's micro-batches, and how many examples either of them is worth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from noisescale.measure.monitor.ddp_norms import ReplicaNorms


class MicroBatch(NamedTuple):
    """What an update's micro-batch counts for.

    num_examples: in it. weight: of its mean gradient beside the others'. scale: a further factor in
    the gradient, as of mixed precision. alike: whether micro-batches count alike, and so processes
    too, however many of them they have.
    """

    num_examples: int
    weight: float
    scale: float
    alike: bool


def nested(squares: Tensor, parts: list[MicroBatch]) -> tuple[Tensor, Tensor]:
    """Squared norms (2,) of the first micro-batch's mean gradient and of all's, their sizes (2,).

    squares: of what was accumulated after the first and after the last (2,).
    """
    share = parts[0].weight / sum(part.weight for part in parts)
    sizes = torch.tensor([parts[0].num_examples, _size(parts)], dtype=torch.float64)
    return squares / squares.new_tensor([share**2, 1.0]), sizes


def across(
    replicas: ReplicaNorms, parts: list[MicroBatch], *, factor: float
) -> tuple[Tensor, Tensor]:
    """Squared norms (2,) of a process's mean gradient, on average, and of all's, their sizes (2,).

    With w_r a process's weight and W their sum over n processes, its gradient before the reduction
    is n·w_r/W times its mean gradient, which counts w_r/W.
    """
    weight = 1.0 if parts[0].alike else sum(part.weight for part in parts)
    size = _size(parts)
    local, reduced = replicas.take()
    shares = [1 / weight, weight, weight / size, weight**2 / size]
    num_processes, sums = replicas.sum(
        torch.cat([local.new_tensor(shares[:1]) * local, local.new_tensor(shares[1:])])
    )
    squares, whole, over_sizes, squares_over_sizes = sums
    small = squares * whole / num_processes**2
    sizes = torch.stack([whole / over_sizes, whole**2 / squares_over_sizes])
    return torch.stack([small, reduced]) * factor, sizes


def _size(parts: list[MicroBatch]) -> float:
    """The number of examples that the weighted mean of the parts' mean gradients is worth."""
    return sum(part.weight for part in parts) ** 2 / sum(
        part.weight**2 / part.num_examples for part in parts
    )
