"""Plain SGD on a chain of linear layers and activations, without autograd's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as of_all_modules

from noisescale.training.updates.in_place.in_place_sgd import update_linear


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


class Link(NamedTuple):
    """A layer of a chain: how an activation is run; or what a linear one has, and is it trained."""

    layer: nn.Module
    elementwise: _Elementwise | None
    weight: Any
    bias: Tensor | None
    is_trained: bool


class Chain:
    """A model that is a chain, run and updated layer by layer.

    A step at a small batch size takes longer to be recorded by autograd, and to be watched for what
    the model might do otherwise, than to be computed. A Sequential of known layers does nothing
    otherwise. `forward` runs it without a graph; where the gradient at its outputs is known,
    `descend` goes on from there down the layers, each updated as soon as its gradient is known. Any
    other loss is called with the chain in place of the model: autograd begins at the outputs that
    it returns, and `descend` goes on from what the backward pass leaves there.

    Args:
        model: a chain, see `of`.
        layers: its layers, in order.

    Attributes:
        links: its layers in order, with what each has.
        ran: whether the latest call was of the layers one by one; else it was one of the model, as
            where something has been hung on it since, and gradients are autograd's.
    """

    def __init__(self, model: nn.Module, layers: tuple[nn.Module, ...]) -> None:
        self.ran = False
        self._model = model
        self.links = [_link(layer) for layer in layers]
        trained = [link.is_trained for link in self.links]
        lowest = trained.index(True)
        # from the top down to the lowest that is trained, below which no gradient is needed
        self._down = [
            (place, place > lowest, *self.links[place])
            for place in reversed(range(lowest, len(layers)))
        ]
        self._watch = _Watch(model, layers)
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
        return None if chain._watch.sees_a_change() else chain

    def takes(self, inputs: Any) -> bool:
        """Whether at this moment the model does with these inputs what its layers do one by one."""
        return (
            type(inputs) is Tensor
            and inputs.layout is torch.strided
            and not inputs.requires_grad
            and torch.is_grad_enabled()
            and not torch.is_autocast_enabled(inputs.device.type)
            and not torch._C._are_functorch_transforms_active()
            and not self._watch.sees_a_change()
        )

    def forward(self, inputs: Any) -> Tensor | None:
        """The outputs, without a graph; None: they are not those of the layers one by one."""
        self._passed = []
        if not self.takes(inputs):
            return None
        passed = self._passed
        x: Tensor = inputs
        with torch.no_grad():
            for layer, elementwise, weight, bias, _ in self.links:
                passed.append(x)
                if elementwise is None:
                    x = F.linear(x, weight, bias)
                else:
                    x = elementwise.forward(layer, x)
        passed.append(x)
        return x

    def __call__(self, inputs: Tensor) -> Tensor:
        """The outputs, where autograd's graph begins; of the model itself where it has changed."""
        outputs = self.forward(inputs)
        self.ran = outputs is not None
        if outputs is None:
            of_model: Tensor = self._model(inputs)
            return of_model
        # another tensor: what lies in `passed` is read again on the way down
        self._outputs = outputs.detach().requires_grad_()
        return self._outputs

    @property
    def gradient(self) -> Tensor | None:
        """What a backward pass has left at the outputs; None: the loss does not depend on them."""
        assert self._outputs is not None
        outputs, self._outputs = self._outputs, None
        return outputs.grad

    def descend(self, grad: Tensor | None, learning_rate: float, weight_decay: float) -> None:
        """One step of `torch.optim.SGD`.

        Args:
            grad: of the loss at the outputs; None: there is none, and no step.
            learning_rate: η.
            weight_decay: λ.
        """
        passed, self._passed = self._passed, []
        if grad is None:
            return
        with torch.no_grad():
            for place, has_below, layer, elementwise, weight, bias, is_trained in self._down:
                x = passed[place]
                if elementwise is not None:
                    grad = elementwise.backward(layer, grad, x, passed[place + 1])
                    continue
                # before the weight changes
                below = grad @ weight if has_below else grad
                if is_trained:
                    update_linear(weight, bias, x, grad, learning_rate, weight_decay)
                grad = below


class _Watch:
    """Sees whether a model has come to do more, or other things, than it did at first.

    Looked at before every update, so by identities alone, gathered once.
    """

    def __init__(self, model: nn.Module, layers: tuple[nn.Module, ...]) -> None:
        modules = list(model.modules())
        self._hooks = [getattr(module, name) for module in modules for name in HOOKS]
        self._hooks += [getattr(of_all_modules, f"_global{name}") for name in HOOKS]
        self._children = [(inner := module._modules, list(inner.values())) for module in modules]
        self._kinds = [(layer, type(layer)) for layer in layers]
        self._held = [(held := layer._parameters, list(held.items())) for layer in layers]
        params = [param for _, items in self._held for _, param in items if param is not None]
        self._params = [(param, param.requires_grad) for param in params]

    def sees_a_change(self) -> bool:
        """Hooks, other layers or parameters, another type of layer, frozen or thawed ones."""
        if any(self._hooks):
            return True
        for modules, children in self._children:
            if list(modules.values()) != children:
                return True
        for layer, kind in self._kinds:
            if type(layer) is not kind:
                return True
        for held, items in self._held:
            if len(held) != len(items):
                return True
            for name, param in items:
                if held.get(name) is not param:
                    return True
        for param, is_trained in self._params:
            if param.requires_grad is not is_trained:
                return True
            if param._backward_hooks or param._post_accumulate_grad_hooks:
                return True
        return False


def _link(layer: nn.Module) -> Link:
    params = layer._parameters
    return Link(
        layer,
        ELEMENTWISE.get(type(layer)),
        params.get("weight"),
        params.get("bias"),
        _is_trained(layer) is True,
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
