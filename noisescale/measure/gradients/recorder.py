"""What goes into and out of a model's layers in a pass, and the per-example gradients that follow from it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils._pytree import tree_flatten, tree_unflatten

from noisescale.measure.gradients.example_map import ExampleMap
from noisescale.measure.gradients.factors import ExampleGradients
from noisescale.measure.gradients.rules import RULES
from noisescale.measure.objective import Objective, plain_attention
from noisescale.problems.problem import Examples, Params


class Unit(NamedTuple):
    """A module whose parameters are handled together, by a rule of its own or through vmap."""

    module: nn.Module
    names: dict[str, str]  # of its differentiated parameters: the module's name -> the model's
    has_rule: bool


class Call(NamedTuple):
    """One use of a module in a forward pass, the number-th of the pass."""

    number: int
    unit: Unit
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    gradients: list[
        Tensor | None
    ]  # of the outputs that are floating-point tensors, after the backward pass

    @property
    def parameters(self) -> set[str]:
        """The model's names of the parameters it uses."""
        return set(self.unit.names.values())


class LayerRecorder:
    """A copy of the objective's model, in evaluation mode, that notes its layers' calls.

    params: its parameters, leaves by name. units: the modules that are recorded. calls: of the latest pass.
    maps: of the modules without a rule, by type, how their examples are gone through.
    repeated: numbers of calls that hold no examples, as that of an embedding of positions, whose outputs are
    to be repeated for every example, so that each gets a gradient of its own; none unless set.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.params = objective.params()
        self.repeated: set[int] = set()
        self.calls: list[Call] = []
        self.units: list[Unit] = []
        self._model = objective.instance(self.params)
        self.maps: dict[str, ExampleMap] = {}
        self._anchors: list[Tensor] = []
        self._count = 0  # of the examples in the present pass
        self._recording = False
        names = {id(tensor): name for name, tensor in self.params.items()}
        for module in dict.fromkeys(
            _modules(self._model)
        ):  # one that is used in two places only once
            own = {
                own_name: names[id(tensor)]
                for own_name, tensor in module.named_parameters(remove_duplicate=False)
                if id(tensor) in names
            }
            if own:
                self.units.append(Unit(module, own, type(module) in RULES))
                # by a proxy: a cycle would keep the examples until the next garbage collection
                record = partial(LayerRecorder._record, weakref.proxy(self), self.units[-1])
                module.register_forward_hook(record, with_kwargs=True)

    def forward(self, chunk: Examples, *, parameters: bool) -> Tensor:
        """The losses (B,), the calls recorded.

        parameters: whether the backward pass goes to them, or no further than to the layers' outputs.
        """
        self.calls.clear()
        self._anchors.clear()
        self._count = chunk.num_examples
        for param in self.params.values():
            param.requires_grad_(parameters)
        self._recording = True
        with plain_attention():
            outputs = self._model(self.objective.cast(chunk.inputs))
        self._recording = False
        return self.objective.losses(outputs, chunk.targets)

    def backward(self, losses: Tensor) -> Sequence[Tensor]:
        """The summed gradient by parameter, empty after a pass without; the calls get their outputs' own."""
        leaves = [leaf for leaf in self.params.values() if leaf.requires_grad]
        if leaves:
            gradients = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
            return [part.detach() for part in gradients]  # torch 2.6 makes zeros that require grad
        if self._anchors and losses.requires_grad:
            torch.autograd.grad(losses.sum(), self._anchors, allow_unused=True)
        return ()

    def gradients(self, call: Call, holds_examples: Sequence[bool]) -> dict[str, ExampleGradients]:
        """The gradients of the single examples from one call, by the model's names.

        holds_examples: which of its arguments, flat, have a first dimension of examples.
        """
        unit = call.unit
        found = _by_rule(call) if unit.has_rule else self._by_vmap(call, holds_examples)
        return {
            unit.names[name]: gradients for name, gradients in found.items() if name in unit.names
        }

    def _record(
        self,
        unit: Unit,
        module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Any,
    ) -> Any:
        """Notes a call and asks for the gradients of its outputs, which may later be changed in place."""
        if not self._recording:
            return output
        leaves, structure = tree_flatten(output)
        if len(self.calls) in self.repeated and unit.has_rule:
            arguments = tuple(map(self._for_every_example, arguments))
            leaves = [self._for_every_example(leaf) for leaf in leaves]
        call = Call(len(self.calls), unit, arguments, keywords, [])
        self.calls.append(call)
        for index, leaf in enumerate(leaves):
            if not _is_differentiable(leaf):
                continue
            if not leaf.requires_grad:
                anchor = leaf.detach().requires_grad_()
                self._anchors.append(anchor)
                leaves[index] = leaf = anchor.clone()  # a leaf itself must not be changed in place
            slot = len(call.gradients)
            call.gradients.append(None)
            leaf.register_hook(partial(_keep, call.gradients, slot))
        return tree_unflatten(leaves, structure)

    def _for_every_example(self, value: Tensor) -> Tensor:
        """(...) or (1, ...) -> (B, ...)."""
        return value.expand(self._count, *value.shape[value.shape[:1] == (1,) :])

    def _by_vmap(self, call: Call, holds_examples: Sequence[bool]) -> dict[str, ExampleGradients]:
        """For any module: the gradients of Σ output·(the loss's gradient in it), example by example."""
        module, names = call.unit.module, call.unit.names
        arguments, structure = tree_flatten((call.arguments, call.keywords))
        arguments = [one.detach() if isinstance(one, Tensor) else one for one in arguments]
        gradients = [gradient for gradient in call.gradients if gradient is not None]
        state = [*module.named_parameters(), *module.named_buffers()]
        constants = {name: tensor.detach() for name, tensor in state if name not in names}

        def product(params: Params, example: list[Any], of_outputs: list[Tensor]) -> Tensor:
            given = [
                one.unsqueeze(0) if batched else one
                for one, batched in zip(example, holds_examples, strict=True)
            ]
            args, kwargs = tree_unflatten(given, structure)
            with plain_attention():
                outputs = functional_call(module, (params, constants), args, kwargs)
            leaves = [leaf for leaf in tree_flatten(outputs)[0] if _is_differentiable(leaf)]
            used = [
                leaf
                for leaf, gradient in zip(leaves, call.gradients, strict=True)
                if gradient is not None
            ]
            pairs = zip(used, of_outputs, strict=True)
            return torch.stack(
                [(leaf.squeeze(0) * gradient).sum() for leaf, gradient in pairs]
            ).sum()

        params = {name: self.params[of_model].detach() for name, of_model in names.items()}
        dims = (None, [0 if batched else None for batched in holds_examples], 0)
        each = self.maps.setdefault(type(module).__name__, ExampleMap())
        found: dict[str, ExampleGradients] = each(
            grad(product), dims, self._count, (params, arguments, gradients)
        )
        return found


def first_sizes(call: Call) -> list[int | None]:
    """The first dimension of each argument of a call, flat; None of what is no tensor."""
    leaves = tree_flatten((call.arguments, call.keywords))[0]
    return [leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves]


def _by_rule(call: Call) -> dict[str, ExampleGradients]:
    (inputs,) = [*call.arguments, *call.keywords.values()]
    (gradient,) = call.gradients
    assert gradient is not None
    with torch.no_grad():
        return RULES[type(call.unit.module)](call.unit.module, inputs.detach(), gradient)


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose parameters are handled together.

    Those with a rule; others with parameters of their own that no module below uses, or that are torch's,
    as MultiheadAttention, which uses the weights of its parts without calling them.
    """
    has_own = next(module.parameters(recurse=False), None) is not None
    is_leaf = not any(True for child in module.children() for _ in child.parameters())
    if type(module) in RULES or (
        has_own and (is_leaf or module.__module__.startswith("torch.nn."))
    ):
        yield module
        return
    for child in module.children():
        yield from _modules(child)


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _keep(gradients: list[Tensor | None], slot: int, gradient: Tensor) -> None:
    gradients[slot] = gradient.detach()
