"""Modules with a rule of the user's own, as operations that take their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from noisescale.measure.gradients.layers.factors import (
    Dense,
    ExampleGradients,
    Outer,
    Rows,
)
from noisescale.measure.gradients.layers.uses import Layout, OperationRule, UnfitError

# (module, its input, the gradient of its output) -> per-example gradients by parameter
ModuleRule = Callable[[Any, Tensor, Tensor], dict[str, Tensor | Outer]]


def rules_of_modules(
    model: nn.Module, rules: Mapping[type[nn.Module], ModuleRule]
) -> dict[str, OperationRule]:
    """Makes operations of the modules that have a rule; these operations' rules, by name.

    Args:
        model: is changed: the forward functions of such modules are replaced.
        rules: by type of module.
    """
    of_operations: dict[str, OperationRule] = {}
    for name, module in model.named_modules():
        rule = rules.get(type(module))
        if rule is not None:
            operation = _Operation(f"module {name}", module)
            module.forward = operation.forward
            of_operations[operation.__name__] = partial(_gradients, module, rule)
    return of_operations


class _Operation:
    """A module's forward function as one that takes its parameters as arguments."""

    def __init__(self, name: str, module: nn.Module) -> None:
        self.__name__ = name
        self._module = module
        self._forward = module.forward

    def __call__(self, *args: Any, **params: Tensor) -> Any:
        """The module's output with other parameters than its own."""
        own: dict[str, Any] = dict(self._module._parameters)
        held: dict[str, Any] = self._module._parameters
        held.update(params)
        try:
            return self._forward(*args)
        finally:
            held.update(own)

    def forward(self, *args: Any) -> Any:
        """The module's output, which a mode may take for that of an operation of torch's."""
        own = dict(self._module.named_parameters(recurse=False))
        tensors = (*args, *own.values())
        if has_torch_function(tensors):
            return handle_torch_function(self, tensors, *args, **own)
        return self._forward(*args)


def _gradients(
    module: nn.Module,
    rule: ModuleRule,
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    **params: Tensor,
) -> dict[str, ExampleGradients]:
    """Those of the module's parameters by its rule."""
    if layout != Layout(0, 1):
        raise UnfitError
    by_name = rule(module, input, gradient)
    return {name: _form(values) for name, values in by_name.items()}


def _form(given: Tensor | Outer) -> ExampleGradients:
    """Gradients as a rule gives them, in the form in which they are handled."""
    if isinstance(given, Tensor):
        return Dense(given)
    if given.left.ndim == 3:  # integers that stand for one-hot rows
        return Rows(given.left[:, 0], given.right[:, 0], given.shape)
    return given
