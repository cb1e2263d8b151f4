"""Plain SGD on linear layers without ever storing their weight gradients."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from noisescale.problems.problem import Tree, call_model
from noisescale.problems.random_state import preserved_random_state


class InPlaceSGD(TorchFunctionMode):
    """Inside this context `F.linear` updates its weight and bias once their gradient is due.

    The backward pass of a linear layer with input a (B, F) and output gradient δ (B, C) applies W ←
    (1 − η·λ)·W − η·δᵀa as one matrix product accumulated into W: the update of `torch.optim.SGD`
    with weight decay λ and no momentum, up to rounding, without writing, reading or clearing the
    gradient. At batch size 1 a step is bound by memory traffic, and this removes about half of it.

    One trial forward pass of a copy of the model decides which parameters are *covered*: used
    exactly once, as the weight or bias of `F.linear`. A covered parameter's `.grad` stays None, so
    that an ordinary optimizer over all parameters skips it and serves the others; where the mode
    `covers_all`, there is nothing left for one. A weight that turns out to be used twice in one
    pass after all raises autograd's error on tensors modified in place: a wrong gradient is never
    used.

    Args:
        model: whose parameters are updated.
        inputs: of the trial pass (B, *F), or a dict, tuple or list of such.
        learning_rate: η, on the loss as its backward pass has it.
        weight_decay: λ.
    """

    def __init__(
        self, model: nn.Module, inputs: Tree, *, learning_rate: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        covered = covered_parameters(model, inputs)
        self.covered = covered
        self.covers_all = covered == {
            name for name, param in model.named_parameters() if param.requires_grad
        }
        self._ids = {id(param) for name, param in model.named_parameters() if name in covered}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs and id(args[1]) in self._ids:
            bias = args[2] if len(args) > 2 else None
            return _Linear.apply(args[0], args[1], bias, self.learning_rate, self.weight_decay)
        return func(*args, **(kwargs or {}))


def covered_parameters(model: nn.Module, inputs: Tree) -> set[str]:
    """Names of the parameters used exactly once in a forward pass, as `F.linear`'s weight or bias.

    Weight and bias of a layer count only together. Runs a copy: neither the model's buffers nor any
    random state are touched.
    """
    trial = copy.deepcopy(model)
    devices = list({leaf.device for leaf in tree_leaves(inputs) if leaf.is_cuda})
    with preserved_random_state(devices), torch.no_grad(), _Uses() as uses:
        call_model(trial, inputs)
    names = {id(param): name for name, param in trial.named_parameters() if param.requires_grad}
    return {
        names[id(param)]
        for layer in uses.linear_layers
        if all(id(param) in names and uses.counts[id(param)] == 1 for param in layer)
        for param in layer
    }


class _Uses(TorchFunctionMode):
    """Counts the calls of each parameter, and notes the (weight, bias) pairs of `F.linear`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()
        self.linear_layers: list[tuple[Tensor, ...]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        values = torch.utils._pytree.tree_leaves((args, kwargs or {}))
        self.counts.update(id(value) for value in values if isinstance(value, nn.Parameter))
        if func is F.linear and not kwargs and isinstance(args[1], nn.Parameter):
            self.linear_layers.append(tuple(param for param in args[1:] if param is not None))
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """`F.linear` whose backward pass updates the weight and bias it was called with."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        learning_rate: float,
        weight_decay: float,
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, bias)
        ctx.learning_rate = learning_rate
        ctx.keep = 1.0 - learning_rate * weight_decay
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight, bias = ctx.saved_tensors
        (grad,) = grad_outputs
        # before the weight changes
        grad_inputs = grad @ weight if ctx.needs_input_grad[0] else None
        grad = grad.reshape(-1, grad.shape[-1])  # (..., C) -> (B', C)
        inputs = inputs.reshape(-1, inputs.shape[-1])  # (..., F) -> (B', F)
        if len(grad) == 1 and ctx.keep == 1.0:  # elementwise kernels beat BLAS at an outer product
            weight.addcmul_(grad.T, inputs, value=-ctx.learning_rate)
        else:
            weight.addmm_(grad.T, inputs, beta=ctx.keep, alpha=-ctx.learning_rate)
        if bias is not None:
            if ctx.keep != 1.0:
                bias.mul_(ctx.keep)
            bias.sub_(grad.sum(0), alpha=ctx.learning_rate)
        return grad_inputs, None, None, None, None
