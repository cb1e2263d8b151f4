"""What goes into and out of a model's layers, and the per-example gradients that follow from it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.utils._pytree import tree_flatten, tree_unflatten

from noisescale.measure.gradients.example_map import ExampleMap
from noisescale.measure.gradients.factors import ExampleGradients
from noisescale.measure.gradients.rules import RULES
from noisescale.measure.objective import Objective, as_measured
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
    # of the outputs that are floating-point tensors, after the backward pass
    gradients: list[Tensor | None]

    @property
    def parameters(self) -> set[str]:
        """The model's names of the parameters it uses."""
        return set(self.unit.names.values())

    @property
    def is_used(self) -> bool:
        """Whether the loss depends on it, as far as the backward pass has shown."""
        return any(gradient is not None for gradient in self.gradients)


class LayerRecorder:
    """A copy of the objective's model, in evaluation mode, that notes its layers' calls.

    params: its parameters, leaves by name.
    units: the modules that are recorded.
    calls: of the latest pass.
    maps: of the modules without a rule, by type, how their examples are gone through.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.params = objective.params()
        self.calls: list[Call] = []
        self.units: list[Unit] = []
        self._model = objective.instance(self.params)
        self.maps: dict[str, ExampleMap] = {}
        self._anchors: list[Tensor] = []
        self._num_examples = 0  # in the present pass
        self._repeated: Set[int] = frozenset()  # in the present pass, by number
        self._recording = False
        names = {id(tensor): name for name, tensor in self.params.items()}
        for module in dict.fromkeys(_modules(self._model)):  # one used in two places only once
            of_module = {
                name_in_module: names[id(tensor)]
                for name_in_module, tensor in module.named_parameters(remove_duplicate=False)
                if id(tensor) in names
            }
            if of_module:
                self.units.append(Unit(module, of_module, type(module) in RULES))
                # by a proxy: a cycle would keep the examples until the next garbage collection
                record = partial(LayerRecorder._record, weakref.proxy(self), self.units[-1])
                module.register_forward_hook(record, with_kwargs=True)

    def forward(
        self, chunk: Examples, *, parameters: bool, repeated: Set[int] = frozenset()
    ) -> Tensor:
        """The losses (B,), the calls recorded.

        Args:
            chunk: the examples.
            parameters: whether the backward pass goes to them, or no further than to the layers'
                outputs.
            repeated: numbers of calls that hold no examples, as that of an embedding of positions,
                whose outputs are repeated for every example, so that each gets a gradient of its
                own.
        """
        self.calls.clear()
        self._anchors.clear()
        self._num_examples = chunk.num_examples
        self._repeated = repeated
        for param in self.params.values():
            param.requires_grad_(parameters)
        self._recording = True
        outputs = self.objective.call(self._model, chunk.inputs)
        self._recording = False
        return self.objective.losses(outputs, chunk.targets)

    def backward(self, losses: Tensor) -> Sequence[Tensor]:
        """The summed gradient by parameter, empty after a pass without parameters.

        The calls get the gradients of their outputs.
        """
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
        by_name = _by_rule(call) if unit.has_rule else self._by_vmap(call, holds_examples)
        return {
            unit.names[name]: gradients for name, gradients in by_name.items() if name in unit.names
        }

    def _record(
        self,
        unit: Unit,
        module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Any,
    ) -> Any:
        """Notes a call and has its outputs' gradients kept; they may later be changed in place."""
        if not self._recording:
            return output
        leaves, structure = tree_flatten(output)
        if len(self.calls) in self._repeated and unit.has_rule:
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
        return value.expand(self._num_examples, *value.shape[value.shape[:1] == (1,) :])

    def _by_vmap(self, call: Call, holds_examples: Sequence[bool]) -> dict[str, ExampleGradients]:
        """The gradients of Σ output·(the loss's gradient in it) of any module, for each example."""
        module, names = call.unit.module, call.unit.names
        arguments, structure = tree_flatten((call.arguments, call.keywords))
        arguments = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in arguments]
        gradients = [gradient for gradient in call.gradients if gradient is not None]
        state = [*module.named_parameters(), *module.named_buffers()]
        constants = {name: tensor.detach() for name, tensor in state if name not in names}

        def product(params: Params, example: list[Any], of_outputs: list[Tensor]) -> Tensor:
            batch_of_one = [
                leaf.unsqueeze(0) if batched else leaf
                for leaf, batched in zip(example, holds_examples, strict=True)
            ]
            args, kwargs = tree_unflatten(batch_of_one, structure)
            with as_measured():
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
        by_name: dict[str, ExampleGradients] = each(
            grad(product), dims, self._num_examples, (params, arguments, gradients)
        )
        return by_name


def first_sizes(call: Call) -> list[int | None]:
    """The first dimension of each argument of a call, flat; None of what is no tensor."""
    leaves = tree_flatten((call.arguments, call.keywords))[0]
    return [leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves]


def _by_rule(call: Call) -> dict[str, ExampleGradients]:
    """The gradients of the single examples by the rule of the module's type."""
    (inputs,) = [*call.arguments, *call.keywords.values()]
    (gradient,) = call.gradients
    assert gradient is not None
    with torch.no_grad():
        return RULES[type(call.unit.module)](call.unit.module, inputs.detach(), gradient)


def _modules(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose parameters are handled together.

    Those with a rule; others with parameters of their own that no module below uses, or that are
    torch's, as MultiheadAttention, which uses the weights of its parts without calling them.
    """
    has_parameters = next(module.parameters(recurse=False), None) is not None
    is_leaf = not any(True for child in module.children() for _ in child.parameters())
    if type(module) in RULES or (
        has_parameters and (is_leaf or module.__module__.startswith("torch.nn."))
    ):
        yield module
        return
    for child in module.children():
        yield from _modules(child)


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _keep(gradients: list[Tensor | None], slot: int, gradient: Tensor) -> None:
    gradients[slot] = gradient.detach()
