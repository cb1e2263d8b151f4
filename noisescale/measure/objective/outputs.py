"""What a model returns, of whatever form, as the tensors that the loss is computed from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


def with_tensors(returned: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """A copy of any object, such as a dict, a dataclass or a distribution, with other tensors.

    Args:
        returned: the object, or a tensor itself.
        replace: gives the tensor in the place of each.
    """
    if isinstance(returned, Tensor):
        return replace(returned)
    with _ReplacedTensors(replace):
        return copy.deepcopy(returned)


class _ReplacedTensors(TorchFunctionMode):
    """A context in which a deep copy of a tensor is what a function makes of it."""

    def __init__(self, replace: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._replace = replace

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Iterable[type],
        arguments: tuple[Any, ...] = (),
        keywords: Mapping[str, Any] | None = None,
    ) -> Any:
        if function is Tensor.__deepcopy__:
            return self._replace(arguments[0])
        return function(*arguments, **(keywords or {}))
