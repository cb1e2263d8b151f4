"""Plain SGD on a chain of linear layers and activations, without autograd's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from noisescale.training.updates.in_place_sgd import update_linear


class _Elementwise(NamedTuple):
    """An activation, and the gradient at its input from the layer, that at its output, x and y."""

    forward: Callable[[Any, Tensor], Tensor]
    backward: Callable[[Any, Tensor, Tensor, Tensor], Tensor]


aten = torch.ops.aten
# the layers of a chain besides nn.Linear; of these types exactly, whose forward pass is known
ELEMENTWISE: dict[type[nn.Module], _Elementwise] = {
    nn.Flatten: _Elementwise(
        lambda layer, x: x.flatten(layer.start_dim, layer.end_dim),
        lambda layer, grad, x, y: grad.reshape(x.shape),
    ),
    nn.Identity: _Elementwise(lambda layer, x: x, lambda layer, grad, x, y: grad),
    nn.ReLU: _Elementwise(
        lambda layer, x: x.relu(), lambda layer, grad, x, y: aten.threshold_backward(grad, y, 0)
    ),
    nn.Tanh: _Elementwise(
        lambda layer, x: x.tanh(), lambda layer, grad, x, y: aten.tanh_backward(grad, y)
    ),
    nn.Sigmoid: _Elementwise(
        lambda layer, x: x.sigmoid(), lambda layer, grad, x, y: aten.sigmoid_backward(grad, y)
    ),
    nn.GELU: _Elementwise(
        lambda layer, x: F.gelu(x, approximate=layer.approximate),
        lambda layer, grad, x, y: aten.gelu_backward(grad, x, approximate=layer.approximate),
    ),
}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Chain:
    """A model that is a chain, run and updated layer by layer.

    A step at a small batch size takes longer to be recorded by autograd, and to be watched for what
    the model might do otherwise, than to be computed. A Sequential of known layers does nothing
    otherwise. In place of the model this is called with the inputs; autograd begins at the outputs
    that it returns, so that any loss may follow. Once the backward pass of that has been made,
    `descend` goes on down the layers, each updated as soon as its gradient is known.

    Args:
        model: a chain, see `of`.
        layers: its layers, in order.

    Attributes:
        ran: whether the latest call was of the layers one by one; else it was one of the model, as
            where something has been hung on it since, and gradients are autograd's.
    """

    def __init__(self, model: nn.Module, layers: tuple[nn.Module, ...]) -> None:
        self.ran = False
        self._model = model
        self._layers = layers
        self._hooks = [getattr(layer, name) for layer in model.modules() for name in HOOKS]
        self._hooks += [getattr(of_all_modules, f"_global{name}") for name in HOOKS]
        self._trained = [_is_trained(layer) for layer in layers]
        self._passed: list[Tensor] = []  # the inputs of the layers, and the outputs of the last
        self._outputs: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module) -> Self | None:
        """The chain that a model is; None: it is none, or has hooks, or shares parameters.

        Args:
            model: a lone layer, or a Sequential of such and of other Sequentials.
        """
        layers = tuple(_opened(model))
        params = [param for layer in layers for param in layer.parameters()]
        trained = [_is_trained(layer) for layer in layers]
        if None in trained or True not in trained or len(set(params)) < len(params):
            return None
        if any("forward" in module.__dict__ for module in model.modules()):
            return None
        chain = cls(model, layers)
        return None if any(chain._hooks) else chain

    def __call__(self, inputs: Tensor) -> Tensor:
        self.ran = (
            type(inputs) is Tensor
            and inputs.layout is torch.strided
            and not inputs.requires_grad
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled(inputs.device.type)
            and not torch._C._are_functorch_transforms_active()
            and not self._is_altered()
        )
        if not self.ran:
            outputs: Tensor = self._model(inputs)
            return outputs
        passed = [inputs]
        with torch.no_grad():
            for layer in self._layers:
                if isinstance(layer, nn.Linear):
                    passed.append(F.linear(passed[-1], layer.weight, layer.bias))
                else:
                    passed.append(ELEMENTWISE[type(layer)].forward(layer, passed[-1]))
        self._passed = passed
        # another tensor: what lies in `passed` is read again on the way down
        self._outputs = passed[-1].detach().requires_grad_()
        return self._outputs

    def descend(self, learning_rate: float, weight_decay: float) -> None:
        """One step of `torch.optim.SGD` by what the loss's backward pass has left at the outputs.

        Args:
            learning_rate: η.
            weight_decay: λ.
        """
        assert self._outputs is not None
        grad, passed = self._outputs.grad, self._passed
        self._outputs, self._passed = None, []
        if grad is None:  # the loss does not depend on them
            return
        lowest = self._trained.index(True)
        with torch.no_grad():
            for place in range(len(self._layers) - 1, lowest - 1, -1):
                layer, x = self._layers[place], passed[place]
                if not isinstance(layer, nn.Linear):
                    grad = ELEMENTWISE[type(layer)].backward(layer, grad, x, passed[place + 1])
                    continue
                # before the weight changes
                below = grad @ layer.weight if place > lowest else grad
                if self._trained[place]:
                    update_linear(layer.weight, layer.bias, x, grad, learning_rate, weight_decay)
                grad = below

    def _is_altered(self) -> bool:
        """Whether the model has come to do more, or other things, than it did at first."""
        return (
            any(self._hooks)
            or tuple(_opened(self._model)) != self._layers
            or [_is_trained(layer) for layer in self._layers] != self._trained
        )


def _opened(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a Sequential, those of the Sequentials in it one by one; else the model."""
    if type(model) is not nn.Sequential:
        yield model
        return
    for layer in model._modules.values():
        assert layer is not None
        yield from _opened(layer)


def _is_trained(layer: nn.Module) -> bool | None:
    """Whether a layer has parameters, and all are trained; None: it is no layer of a chain."""
    params = [param for param in layer._parameters.values() if param is not None]
    if type(layer) in ELEMENTWISE:
        return None if params else False
    if type(layer) is not nn.Linear or any(type(param) is not nn.Parameter for param in params):
        return None
    if any(param._backward_hooks or param._post_accumulate_grad_hooks for param in params):
        return None
    trained = {param.requires_grad for param in params}
    return trained.pop() if len(trained) == 1 else None
