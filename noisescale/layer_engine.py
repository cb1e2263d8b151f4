"""Norms of per-example gradients from the inputs of layers and the gradients of their outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_unflatten

from noisescale.factored_gradients import (
    TEMPORARY_BYTES,
    ExampleGradients,
    projections,
    squared_norms,
)
from noisescale.gradient_engine import ChunkStatistics
from noisescale.gradient_rules import RULES, by_vmap
from noisescale.objective import Objective, plain_attention
from noisescale.problem import Examples, Params
from noisescale.vmap_engine import example_gradients

COMPARED = 2  # examples that are compared with backward passes of their own
LARGEST_CHUNK = 1024  # examples on a CPU, whose caches more would leave


class _Call(NamedTuple):
    """One use of a module in a forward pass."""

    unit: _Unit
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    gradients: list[Tensor | None]  # of the outputs that depend on parameters


class _Unit(NamedTuple):
    """A module whose parameters are handled together, by a rule of its own or through vmap."""

    module: nn.Module
    names: dict[str, str]  # of its differentiated parameters: the module's name -> the model's
    has_rule: bool


class LayerEngine:
    """Norms from the inputs of layers and the gradients of their outputs, by the rules of `gradient_rules`.

    One forward and one backward pass over the batch as a whole, from which the summed gradient falls out;
    projections take one more without the products that give weights their gradients. A parameter that is
    not used by the module it belongs to, or not along a first dimension of examples (positions that are
    embedded once for all), goes through vmap of the whole model's gradient with respect to it alone.

    probe: a few examples, on which single-example backward passes tell those parameters from the others.
    """

    name = "hooks"

    def __init__(self, objective: Objective, probe: Examples) -> None:
        self.objective = objective
        if objective.device.type == "cpu":
            objective.cap_chunk_size(LARGEST_CHUNK)
        self.params = objective.params()
        self._model = objective.instance(self.params)
        self._calls: list[_Call] = []
        self._anchors: list[Tensor] = []
        self._recording = False
        names = {id(tensor): name for name, tensor in self.params.items()}
        self.elsewhere = set(self.params)  # the parameters left to the vmap of the whole model
        for module in dict.fromkeys(_units(self._model)):  # one that is used in two places only once
            own = {
                own_name: names[id(tensor)]
                for own_name, tensor in module.named_parameters(remove_duplicate=False)
                if id(tensor) in names
            }
            if own:
                unit = _Unit(module, own, type(module) in RULES)
                module.register_forward_hook(partial(self._record, unit), with_kwargs=True)
                self.elsewhere -= set(own.values())
        self._repeated: set[int] = set()  # the calls whose outputs are repeated for every example
        self._count = 0  # of the examples in the present pass
        self._batched = self._which_arguments_hold_examples(probe)
        once = {number for number, batched in enumerate(self._batched) if not any(batched)}
        if not (once and self._divide(probe, once)):
            self._divide(probe, set())
        if num_elsewhere := sum(self.params[name].numel() for name in self.elsewhere):
            objective.cap_chunk_size(TEMPORARY_BYTES // (num_elsewhere * objective.point.element_size()))

    def statistics(self, chunk: Examples) -> ChunkStatistics:
        losses = self._forward(chunk, differentiate=True)
        leaves = list(self.params.values())
        gradient = torch.autograd.grad(losses.sum(), leaves, materialize_grads=True)
        pieces = self._pieces() | self._by_vmap_of_the_whole(chunk)
        norms = [self._norms(pieces[name], len(losses)) for name in self.params]
        return ChunkStatistics(losses.detach(), torch.stack(norms, 1), gradient)

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        losses = self._forward(chunk, differentiate=False)
        if self._anchors:
            torch.autograd.grad(losses.sum(), self._anchors, allow_unused=True)
        pieces = self._pieces() | self._by_vmap_of_the_whole(chunk)
        nothing = losses.new_zeros(len(losses), dtype=torch.float64)
        found = [
            projections(pieces[name], direction[name]) if pieces[name] else nothing
            for direction in directions
            for name in self.params
        ]
        by_tensor: Tensor = torch.stack(found).unflatten(0, (len(directions), -1))  # (K, L, B)
        return by_tensor.mT

    def _which_arguments_hold_examples(self, probe: Examples) -> list[list[bool]]:
        """Of each call in a forward pass: the arguments whose first dimension follows the batch's."""
        sizes = []
        for count in (1, 2):
            self._forward(probe.part(slice(count)), differentiate=True)
            sizes.append([_sizes(call) for call in self._calls])
        if len(sizes[0]) != len(sizes[1]):  # which modules run depends on the batch
            self.elsewhere = set(self.params)
            return [[] for _ in sizes[1]]
        return [[one != two for one, two in zip(*both, strict=False)] for both in zip(*sizes, strict=True)]

    def _divide(self, probe: Examples, repeated: set[int]) -> bool:
        """Finds the parameters whose norms by the rules are not those of single-example backward passes.

        repeated: calls that hold no examples, as that of an embedding of positions, and whose outputs are to
        be repeated for each. Returns whether that did no harm, and the norms of their parameters are right.
        """
        found_before = self.elsewhere.copy()
        self._repeated = repeated
        probe = probe.part(slice(COMPARED))
        count = probe.num_examples
        wanted = torch.stack([self._alone(probe.part(slice(i, i + 1))) for i in range(count)])
        precision = torch.finfo(self.objective.dtype).eps
        floor = precision * float(wanted.sum(1).max())
        try:
            losses = self._forward(probe, differentiate=True)
            torch.autograd.grad(losses.sum(), list(self.params.values()), allow_unused=True)
        except (RuntimeError, ValueError, TypeError, IndexError):
            if not repeated:
                raise
            return False  # the model does not take the repeated outputs
        once: set[str] = set()
        for number, call in enumerate(self._calls):
            if not any(self._batched[number]):
                once |= set(call.unit.names.values())
        if not repeated:
            self.elsewhere |= once
        pieces = self._pieces(forgiving=True)
        for index, name in enumerate(self.params):
            try:
                found = self._norms(pieces[name], count)
            except RuntimeError:  # shapes that do not go together
                self.elsewhere.add(name)
                continue
            if not torch.allclose(found, wanted[:, index], rtol=10 * precision**0.5, atol=floor):
                self.elsewhere.add(name)
        if repeated and once & self.elsewhere:
            self.elsewhere = found_before
            return False
        return True

    def _alone(self, example: Examples) -> Tensor:
        gradient = self.objective.on(example).value_and_gradient()[1]
        parts = self.objective.unflatten(gradient.double()).values()
        return torch.stack([part.square().sum() for part in parts])

    def _forward(self, chunk: Examples, *, differentiate: bool) -> Tensor:
        """The losses (B,), their calls recorded; without `differentiate` for the outputs' gradients alone."""
        self._calls.clear()
        self._anchors.clear()
        self._count = chunk.num_examples
        for param in self.params.values():
            param.requires_grad_(differentiate)
        self._recording = True
        with plain_attention():
            outputs = self._model(self.objective.cast(chunk.inputs))
        self._recording = False
        return self.objective.losses(outputs, chunk.targets)

    def _record(
        self,
        unit: _Unit,
        module: nn.Module,
        arguments: tuple[Any, ...],
        keywords: dict[str, Any],
        output: Any,
    ) -> Any:
        """Notes a call and asks for the gradients of its outputs, which may later be changed in place."""
        if not self._recording:
            return output
        leaves, structure = tree_flatten(output)
        repeat = len(self._calls) in self._repeated and unit.has_rule
        if repeat:
            arguments = tuple(self._for_every_example(arguments))
            leaves = self._for_every_example(leaves)
        call = _Call(unit, arguments, keywords, [])
        self._calls.append(call)
        for index, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                continue
            if not leaf.requires_grad:
                anchor = leaf.detach().requires_grad_()
                self._anchors.append(anchor)
                leaves[index] = leaf = anchor.clone()  # a leaf itself must not be changed in place
            slot = len(call.gradients)
            call.gradients.append(None)
            leaf.register_hook(partial(_keep, call.gradients, slot))
        return tree_unflatten(leaves, structure)

    def _for_every_example(self, values: Sequence[Any]) -> list[Any]:
        """Tensors (...) or (1, ...) as (B, ...)."""
        return [
            value.expand(self._count, *value.shape[len(value.shape) > 0 and value.shape[0] == 1 :])
            for value in values
        ]

    def _pieces(self, *, forgiving: bool = False) -> dict[str, list[ExampleGradients]]:
        """The gradients of the single examples, by parameter, from the recorded calls.

        forgiving: parameters of a call that its rule cannot take are left to the vmap of the whole model.
        """
        pieces: dict[str, list[ExampleGradients]] = {name: [] for name in self.params}
        for number, call in enumerate(self._calls):
            names = call.unit.names
            unused = all(gradient is None for gradient in call.gradients)
            if unused or self.elsewhere >= set(names.values()):
                continue
            try:
                found = self._apply_rule(call) if call.unit.has_rule else self._apply_vmap(number, call)
            except (RuntimeError, ValueError, TypeError, IndexError):
                if not forgiving:
                    raise
                self.elsewhere |= set(names.values())
                continue
            for name, gradients in found.items():
                if name in names:
                    pieces[names[name]].append(gradients)
        self._calls.clear()
        self._anchors.clear()
        return pieces

    def _norms(self, pieces: list[ExampleGradients], count: int) -> Tensor:
        if not pieces:
            return torch.zeros(count, dtype=torch.float64, device=self.objective.device)
        return squared_norms(pieces)

    def _by_vmap_of_the_whole(self, chunk: Examples) -> dict[str, list[ExampleGradients]]:
        """The written-out gradients (B, *shape) of the parameters that are elsewhere."""
        if not self.elsewhere:
            return {}
        gradients, _ = example_gradients(self.objective, self.params, chunk, sorted(self.elsewhere))
        return {name: [gradient] for name, gradient in gradients.items()}

    def _apply_rule(self, call: _Call) -> dict[str, ExampleGradients]:
        (inputs,) = [*call.arguments, *call.keywords.values()]
        (gradient,) = call.gradients
        assert gradient is not None
        with torch.no_grad():
            return RULES[type(call.unit.module)](call.unit.module, inputs.detach(), gradient)

    def _apply_vmap(self, number: int, call: _Call) -> dict[str, ExampleGradients]:
        arguments, structure = tree_flatten((call.arguments, call.keywords))
        wanted = [index for index, gradient in enumerate(call.gradients) if gradient is not None]
        constants = {
            name: tensor.detach()
            for name, tensor in [*call.unit.module.named_parameters(), *call.unit.module.named_buffers()]
            if name not in call.unit.names
        }

        def outputs(module: nn.Module, params: Params, arguments: list[Any]) -> list[Tensor]:
            args, kwargs = tree_unflatten(arguments, structure)
            with plain_attention():
                found = functional_call(module, (params, constants), args, kwargs)
            leaves = [
                leaf
                for leaf in tree_flatten(found)[0]
                if isinstance(leaf, Tensor) and leaf.is_floating_point()
            ]
            return [leaves[index] for index in wanted]

        return by_vmap(
            call.unit.module,
            {name: self.params[of_model].detach() for name, of_model in call.unit.names.items()},
            [one.detach() if isinstance(one, Tensor) else one for one in arguments],
            self._batched[number],
            outputs,
            [gradient for gradient in call.gradients if gradient is not None],
        )


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose parameters are handled together.

    Those with a rule; others with parameters of their own that no module below uses, or that are torch's,
    as MultiheadAttention, which uses the weights of its parts without calling them.
    """
    has_own = next(module.parameters(recurse=False), None) is not None
    is_leaf = not any(True for child in module.children() for _ in child.parameters())
    if type(module) in RULES or (has_own and (is_leaf or module.__module__.startswith("torch.nn."))):
        yield module
        return
    for child in module.children():
        yield from _units(child)


def _sizes(call: _Call) -> list[int | None]:
    """The first dimension of each argument of a call, None of what is no tensor."""
    leaves = tree_flatten((call.arguments, call.keywords))[0]
    return [leaf.shape[0] if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves]


def _keep(gradients: list[Tensor | None], slot: int, gradient: Tensor) -> None:
    gradients[slot] = gradient.detach()
