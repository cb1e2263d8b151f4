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

Map = Callable[[Callable[..., Any], Sequence[Any], int, Any], Any]


def by_vmap(
    function: Callable[..., Any], dims: Sequence[Any], count: int, arguments: Sequence[Any]
) -> Any:
    """`torch.func.vmap`, over the arguments whose `dims` are 0."""
    return vmap(function, in_dims=tuple(dims))(*arguments)


class ExampleMap:
    """The same, or one example after the other where an operation has no batching rule (LSTM, `nonzero`).

    reason: why vmap is not used, None as long as it is.
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
                found = _one_by_one(function, dims, count, arguments)  # which may fail as well
                self.reason = reason
                return found
        return _one_by_one(function, dims, count, arguments)


def _one_by_one(
    function: Callable[..., Any], dims: Sequence[Any], count: int, arguments: Sequence[Any]
) -> Any:
    def pick(argument: Any, dim: Any, index: int) -> Any:
        if dim is None:
            return argument
        if isinstance(dim, list):
            return [pick(one, own, index) for one, own in zip(argument, dim, strict=True)]
        return tree_map(lambda leaf: leaf[index] if isinstance(leaf, Tensor) else leaf, argument)

    found = [
        function(
            *(pick(argument, dim, index) for argument, dim in zip(arguments, dims, strict=True))
        )
        for index in range(count)
    ]
    return tree_map(lambda *parts: torch.stack(parts), *found)
