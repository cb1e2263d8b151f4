"""Deep copies of any model."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of any model.

    Tensors that an earlier forward pass left in it, such as the weight that
    torch.nn.utils.weight_norm computes, are copied as constants; the next pass computes them anew.

    Args:
        model: left as it is.
    """
    attributes = [vars(module) for module in model.modules()]
    computed = [
        value
        for value in tree_leaves(attributes)
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    with torch.no_grad():  # or the parameters of a ScriptModule's copy would be no leaves
        copies: dict[int, Any] = {id(value): value.detach().clone() for value in computed}
        copied = copy.deepcopy(model, copies)
    rebind_closures(copied, copies)
    for param, original in zip(copied.parameters(), model.parameters(), strict=True):
        param.requires_grad_(original.requires_grad)
    return copied


def rebind_closures(copied: nn.Module, copies: Mapping[int, Any]) -> None:
    """Lets functions that a copied model holds speak of the copy: copying leaves functions alone.

    Args:
        copied: the copy, changed in place.
        copies: of the model's parts, by the id of the originals, as copy.deepcopy notes them.
    """
    for module in copied.modules():
        hooks = [value for name, value in vars(module).items() if name.endswith("_hooks")]
        for holder in [vars(module), *(held for held in hooks if isinstance(held, dict))]:
            for name, value in list(holder.items()):
                if isinstance(value, FunctionType) and value.__closure__:
                    holder[name] = _rebound(value, copies)


def _rebound(function: FunctionType, copies: Mapping[int, Any]) -> FunctionType:
    """A function of the copy's own, where it speaks of the model: copying leaves functions alone.

    Args:
        function: with a closure, as a hook that is defined in the model's constructor.
        copies: of the model's parts, by the id of the originals.
    """
    cells = []
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not yet filled
            cells.append(cell)
        else:
            cells.append(CellType(copies.get(id(content), content)))
    rebound = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells),
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    return rebound
