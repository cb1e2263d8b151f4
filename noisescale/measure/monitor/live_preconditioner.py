"""The diagonal preconditioner of an optimizer while it trains, for the norms a monitor takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from noisescale.errors import SettingError
from noisescale.measure.objective.preconditioner import diagonal_of, with_relative_rates
from noisescale.problems.problem import kind_of


class LivePreconditioner:
    """√P of an optimizer's parameters as its state is now, see `preconditioner_of`.

    Before the optimizer's first step there is no P: it is nan then, and so are norms under it.

    optimizer: of the parameters, such as Adam. parameters: that a monitor watches.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        if not isinstance(optimizer, Optimizer):
            raise SettingError(
                f"a preconditioner of {kind_of(optimizer)}: give the optimizer itself, such as "
                "AdamW, whose second moments are read at each update"
            )
        if isinstance(optimizer, torch.optim.SGD):
            raise SettingError(
                "a preconditioner of SGD: it divides the gradient by nothing, so that its noise "
                "scale is the plain one; leave the preconditioner out"
            )
        self._optimizer = optimizer
        self.roots([one for one in parameters if one.requires_grad])  # which says what it lacks

    def __repr__(self) -> str:
        return type(self._optimizer).__name__

    @property
    def is_known(self) -> bool:
        """Whether the optimizer has made a step."""
        return len(self._optimizer.state) > 0

    def roots(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """√P of each parameter, in its shape and in float32 at least; nan where there is none.

        Raises:
            SettingError: a parameter that the optimizer does not train, or a state without second
                moments.
        """
        groups = {
            id(parameter): group
            for group in with_relative_rates(self._optimizer.param_groups)
            for parameter in group["params"]
        }
        found = []
        for parameter in parameters:
            if id(parameter) not in groups:
                raise SettingError(
                    f"the optimizer has no parameter of shape {tuple(parameter.shape)} that the "
                    "monitor watches: give the optimizer that trains this model"
                )
            found.append(self._root(parameter, groups[id(parameter)]))
        return found

    def _root(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        state = self._optimizer.state.get(parameter)
        if not state:
            return torch.full_like(parameter.detach(), math.nan)  # sharded where that is
        dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
        name = f"a parameter of shape {tuple(parameter.shape)}"
        return diagonal_of(name, state, group, dtype=dtype).sqrt_()


def under(root: Tensor | None, gradient: Tensor) -> Tensor:
    """√P g, dense, 0 where g is 0; the gradient as it is without a preconditioner.

    √P is nan where the optimizer has no state, as of a parameter that never gets a gradient, for
    which a bucket of DistributedDataParallel holds zeros.
    """
    if root is None:
        return gradient
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return torch.where(dense == 0, dense, dense * root)


def flat_in_memory(root: Tensor, parameter: Tensor) -> Tensor:
    """√P in the order in which a parameter lies in memory, as DistributedDataParallel's buckets."""
    if parameter.is_contiguous():
        return root.reshape(-1)
    placed = torch.empty_like(parameter, dtype=root.dtype).copy_(root)
    return placed.as_strided((placed.numel(),), (1,))
