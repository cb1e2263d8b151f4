"""What each example counts for in a mean."""

from __future__ import annotations

import torch
from torch import Tensor

from noisescale.errors import SettingError
from noisescale.problems.problem import (
    Examples,
    Source,
    Tree,
    WeightFn,
    check_weights,
    weights_of,
)

WEIGHED = 4096  # examples whose targets are read at a time to weigh them


class RelativeWeights:
    """r_i = w_i/w̄, the weights of examples in units of the mean weight of some of them.

    Args:
        weigh: gives w_i by the targets.
        examples: what w̄ is the mean over.
    """

    def __init__(self, weigh: WeightFn, examples: Source) -> None:
        self._weigh = weigh
        self._examples = examples
        self._mean: float | None = None  # not yet known

    def over(self, examples: Source) -> RelativeWeights:
        """The same weights in units of other examples' mean.

        Args:
            examples: what w̄ is the mean over.
        """
        return RelativeWeights(self._weigh, examples)

    @property
    def mean(self) -> float:
        """w̄.

        Raises:
            SettingError: weights that are not finite, below zero, or all zero.
        """
        if self._mean is None:
            num_examples = self._examples.num_examples
            total = float(self._absolute(self._examples).sum())
            if total <= 0:
                raise SettingError(
                    f"the weights of the Problem are zero for all of {num_examples} examples: "
                    "no mean is defined"
                )
            self._mean = total / num_examples
        return self._mean

    def of(self, examples: Source) -> Tensor:
        """r_i of every example (N,), float64, on the CPU.

        Args:
            examples: read part by part.
        """
        return self._absolute(examples) / self.mean

    def any_of(self, examples: Source) -> bool:
        """Whether any of the examples has a weight above zero.

        Args:
            examples: read part by part.
        """
        return bool((self._absolute(examples) > 0).any())

    def weigh(self, losses: Tensor, targets: Tree) -> Tensor:
        """The losses times r_i (B,).

        Args:
            losses: (B,).
            targets: of the same examples.
        """
        return losses * (weights_of(self._weigh, targets).to(losses) / self.mean)

    def total(self, chunk: Examples) -> float:
        """Σ r_i over a chunk.

        Args:
            chunk: of examples in memory.
        """
        return float(weights_of(self._weigh, chunk.targets).double().sum()) / self.mean

    def _absolute(self, examples: Source) -> Tensor:
        """w_i of every example (N,), float64, on the CPU."""
        parts = []
        for start in range(0, examples.num_examples, WEIGHED):
            targets = examples.part(slice(start, start + WEIGHED)).targets
            parts.append(weights_of(self._weigh, targets).double().cpu())
        weights = torch.cat(parts)
        check_weights(weights)
        return weights
