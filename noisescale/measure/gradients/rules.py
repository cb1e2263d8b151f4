"""The per-example gradients of each type of layer, from its input and its output's gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisescale.measure.gradients.factors import Convolved, ExampleGradients, Outer

Rule = Callable[[Any, Tensor, Tensor], dict[str, ExampleGradients]]
GivenRule = TypeVar("GivenRule", bound=Rule)

RULES: dict[type[nn.Module], Rule] = {}


def gradient_rule(*module_types: type[nn.Module]) -> Callable[[GivenRule], GivenRule]:
    """A decorator that registers a function as the rule for modules of exactly these types.

    The engine "hooks" then takes their per-example gradients from it.

    The function takes the module, its input (B, ...) and the gradient of the batch's summed loss
    with respect to its output (B, ...), and returns for each of the module's parameters that are
    not None the gradients of the single examples: a tensor (B, *shape), or an `Outer` where they
    factorise. Rules are checked against single-example backward passes at every measurement.
    Subclasses, and types without a rule, go through `torch.func.vmap` on that module alone.

    Args:
        *module_types: the types; a rule that one has already is replaced.

    Returns:
        The decorator, which returns the function as it is.
    """

    def register(rule: GivenRule) -> GivenRule:
        for module_type in module_types:
            RULES[module_type] = rule
        return rule

    return register


@gradient_rule(nn.Linear)
def _linear(module: nn.Linear, inputs: Tensor, gradient: Tensor) -> dict[str, ExampleGradients]:
    left = gradient.reshape(len(gradient), 1, -1, gradient.shape[-1])  # (B, ..., O) -> (B, 1, S, O)
    right = inputs.reshape(len(inputs), 1, -1, inputs.shape[-1])  # (B, ..., I) -> (B, 1, S, I)
    return _affine(module, Outer(left, right, module.weight.shape), left.sum((1, 2)))


@gradient_rule(nn.Conv1d, nn.Conv2d)
def _convolution(
    module: nn.Conv1d | nn.Conv2d, inputs: Tensor, gradient: Tensor
) -> dict[str, ExampleGradients]:
    inputs = F.pad(inputs, module._reversed_padding_repeated_twice, mode=_padding_mode(module))
    if isinstance(module, nn.Conv1d):  # as an image of height 1
        inputs, gradient = inputs.unsqueeze(2), gradient.unsqueeze(2)
    channels, columns, *kernel = module.weight.shape
    weight = Convolved(
        inputs=inputs,
        gradient=gradient,
        shape=torch.Size([channels, columns, *_image(kernel)]),
        stride=_image(module.stride),
        dilation=_image(module.dilation),
        groups=module.groups,
    )
    return _affine(module, weight, gradient.sum((2, 3)))


def _image(sizes: Sequence[int]) -> tuple[int, ...]:
    """Sizes along height and width; a signal has height 1."""
    return tuple(sizes) if len(sizes) == 2 else (1, *sizes)


def _padding_mode(module: nn.Conv1d | nn.Conv2d) -> str:
    return "constant" if module.padding_mode == "zeros" else module.padding_mode


@gradient_rule(nn.Embedding)
def _embedding(
    module: nn.Embedding, inputs: Tensor, gradient: Tensor
) -> dict[str, ExampleGradients]:
    indices = inputs.reshape(len(inputs), 1, -1)  # (B, ...) -> (B, 1, S)
    values = gradient.reshape(*indices.shape, gradient.shape[-1])  # (B, 1, S, I)
    if module.padding_idx is not None:
        values = values * (indices != module.padding_idx).unsqueeze(-1)
    return {"weight": Outer(indices, values, module.weight.shape)}


@gradient_rule(nn.LayerNorm)
def _layer_norm(
    module: nn.LayerNorm, inputs: Tensor, gradient: Tensor
) -> dict[str, ExampleGradients]:
    return _scaled(
        module,
        F.layer_norm(inputs, module.normalized_shape, eps=module.eps),
        gradient,
        module.weight,
    )


@gradient_rule(nn.RMSNorm)
def _rms_norm(module: nn.RMSNorm, inputs: Tensor, gradient: Tensor) -> dict[str, ExampleGradients]:
    return _scaled(
        module, F.rms_norm(inputs, module.normalized_shape, eps=module.eps), gradient, module.weight
    )


@gradient_rule(nn.GroupNorm)
def _group_norm(
    module: nn.GroupNorm, inputs: Tensor, gradient: Tensor
) -> dict[str, ExampleGradients]:
    normalised = F.group_norm(inputs, module.num_groups, eps=module.eps)
    return _scaled(module, normalised.movedim(1, -1), gradient.movedim(1, -1), module.weight)


@gradient_rule(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm(
    module: nn.BatchNorm1d | nn.BatchNorm2d, inputs: Tensor, gradient: Tensor
) -> dict[str, ExampleGradients]:
    assert module.running_mean is not None
    assert module.running_var is not None
    scale = (module.running_var + module.eps).rsqrt()
    normalised = (inputs.movedim(1, -1) - module.running_mean) * scale
    return _scaled(module, normalised, gradient.movedim(1, -1), module.weight)


def _affine(
    module: nn.Module, weight: ExampleGradients, bias: Tensor
) -> dict[str, ExampleGradients]:
    return {"weight": weight} if module.bias is None else {"weight": weight, "bias": bias}


def _scaled(
    module: nn.Module, normalised: Tensor, gradient: Tensor, weight: Tensor | None
) -> dict[str, ExampleGradients]:
    """Those of weight and bias in y = weight·normalised + bias.

    y and `normalised` are (B, ..., *shape), weight and bias (*shape).
    """
    if weight is None:
        return {}
    between = tuple(range(1, gradient.ndim - weight.ndim))

    def over_places(values: Tensor) -> Tensor:
        return values.sum(between) if between else values

    gradients: dict[str, ExampleGradients] = {"weight": over_places(gradient * normalised)}
    if getattr(module, "bias", None) is not None:
        gradients["bias"] = over_places(gradient)
    return gradients
