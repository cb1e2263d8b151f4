"""Plain SGD on linear layers without ever storing their weight gradients."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from noisescale.problems.models import copy_of
from noisescale.problems.problem import Tree, call_model
from noisescale.problems.random_state import preserved_random_state


class InPlaceSGD(TorchFunctionMode):
    """`F.linear` called in this context updates its weight and bias once their gradient is due.

    The backward pass of a linear layer with input a (B, F) and output gradient δ (B, C) applies W ←
    W − η·δᵀa as one matrix product accumulated into W: the update of `torch.optim.SGD` without
    momentum, up to rounding, without writing, reading or clearing the gradient. At batch size 1 a
    step is bound by memory traffic, and this removes about half of it. With weight decay λ the
    gradient of one layer at a time is written, so that λ·W is added to it before either is rounded.

    One trial forward pass of a copy of the model decides which parameters are *covered*: used
    exactly once, as the weight or bias of `F.linear`. A covered parameter's `.grad` stays None, so
    that an ordinary optimizer over all parameters skips it and serves the others; where the mode
    `covers_all`, there is nothing left for one.

    A model may do in one step what it did not do in the trial. A backward pass inside the context
    is therefore an ordinary one, and `check`, between the context and the step's backward pass,
    leaves to autograd every parameter for which an update in place might be another: see there.
    Without that check, a weight used twice after all raises autograd's error on tensors modified in
    place.

    Args:
        model: whose parameters are updated.
        inputs: of the trial pass (B, *F), or a dict, tuple or list of such.
        learning_rate: η, on the loss as its backward pass has it.
        weight_decay: λ.

    Attributes:
        covered: the names of the covered parameters.
        covers_all: whether they are all that are trained.
        departure: why the latest `check` left covered parameters to autograd; None: it did not.
    """

    def __init__(
        self, model: nn.Module, inputs: Tree, *, learning_rate: float, weight_decay: float = 0.0
    ) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.covered = covered_parameters(model, inputs)
        self.covers_all = self.covered == {
            name for name, param in model.named_parameters() if param.requires_grad
        }
        self.departure: str | None = None
        self.serve(model)

    def serve(self, model: nn.Module) -> None:
        """Turns to the parameters of another copy of the model.

        Args:
            model: the copy.
        """
        self._names = {
            id(param): name for name, param in model.named_parameters() if name in self.covered
        }
        self._uses: dict[int, int] = {}  # in the context, their number by id
        self._obstacles: dict[int, str] = {}  # to an update in place, of its uses there, by id
        self._hidden_use: str | None = None  # in the context
        self._to_update = set(self._names)

    @property
    def served_all(self) -> bool:
        """Whether the latest step leaves nothing for an ordinary optimizer."""
        return self.covers_all and len(self._to_update) == len(self._names)

    @property
    def serves_any(self) -> bool:
        """Whether the latest step updates any parameter in place."""
        return bool(self._to_update)

    def updates(self, *params: Tensor | None) -> bool:
        """Whether a backward pass at this moment would update these parameters in place.

        Args:
            *params: of the model; a bias may be None.
        """
        return all(param is None or id(param) in self._to_update for param in params)

    def __enter__(self) -> Self:
        self._uses.clear()
        self._obstacles.clear()
        self._hidden_use = self.departure = None
        self._to_update = set()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._to_update = set(self._names)

    def check(self, loss: Tensor) -> None:
        """Leaves to autograd what an update in place might do otherwise, and says why.

        To be updated in place, a parameter must have been used in the context by one call of
        `F.linear` and by nothing else, and the graph of the loss must reach it by that call alone.
        None is where a gradient was taken or a hook set in the context, nor where the graph holds a
        function whose backward pass is Python code: any of these may use a parameter unseen, as
        checkpointing does, after it has changed.

        Args:
            loss: whose backward pass follows.
        """
        obstacles = {key: "is used more than once" for key, uses in self._uses.items() if uses > 1}
        obstacles |= self._obstacles
        for node, following in _edges(loss):
            if isinstance(node, BackwardCFunction):
                if getattr(node, "mode", None) is self:
                    continue
                name = type(node).__name__.removesuffix("Backward")
                self._hidden_use = f"{name} has a backward pass of its own"
            key = id(getattr(following, "variable", None))
            if key in self._names:
                obstacles.setdefault(key, "is used otherwise than by a linear layer")
        if self._hidden_use is not None:
            self.departure = self._hidden_use
            self._to_update.clear()
        elif obstacles:
            first = min(obstacles, key=lambda key: self._names[key])
            self.departure = f"the layer of {self._names[first]} {obstacles[first]}"
            self._to_update -= obstacles.keys()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        names, uses = self._names, self._uses
        for value in _opened((*args, *kwargs.values()) if kwargs else args):
            if id(value) in names:
                uses[id(value)] = uses.get(id(value), 0) + 1
        if func is F.linear and not kwargs and id(args[1]) in names:
            inputs, weight, bias = args if len(args) == 3 else (*args, None)
            obstacle = _obstacle(inputs, weight, bias)
            if obstacle is None:
                return _Linear.apply(inputs, weight, bias, self)
            params = [id(param) for param in (weight, bias) if id(param) in names]
            self._obstacles |= dict.fromkeys(params, obstacle)
        elif func is Tensor.register_hook:
            self.hidden_use("a hook is set on a tensor")
        return func(*args, **kwargs) if kwargs else func(*args)

    def hidden_use(self, reason: str) -> None:
        """Notes that in this step nothing can be updated in place.

        Args:
            reason: what was met, for `departure`.
        """
        self._hidden_use = reason


def covered_parameters(model: nn.Module, inputs: Tree) -> set[str]:
    """Names of the parameters used exactly once in a forward pass, as `F.linear`'s weight or bias.

    Weight and bias of a layer count only together. Runs a copy: neither the model's buffers nor any
    random state are touched.
    """
    trial = copy_of(model)
    devices = list({leaf.device for leaf in tree_leaves(inputs) if leaf.is_cuda})
    with preserved_random_state(devices), _Uses() as uses:
        call_model(trial, inputs)
    names = {
        id(param): name
        for name, param in trial.named_parameters()
        if param.requires_grad and param.is_floating_point() and param.layout is torch.strided
    }
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


def _opened(values: tuple[Any, ...]) -> Iterable[Any]:
    """What a torch function was called with, lists and tuples such as torch.cat's opened."""
    if not any(isinstance(value, list | tuple) for value in values):
        return values
    nested = (value if isinstance(value, list | tuple) else (value,) for value in values)
    return itertools.chain.from_iterable(nested)


def _edges(loss: Tensor) -> Iterator[tuple[Any, Any]]:
    """The graph of a loss: each function with each of those that its gradients go to."""
    nodes = [] if loss.grad_fn is None else [loss.grad_fn]
    seen = set(nodes)
    while nodes:
        node = nodes.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            yield node, following
            if following not in seen:
                seen.add(following)
                nodes.append(following)


def _obstacle(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """What keeps `_Linear` from standing in for this call of `F.linear`; None: nothing does."""
    params = [weight] if bias is None else [weight, bias]
    if not torch.is_grad_enabled():
        return "runs without gradients"
    if any(param._backward_hooks or param._post_accumulate_grad_hooks for param in params):
        return "has hooks on its gradient"
    if torch.is_autocast_enabled(inputs.device.type):
        return "runs under autocast"
    transformed = torch._C._are_functorch_transforms_active()
    if transformed or forward_ad.unpack_dual(inputs).tangent is not None:
        return "runs in a transform of torch.func"
    if _saved_tensors_hooked():
        return "has its saved tensors taken by hooks, as by checkpointing"
    is_common = type(inputs) in (Tensor, nn.Parameter) and inputs.layout is torch.strided
    if not is_common or any(param.dtype != inputs.dtype for param in params):
        return "has inputs of another kind"
    return None


def _saved_tensors_hooked() -> bool:
    """Whether hooks take what autograd saves at this moment."""
    try:
        with disable_saved_tensors_hooks("are in use"):
            return False
    except RuntimeError:
        return True


class _Linear(torch.autograd.Function):
    """`F.linear` whose backward pass updates the weight and bias it was called with.

    Where its mode does not say so it is an ordinary one, which may be differentiated again.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None, mode: InPlaceSGD
    ) -> Tensor:
        ctx.save_for_backward(inputs, weight, bias)
        ctx.set_materialize_grads(False)
        ctx.mode = mode
        return F.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, weight, bias = ctx.saved_tensors
        (grad,) = grad_outputs
        if grad is None:  # nothing flows here, and autograd stores no gradient
            return None, None, None, None
        # before the weight changes
        grad_inputs = grad @ weight if ctx.needs_input_grad[0] else None
        mode = ctx.mode
        if mode.updates(weight, bias):
            update_linear(weight, bias, inputs, grad, mode.learning_rate, mode.weight_decay)
            return grad_inputs, None, None, None
        mode.hidden_use("a gradient is taken in the forward pass or in the loss")
        inputs, grad = _rows(inputs), _rows(grad)
        grad_weight = grad.T @ inputs
        grad_bias = None if bias is None else grad.sum(0)
        return grad_inputs, grad_weight, grad_bias, None


def update_linear(
    weight: Tensor,
    bias: Tensor | None,
    inputs: Tensor,
    grad: Tensor,
    learning_rate: float,
    weight_decay: float,
) -> None:
    """The step of SGD on a linear layer, by what came in and the gradient of what went out.

    Args:
        weight: (C, F), changed in place.
        bias: (C,), changed in place, or none.
        inputs: (..., F).
        grad: (..., C).
        learning_rate: η.
        weight_decay: λ.
    """
    if grad.dim() != 2:
        inputs, grad = _rows(inputs), _rows(grad)
    is_single = grad.shape[0] == 1  # len() takes as long as a small update
    if weight_decay:  # 1 − η·λ would be 1 in float32 where they are small
        _decayed_step(weight, grad.T @ inputs, learning_rate, weight_decay)
    elif is_single:  # elementwise kernels beat BLAS at an outer product
        weight.addcmul_(grad.T, inputs, value=-learning_rate)
    else:
        weight.addmm_(grad.T, inputs, alpha=-learning_rate)
    if bias is None:
        return
    of_bias = grad[0] if is_single else grad.sum(0)
    if weight_decay:
        _decayed_step(bias, of_bias, learning_rate, weight_decay)
    else:
        bias.sub_(of_bias, alpha=learning_rate)


def _decayed_step(param: Tensor, grad: Tensor, learning_rate: float, weight_decay: float) -> None:
    """θ ← θ − η·(g + λ·θ), as `torch.optim.SGD` computes it."""
    param.sub_(grad.add(param, alpha=weight_decay), alpha=learning_rate)


def _rows(tensor: Tensor) -> Tensor:
    """(..., F) as (B', F)."""
    return tensor if tensor.dim() == 2 else tensor.reshape(-1, tensor.shape[-1])
