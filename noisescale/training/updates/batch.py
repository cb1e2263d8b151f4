"""A batch that an update is made by, and what its examples add to the mean loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from noisescale.problems.problem import Examples
from noisescale.training.evaluation import check_losses


@dataclass(frozen=True)
class Share:
    """What some of a batch's examples add to its mean loss: called with their losses.

    size: how many they are. divisor: B, or the weights of the whole batch. counts: their weights
    (size,); None: one each.
    """

    size: int
    divisor: int | Tensor
    counts: Tensor | None = None

    def __call__(self, losses: Tensor) -> Tensor:
        """The sum () of the losses, divided; SettingError where they are others."""
        check_losses(losses, self.size)
        if self.counts is None:
            return losses.mean() if self.size == self.divisor else losses.sum() / self.divisor
        return (losses * self.of_each(losses)).sum()

    def of_each(self, like: Tensor) -> Tensor:
        """What each loss counts for in that sum, (size,), of this tensor's dtype and device."""
        if self.counts is None:
            return like.new_full((self.size,), 1 / float(self.divisor))
        return self.counts.to(like) / self.divisor

    @property
    def weight(self) -> float | None:
        """What their mean gradient counts for beside the others'; None: as they are many."""
        return None if self.counts is None else float(self.counts.sum())


@dataclass(frozen=True)
class Batch:
    """What one update is made by.

    losses: those of the examples (B,), called with the model, a copy of it or what stands in for
    one. share: their mean, which is minimised. examples: themselves.
    """

    losses: Callable[[Callable[..., Any]], Tensor]
    share: Share
    examples: Examples

    def mean(self, model: Callable[..., Any]) -> Tensor:
        """The loss () that is minimised."""
        return self.share(self.losses(model))
