"""Per-example gradients of one LayerNorm or RMSNorm, during a backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noisescale.errors import SettingError
from noisescale.statistics.display import counted

# Of a layer's gradient: what the sum of its examples' may miss by rounding
TOLERANCE = 1e-3
SMALL = 1e-3  # of the largest weight: division by one keeps four digits of float32
HALF_TOLERANCE = 0.05  # where activations are of 16 bits


class Watch:
    """Of one layer: its examples' gradients, summed over positions and over all uses of it.

    Where the loss is a mean, they are 1/n of the gradients of the examples' own losses.
    """

    def __init__(self, name: str, layer: nn.Module) -> None:
        self._name, self._layer = name, layer
        self._weight = _weight(layer)
        bias = getattr(layer, "bias", None)
        self._bias = bias if isinstance(bias, nn.Parameter) and bias.requires_grad else None
        self._examples: list[Tensor] = []  # of weight and bias (B, D), since the last micro-batch
        self._sums: list[Tensor] = []  # of weight and bias (D,), since the last update
        self._is_half = False
        self._hook = layer.register_forward_hook(self._forward)

    def _forward(self, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad and args:
            detached = output.detach()
            take = partial(self._backward, args[0].detach(), detached, detached._version)
            output.register_hook(take)

    def _backward(self, inputs: Tensor, outputs: Tensor, version: int, gradient: Tensor) -> None:
        """Of inputs, outputs and the outputs' gradient (B, ..., D)."""
        if gradient.ndim <= self._weight.ndim:
            raise SettingError(
                f"{self._name} normalises {tuple(inputs.shape)}, without a dimension of examples: "
                "give batches whose first dimension is the examples'"
            )
        batch, width = len(gradient), self._weight.numel()
        self._is_half = min(gradient.dtype.itemsize, inputs.dtype.itemsize) < 4
        on_shift = gradient.reshape(batch, -1, width).sum(1)  # (B, D), of a bias
        if self._is_invertible and outputs._version == version and not self._is_half:
            on_output = (gradient * outputs).reshape(batch, -1, width).sum(1)
            weight, bias = self._weight.detach().reshape(-1), getattr(self._layer, "bias", None)
            if bias is not None:
                on_output = on_output - bias.detach().reshape(-1) * on_shift
            on_weight = on_output / weight
        else:
            normal = _normalised(self._layer, inputs, self._weight)
            on_weight = (gradient * normal).reshape(batch, -1, width).sum(1)
        found = [on_weight]
        if self._bias is not None:
            found.append(on_shift)
        if self._examples and len(self._examples[0]) == batch:
            found = [one + other for one, other in zip(self._examples, found, strict=True)]
        self._examples = found

    @property
    def _is_invertible(self) -> bool:
        """Whether the normalised input is (output − bias)/weight, cheaper than computed again.

        On a CPU: a GPU would have to be waited for.
        """
        if self._weight.device.type != "cpu" or not isinstance(
            self._layer, nn.LayerNorm | nn.RMSNorm
        ):
            return False
        least, most = self._weight.detach().abs().aminmax()
        return bool(least > SMALL * most)

    def take(self, num_examples: int) -> Tensor | None:
        """Σ|γ_i|² over the examples of a backward pass; None where the layer took no part."""
        examples, self._examples = self._examples, []
        if not examples:
            return None
        if len(examples[0]) != num_examples:
            raise SettingError(
                f"{self._name} saw {len(examples[0])} where the batch has "
                f"{counted(num_examples, 'example')}: the first dimension of its input must be the "
                "examples'"
            )
        sums = [part.sum(0) for part in examples]
        if self._sums:
            sums = [one + other for one, other in zip(self._sums, sums, strict=True)]
        self._sums = sums
        return _square(examples)

    def check(self) -> None:
        """SettingError where the sums are not the gradients that autograd left."""
        for total, parameter in zip(self._sums, (self._weight, self._bias), strict=False):
            if parameter is None or parameter.grad is None:
                continue
            miss = torch.linalg.vector_norm(total.reshape(parameter.shape) - parameter.grad)
            allowed = HALF_TOLERANCE if self._is_half else TOLERANCE
            if miss > allowed * torch.linalg.vector_norm(parameter.grad):
                raise SettingError(
                    f"{self._name}: the gradients of its examples do not add up to .grad, either "
                    "because that was not zero before, or because the layer is no LayerNorm or "
                    "RMSNorm; a NoiseScaleMonitor takes any model"
                )

    def square(self) -> Tensor:
        """|Σγ_i|² since the last update."""
        if not self._sums:
            return torch.zeros((), dtype=torch.float64, device=self._weight.device)
        return _square(self._sums)

    def remove(self) -> None:
        """Leaves the layer as it was."""
        self._hook.remove()
        self.clear()

    def drop(self) -> None:
        """Forgets what there is since the last micro-batch."""
        self._examples = []

    def clear(self) -> None:
        """Forgets what there is since the last update."""
        self._examples, self._sums = [], []


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm or an RMSNorm whose weight is trained."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.requires_grad:
        return False
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return True
    # those of transformers share no base class
    named_so = type(module).__name__.endswith(("RMSNorm", "T5LayerNorm"))
    return bool(named_so and weight.ndim == 1 and _eps(module) is not None)


def _square(parts: list[Tensor]) -> Tensor:
    """Σ|.|², float64."""
    flat = torch.cat([part.reshape(-1) for part in parts]).double()
    return torch.dot(flat, flat)


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter), "as is_norm has seen"
    return weight


def _eps(layer: nn.Module) -> float | None:
    """What is added to the variance, under either of its names."""
    for name in ("variance_epsilon", "eps"):
        if isinstance(value := getattr(layer, name, None), float):
            return value
    return None


def _normalised(layer: nn.Module, inputs: Tensor, weight: Tensor) -> Tensor:
    """What the layer multiplies by its weight."""
    shape = list(weight.shape)
    if isinstance(layer, nn.LayerNorm):
        return nn.functional.layer_norm(inputs, shape, eps=layer.eps)
    return nn.functional.rms_norm(inputs, shape, eps=_eps(layer))
