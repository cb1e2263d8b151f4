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

# (function of one example, dims, size, arguments) -> results of all examples, see ExampleMap
Map = Callable[[Callable[..., Any], Sequence[Any], int, Any], Any]


def by_vmap(
    function: Callable[..., Any], dims: Sequence[Any], size: int, arguments: Sequence[Any]
) -> Any:
    """The results of `torch.func.vmap` over the arguments whose `dims` are 0."""
    return vmap(function, in_dims=tuple(dims))(*arguments)


class ExampleMap:
    """Applies functions of one example to many: by vmap, else one example after the other.

    The latter where an operation, such as an LSTM or `nonzero`, has no batching rule, which an
    instance remembers from then on.

    reason: why vmap is not used; None as long as it is.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __call__(
        self,
        function: Callable[..., Any],
        dims: Sequence[Any],
        size: int,
        arguments: Sequence[Any],
    ) -> Any:
        """The function's results for each example, stacked along a first dimension.

        Args:
            function: of one example.
            dims: for each argument 0 where it holds examples along its first dimension, None where
                it is the same for all, or a list of these for an argument that is a list.
            size: how many examples there are.
            arguments: of all examples.
        """
        if self.reason is None:
            try:
                return by_vmap(function, dims, size, arguments)
            except MeasurementError:
                raise
            except (RuntimeError, ValueError, NotImplementedError) as error:
                if is_out_of_memory(error):
                    raise
                reason = first_line(error, limit=120)
                results = _one_by_one(function, dims, size, arguments)  # which may fail as well
                self.reason = reason
                return results
        return _one_by_one(function, dims, size, arguments)


def _one_by_one(
    function: Callable[..., Any], dims: Sequence[Any], size: int, arguments: Sequence[Any]
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
        for index in range(size)
    ]
    return tree_map(lambda *parts: torch.stack(parts), *results)
