"""A function of one example, applied to each of a chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from noisescale.errors import MeasurementError, first_line
from noisescale.measure.objective import is_out_of_memory

# (function of one example, dims, number of examples, arguments) -> results of all of them
Map = Callable[[Callable[..., Any], Sequence[Any], int, Any], Any]


def by_vmap(
    function: Callable[..., Any], dims: Sequence[Any], count: int, arguments: Sequence[Any]
) -> Any:
    """The results of `torch.func.vmap` over the arguments whose `dims` are 0."""
    return vmap(function, in_dims=tuple(dims))(*arguments)


class ExampleMap:
    """A function of one example by vmap, or by a loop where an operation has no batching rule.

    As LSTM and `nonzero` have none. reason: why vmap is not used, None as long as it is.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(
        self,
        function: Callable[..., Any],
        dims: Sequence[Any],
        count: int,
        arguments: Sequence[Any],
    ) -> Any:
        if self.reason is None:
            try:
                return by_vmap(function, dims, count, arguments)
            except MeasurementError:
                raise
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                reason = first_line(error, limit=120)
                results = _one_by_one(function, dims, count, arguments)  # which may fail as well
                self.reason = reason
                return results
        return _one_by_one(function, dims, count, arguments)


def _one_by_one(
    function: Callable[..., Any], dims: Sequence[Any], count: int, arguments: Sequence[Any]
) -> Any:
    """The results of one call after the other, stacked as vmap would."""

    def pick(argument: Any, dim: Any, index: int) -> Any:
        if dim is None:
            return argument
        if isinstance(dim, list):
            return [pick(*part, index) for part in zip(argument, dim, strict=True)]
        return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, argument)

    results = [
        function(
            *(pick(argument, dim, index) for argument, dim in zip(arguments, dims, strict=True))
        )
        for index in range(count)
    ]
    return tree_map(lambda *parts: torch.stack(parts), *results)
