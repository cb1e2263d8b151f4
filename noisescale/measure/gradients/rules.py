"""The per-example gradients of operations and layers, from the gradient of their output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisescale.measure.gradients.layers.factors import (
    Convolved,
    Dense,
    ExampleGradients,
    Outer,
    Rows,
)
from noisescale.measure.gradients.layers.modules import ModuleRule
from noisescale.measure.gradients.layers.uses import Layout, OperationRule, UnfitError

Gradients = dict[str, ExampleGradients]
GivenRule = TypeVar("GivenRule", bound=ModuleRule)

# Of a user's own modules, by type
RULES: dict[type[nn.Module], ModuleRule] = {}
# Of torch's operations, by name, the method's and the function's; `multiply` is `mul`
OPERATIONS: dict[str, OperationRule] = {}


def gradient_rule(*module_types: type[nn.Module]) -> Callable[[GivenRule], GivenRule]:
    """A decorator that registers a function as the rule for modules of exactly these types.

    The engine "hooks" then takes their per-example gradients from it. Without one, it follows the
    parameters of any module through torch's operations, of which it knows linear maps and matrix
    products, convolutions, embeddings, normalisations, and sums and products with parameters.

    The function takes the module, its input (B, ...) and the gradient of the batch's summed loss
    with respect to its output (B, ...), and returns for each of the module's parameters that are
    not None the gradients of the single examples: a tensor (B, *shape), or an `Outer` where they
    factorise. Rules are checked against single-example backward passes at every measurement. A
    subclass of a module with a rule is a module without one.

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


def _operation(*names: str) -> Callable[[OperationRule], OperationRule]:
    """Registers a rule for the operations of these names."""

    def register(rule: OperationRule) -> OperationRule:
        OPERATIONS.update(dict.fromkeys(names, rule))
        return rule

    return register


@_operation("linear")
def _linear(
    layout: Layout, gradient: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Gradients:
    """Y = x Wᵀ + b; x (..., I), y (..., O)."""
    left, right = layout.places(gradient), layout.places(input)  # (n, S, O), (n, S, I)
    weights = Outer(left.unsqueeze(1), right.unsqueeze(1), weight.shape)
    return {"weight": weights, "bias": Dense(left.sum(1))}


@_operation("matmul", "mm", "__matmul__")
def _matmul(layout: Layout, gradient: Tensor, input: Tensor, other: Tensor) -> Gradients:
    """Y = x W; x (..., I), W (I, O), y (..., O)."""
    if other.ndim != 2 or input.ndim < 2:
        raise UnfitError
    left, right = layout.places(input), layout.places(gradient)  # (n, S, I), (n, S, O)
    return {"other": Outer(left.unsqueeze(1), right.unsqueeze(1), other.shape)}


@_operation("addmm")
def _addmm(
    layout: Layout, gradient: Tensor, input: Tensor, mat1: Tensor, mat2: Tensor
) -> Gradients:
    """Y = b + x W; the examples in the rows of x and y."""
    if layout.dim != 0:
        raise UnfitError
    weights = _matmul(layout, gradient, mat1, mat2)["other"]
    return {"input": _broadcast(layout, gradient, input.shape), "mat2": weights}


@_operation("embedding")
def _embedding(
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    **options: Any,
) -> Gradients:
    """Y = W[x]; x (...) integers, W (V, D), y (..., D)."""
    index = layout.places(input.unsqueeze(-1)).squeeze(-1)  # (n, S)
    values = layout.places(gradient)  # (n, S, D)
    if padding_idx is not None:
        is_padding = index == padding_idx % len(weight)
        values = values * ~is_padding.unsqueeze(-1)
    return {"weight": Rows(index, values, weight.shape)}


@_operation("add", "add_")
def _add(
    layout: Layout, gradient: Tensor, input: Any, other: Any, *, alpha: float = 1
) -> Gradients:
    """Y = x + α z."""
    scaled = gradient if alpha == 1 else alpha * gradient
    return _of_two(layout, input=(input, gradient), other=(other, scaled))


@_operation("sub")
def _sub(
    layout: Layout, gradient: Tensor, input: Any, other: Any, *, alpha: float = 1
) -> Gradients:
    """Y = x − α z."""
    return _of_two(layout, input=(input, gradient), other=(other, -alpha * gradient))


@_operation("mul", "multiply")
def _mul(layout: Layout, gradient: Tensor, input: Any, other: Any) -> Gradients:
    """Y = x z."""
    return _of_two(layout, input=(input, gradient * other), other=(other, gradient * input))


@_operation("where")
def _where(
    layout: Layout, gradient: Tensor, condition: Tensor, input: Any, other: Any
) -> Gradients:
    """Y = x where the condition holds, else z; the method takes x first."""
    if condition.dtype != torch.bool:
        x, condition = condition, input
        return _of_two(
            layout, condition=(x, gradient * condition), other=(other, gradient * ~condition)
        )
    return _of_two(
        layout, input=(input, gradient * condition), other=(other, gradient * ~condition)
    )


def _of_two(layout: Layout, **arguments: tuple[Any, Tensor]) -> Gradients:
    """Those of the arguments that hold no examples, by the result's gradient in each."""
    return {
        name: _broadcast(layout, gradient, value.shape)
        for name, (value, gradient) in arguments.items()
        if isinstance(value, Tensor) and _is_shared(layout, gradient.ndim, value.shape)
    }


@_operation("expand")
def _expand(layout: Layout, gradient: Tensor, input: Tensor, *sizes: Any) -> Gradients:
    """P repeated along dimensions of size 1, that of the examples among them."""
    return {"input": _broadcast(layout, gradient, input.shape)}


@_operation("expand_as")
def _expand_as(layout: Layout, gradient: Tensor, input: Tensor, other: Tensor) -> Gradients:
    return {"input": _broadcast(layout, gradient, input.shape)}


@_operation("repeat")
def _repeat(layout: Layout, gradient: Tensor, input: Tensor, *sizes: Any) -> Gradients:
    """P repeated along its dimensions of size 1."""
    repeats = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
    shape = (1,) * (len(repeats) - input.ndim) + tuple(input.shape)
    if any(size != 1 and count != 1 for size, count in zip(shape, repeats, strict=True)):
        raise UnfitError
    return {"input": _broadcast(layout, gradient, input.shape)}


@_operation("prelu")
def _prelu(layout: Layout, gradient: Tensor, input: Tensor, weight: Tensor) -> Gradients:
    """Y = x where x > 0, else p x; one p or one for each channel."""
    products = gradient * input.clamp(max=0)
    if weight.numel() == 1 or input.ndim < 2:
        return {"weight": _broadcast(layout, products, weight.shape)}
    return {"weight": _broadcast(layout, products.movedim(1, -1), weight.shape)}


@_operation("layer_norm")
def _layer_norm(
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Gradients:
    normalised = F.layer_norm(input, normalized_shape, eps=eps)
    return _scaled(layout, normalised, gradient, weight, bias)


@_operation("rms_norm")
def _rms_norm(
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Gradients:
    normalised = F.rms_norm(input, normalized_shape, eps=eps)
    return _scaled(layout, normalised, gradient, weight, None)


@_operation("group_norm")
def _group_norm(
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Gradients:
    normalised = F.group_norm(input, num_groups, eps=eps)
    return _by_channel(layout, normalised, gradient, weight, bias)


@_operation("instance_norm")
def _instance_norm(
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Gradients:
    normalised = F.instance_norm(
        input, running_mean, running_var, use_input_stats=use_input_stats, momentum=0.0, eps=eps
    )
    return _by_channel(layout, normalised, gradient, weight, bias)


@_operation("batch_norm")
def _batch_norm(
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    **options: Any,
) -> Gradients:
    if training or running_mean is None or running_var is None:
        raise UnfitError
    normalised = F.batch_norm(input, running_mean, running_var, eps=eps)
    return _by_channel(layout, normalised, gradient, weight, bias)


@_operation("conv1d", "conv2d", "conv3d")
def _convolution(
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Gradients:
    axes = weight.ndim - 2
    dilations = _along(dilation, axes)
    if padding == "same":
        reach = [by * (size - 1) for by, size in zip(dilations, weight.shape[2:], strict=True)]
        sides = [(both // 2, both - both // 2) for both in reach]
    else:
        sides = [(by, by) for by in _along(0 if isinstance(padding, str) else padding, axes)]
    padded = F.pad(input, [by for pair in reversed(sides) for by in pair])
    gradients = Convolved(
        inputs=_images(layout, padded, axes),
        gradient=_images(layout, gradient, axes),
        shape=weight.shape,
        stride=_along(stride, axes),
        dilation=dilations,
        groups=groups,
    )
    return {"weight": gradients, "bias": Dense(_of_channels(layout, gradient, axes))}


@_operation("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(
    layout: Layout,
    gradient: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Gradients:
    """The convolution whose inputs' gradient it computes, with inputs and gradients exchanged."""
    axes = weight.ndim - 2
    sides = [by for size in reversed(_along(padding, axes)) for by in (size, size)]
    gradients = Convolved(
        inputs=_images(layout, F.pad(gradient, sides), axes),
        gradient=_images(layout, input, axes),
        shape=weight.shape,
        stride=_along(stride, axes),
        dilation=_along(dilation, axes),
        groups=groups,
    )
    return {"weight": gradients, "bias": Dense(_of_channels(layout, gradient, axes))}


def _along(sizes: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """Sizes along each axis."""
    given = (sizes,) if isinstance(sizes, int) else tuple(sizes)
    return given * axes if len(given) == 1 else given


def _images(layout: Layout, values: Tensor, axes: int) -> Tensor:
    """Images or signals (n·m, C, *sizes) -> (n, m, C, *sizes)."""
    if layout.dim != 0 or values.ndim != axes + 2:
        raise UnfitError
    return layout.examples(values)


def _of_channels(layout: Layout, gradient: Tensor, axes: int) -> Tensor:
    """Sums over images and places: (n·m, C, *sizes) -> (n, C)."""
    return _images(layout, gradient, axes).flatten(3).sum((1, 3))


def _by_channel(
    layout: Layout,
    normalised: Tensor,
    gradient: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Gradients:
    """Those of weight and bias of the channels (C,), the second dimension of the rest."""
    if layout.dim != 0:
        raise UnfitError
    return _scaled(layout, normalised.movedim(1, -1), gradient.movedim(1, -1), weight, bias)


def _scaled(
    layout: Layout,
    normalised: Tensor,
    gradient: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Gradients:
    """Those of weight and bias (*shape) in y = weight·normalised + bias, y (..., *shape)."""
    by_argument: Gradients = {}
    if weight is not None:
        by_argument["weight"] = _broadcast(layout, gradient * normalised, weight.shape)
    if bias is not None:
        by_argument["bias"] = _broadcast(layout, gradient, bias.shape)
    return by_argument


def _is_shared(layout: Layout, ndim: int, shape: torch.Size) -> bool:
    """Whether all examples share a tensor (*shape) broadcast to a result of so many dimensions."""
    dim = layout.dim - (ndim - len(shape))
    return len(shape) <= ndim and (dim < 0 or shape[dim] == 1)


def _broadcast(layout: Layout, gradient: Tensor, shape: torch.Size) -> Dense:
    """Those of a tensor (*shape) that is broadcast to a result with this gradient."""
    if not _is_shared(layout, gradient.ndim, shape):
        raise UnfitError
    whole = (1,) * (gradient.ndim - len(shape)) + tuple(shape)
    rest = whole[: layout.dim] + whole[layout.dim + 1 :]
    by_example = layout.examples(gradient)  # (n, m, *rest of the result's dimensions)
    summed = [1, *(index + 2 for index, size in enumerate(rest) if size == 1)]
    return Dense(by_example.sum(summed).reshape(len(by_example), *shape))
