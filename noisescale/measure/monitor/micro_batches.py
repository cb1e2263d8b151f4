"""Two gradients out of an update's micro-batches, and how many examples either of them is worth."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from noisescale.errors import SettingError


def check_example_losses(losses: Tensor) -> None:
    """SettingError unless there is one loss per example, (B,)."""
    if losses.ndim != 1 or not len(losses):
        raise SettingError(
            f"losses of shape {tuple(losses.shape)}: give one loss per example, shape (B,), as "
            'reduction="none" leaves them'
        )


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

    @property
    def counts_for(self) -> float:
        """What it counts for where noise is told from signal.

        Its examples, and not its weight: tokens are the examples' own, so that few of them make a
        noisier mean gradient. The sum of its examples' gradients is that of so many examples,
        whatever tokens they have.
        """
        return 1.0 if self.alike else float(self.num_examples)


class ProcessNorms(Protocol):
    """Squared norms of the gradients of several processes and of their reduction.

    num_processes: that are reduced over.
    """

    num_processes: int

    @property
    def rounds(self) -> int:
        """Reductions since the last look."""

    def take(self, weight: float) -> Tensor:
        """This process's numbers (k,) to be summed over all; its own |.|² divided by its weight."""

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' values."""

    def squares(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """From the summed numbers (k,): Σ|.|²/weight and |.|² of the reduced gradient, (G,) each.

        The processes' gradients are those whose mean over processes the reduced one is.
        """

    def clear(self) -> None:
        """Forgets what was reduced since the last look."""


def nested(squares: Tensor, parts: list[MicroBatch]) -> tuple[Tensor, Tensor]:
    """Squared norms (2, G) of the first micro-batch's mean gradient and of all's, their sizes (2,).

    squares: of what was accumulated after the first and after the last (2, G).
    """
    share = parts[0].counts_for / sum(part.counts_for for part in parts)
    sizes = torch.tensor([parts[0].num_examples, _size(parts)], dtype=torch.float64)
    first, last = squares
    return torch.stack([first / share**2, last]), sizes


def across(
    processes: ProcessNorms,
    parts: list[MicroBatch],
    *,
    scale: float,
    divided_by: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Squared norms (2, G) of a process's mean gradient, on average, and of all's; sizes (2,).

    With c_r what a process counts for and C their sum over n processes, its gradient before the
    reduction is n·c_r/C times its mean gradient, which counts c_r/C.

    parts: that count; none of them in a process whose gradient is 0, which takes part in the sums.
    """
    alike = bool(parts) and parts[0].alike
    count = 1.0 if alike or not parts else sum(part.counts_for for part in parts)
    own = processes.take(count)  # (k,)
    shares = [0.0, 0.0, 0.0, 0.0]
    if parts:
        size = _size(parts)
        shares = [count, count / size, count**2 / size, sum(part.weight for part in parts)]
    # filled in, and not copied to a GPU, which would be waited for
    filled = [own.new_full((1,), share + 0 * scale) for share in shares]
    sums = processes.sum(torch.cat([own, *filled]))
    whole, over_sizes, squares_over_sizes, weights = sums[-4:]
    local, reduced = processes.squares(sums[:-4])
    small = local * whole / processes.num_processes**2
    sizes = torch.stack([whole / over_sizes, whole**2 / squares_over_sizes])
    factor = torch.ones_like(whole)
    if divided_by is not None:  # by itself a process counts 1 where all count alike
        own_weight = float(len(parts)) if alike else weights / processes.num_processes
        factor = divided_by / (factor * own_weight)
    return torch.stack([small, reduced]) * (factor / scale) ** 2, sizes


def _size(parts: list[MicroBatch]) -> float:
    """The number of examples that the weighted mean of the parts' mean gradients is worth."""
    return sum(part.counts_for for part in parts) ** 2 / sum(
        part.counts_for**2 / part.num_examples for part in parts
    )
