"""Norms of per-example gradients from the inputs of operations and the gradients of outputs."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from noisescale.measure.gradients.engine import (
    ChunkStatistics,
    EngineError,
    EngineName,
    whatever_fails,
)
from noisescale.measure.gradients.layers.factors import ExampleGradients, Outer, Pulled
from noisescale.measure.gradients.layers.modules import rules_of_modules
from noisescale.measure.gradients.layers.summaries import (
    Summary,
    coordinate_sums,
    project_all,
    summarise,
)
from noisescale.measure.gradients.layers.uses import (
    ParameterUses,
    Pass,
    Plan,
    Source,
    UnforeseenError,
    Use,
    make_plan,
)
from noisescale.measure.gradients.loop import LoopEngine
from noisescale.measure.gradients.rules import OPERATIONS, RULES
from noisescale.measure.gradients.vmap import VmapEngine
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Params

LARGEST_CPU_CHUNK = 2048  # examples, beside which a pass over the parameters is little

Result = TypeVar("Result")
Pieces = dict[str, list[ExampleGradients]]  # by source


class LayerEngine:
    """Norms by the rules of operations, at about the price of one gradient.

    One forward and one backward pass over the chunk as a whole, in which the parameters take no
    part: where an operation uses one, the per-example gradients follow from its input and its
    output's gradient as soon as the backward pass has that; their norms are taken, their sum is
    kept, and they are gone. Projections are taken in the same way in a pass of their own. The
    parameters that are not reached go through vmap of the whole model's gradient with respect to
    them alone, or through a loop of backward passes.

    Args:
        objective: the point, the examples and the chunk size.

    Attributes:
        unreached: the parameters that no rule covers, and why.

    Raises:
        EngineError: no parameter is reached.
    """

    name: EngineName = "hooks"

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        if objective.device.type == "cpu":
            objective.cap_chunk_size(LARGEST_CPU_CHUNK)
        self.params = objective.params()
        self.unreached: dict[str, str] = {}
        self._rest: VmapEngine | LoopEngine | None = None
        self._model = objective.instance(self.params)
        self._rules = OPERATIONS | rules_of_modules(self._model, RULES)
        self._plans: dict[tuple[torch.Size, ...], Plan] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.unreached:
            return ()
        names = sorted(self.unreached)
        listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        reasons = "; ".join(sorted(set(self.unreached.values())))
        way = "one by one" if isinstance(self._rest, LoopEngine) else "through vmap"
        return (
            f"{listed}: {reasons} (sums, products, matrix products, nn.Linear and nn.Embedding "
            "have one, and `gradient_rule` gives a module its own), so many times slower by "
            f"gradients of the whole model, {way}",
        )

    def statistics(self, chunk: Examples, weights: Params | None = None) -> ChunkStatistics:
        return self._once_foreseen(lambda: self._statistics(chunk, weights))

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        return self._once_foreseen(lambda: self._projections(chunk, directions))

    def coordinate_sums(self, chunk: Examples) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return self._once_foreseen(lambda: self._coordinate_sums(chunk))

    def give_up(self, names: Iterable[str], reason: str) -> None:
        """Reaches parameters through the whole model from now on.

        Args:
            names: of the parameters.
            reason: why.

        Raises:
            EngineError: none is left.
        """
        for name in names:
            self.unreached.setdefault(name, reason)
            self.params[name].requires_grad_(False)
        if len(self.unreached) == len(self.params):
            raise EngineError(f"the engine hooks reaches no parameter: {reason}")
        engine = LoopEngine if isinstance(self._rest, LoopEngine) else VmapEngine
        self._rest = engine(self.objective, list(self.unreached))

    def _once_foreseen(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, when all parameters that are not reached have shown themselves.

        A pass that meets one ends there and is begun again; those before it had been right.
        """
        while True:
            try:
                with whatever_fails(self.name, self.objective):
                    return work()
            except UnforeseenError as error:
                if error.names <= self.unreached.keys():
                    raise EngineError(f"the engine hooks gets no further: {error}") from error
                self.give_up(error.names, str(error))

    def _statistics(self, chunk: Examples, weights: Params | None) -> ChunkStatistics:
        of_each: Params = weights or {}
        summaries: dict[str, Summary] = {}
        held: Pieces = defaultdict(list)

        def receive(use: Use, gradient: Tensor) -> None:
            for source, pieces in _by_source(use, gradient):
                if source.is_parameter and current.counts[source.key] == 1:
                    summaries[source.key] = summarise([pieces], of_each.get(source.key))
                else:
                    held[source.key].append(pieces)

        current, losses = self._forward(chunk, receive)
        self._backward(current, losses)
        for name, of_name in self._by_parameter(held, current.derived).items():
            summaries[name] = summarise(of_name, of_each.get(name))
        if self._rest is not None:
            rest = self._of_rest(lambda engine: engine.statistics(chunk, weights))
            for column, name in enumerate(self.unreached):
                weighted = None if rest.weighted is None else rest.weighted[:, column]
                norms, total = rest.squared_norms[:, column], rest.gradient[column]
                summaries[name] = Summary(norms, total, weighted)
        nothing = torch.zeros_like(losses, dtype=torch.float64)
        of_all = [
            summaries.get(name) or Summary(nothing, torch.zeros_like(leaf), nothing)
            for name, leaf in self.params.items()
        ]
        norms = torch.stack([summary.squared_norms for summary in of_all], 1)  # (B, L)
        weighted = None
        if weights is not None:
            of_each_tensor = [each.weighted for each in of_all if each.weighted is not None]
            weighted = torch.stack(of_each_tensor, 1)  # (B, L)
        return ChunkStatistics(
            losses.detach(), norms, [summary.total for summary in of_all], weighted
        )

    def _coordinate_sums(self, chunk: Examples) -> tuple[list[Tensor], list[Tensor]]:
        of_name: dict[str, tuple[Tensor, Tensor]] = {}
        held: Pieces = defaultdict(list)

        def receive(use: Use, gradient: Tensor) -> None:
            for source, pieces in _by_source(use, gradient):
                if source.is_parameter and current.counts[source.key] == 1:
                    of_name[source.key] = coordinate_sums([pieces])
                else:
                    held[source.key].append(pieces)

        current, losses = self._forward(chunk, receive)
        self._backward(current, losses)
        for name, pieces in self._by_parameter(held, current.derived).items():
            of_name[name] = coordinate_sums(pieces)
        if self._rest is not None:
            rest = self._of_rest(lambda engine: engine.coordinate_sums(chunk))
            of_name |= zip(self.unreached, zip(*rest, strict=True), strict=True)
        nothing = {name: torch.zeros_like(leaf) for name, leaf in self.params.items()}
        both = [of_name.get(name, (zeros, zeros)) for name, zeros in nothing.items()]
        return [sums for sums, _ in both], [squares for _, squares in both]

    def _projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        size = (len(directions), chunk.num_examples, len(self.params))
        along = torch.zeros(size, dtype=torch.float64, device=self.objective.device)
        columns = {name: column for column, name in enumerate(self.params)}
        held: Pieces = defaultdict(list)

        def add(name: str, pieces: ExampleGradients) -> None:
            of_parameter = [direction[name] for direction in directions]
            along[:, :, columns[name]] += project_all(pieces, of_parameter)

        def receive(use: Use, gradient: Tensor) -> None:
            for source, pieces in _by_source(use, gradient):
                if source.is_parameter:
                    add(source.key, pieces)
                else:
                    held[source.key].append(pieces)

        current, losses = self._forward(chunk, receive)
        self._backward(current, losses)
        for name, of_name in self._by_parameter(held, current.derived).items():
            for pieces in of_name:
                add(name, pieces)
        if self._rest is not None:
            of_rest = self._of_rest(lambda engine: engine.projections(chunk, directions))
            along[:, :, [columns[name] for name in self.unreached]] = of_rest
        return along

    def _run(self, examples: Examples, context: ParameterUses) -> Tensor:
        """The losses of the examples, the parameters followed."""
        with context:
            outputs = self.objective.call(self._model, examples.inputs)
            return self.objective.losses(outputs, examples.targets, self.params)

    def _forward(
        self, chunk: Examples, receive: Callable[[Use, Tensor], None]
    ) -> tuple[Pass, Tensor]:
        """The pass and the losses (B,)."""
        start = torch.zeros((), device=self.objective.device, requires_grad=True)
        current = Pass(chunk.num_examples, start, receive)
        context = ParameterUses(
            self.params, self._rules, self._plan(chunk), current, given_up=self.unreached
        )
        losses = self._run(chunk, context)
        current.is_forward = False
        if current.differentiates:
            raise EngineError("the model takes gradients inside its forward pass")
        return current, losses

    def _plan(self, chunk: Examples) -> Plan:
        """What the operations do, by the first two examples of a chunk, once for each shape.

        Padding to the longest of a chunk, for one, gives chunks of different shapes.
        """
        shapes = tuple(leaf.shape[1:] for leaf in tree_leaves((chunk.inputs, chunk.targets)))
        if shapes not in self._plans:
            two = [0, min(1, chunk.num_examples - 1)]
            self._plans[shapes] = make_plan(
                lambda context, rows: self._run(
                    chunk.part(torch.tensor([two[row] for row in rows])), context
                ),
                self.params,
                self._rules,
            )
        return self._plans[shapes]

    def _backward(self, current: Pass, losses: Tensor) -> None:
        """Sends the losses' gradient to the uses; UnforeseenError where it reaches a parameter."""
        if not losses.requires_grad:
            return
        reached = self._reached
        try:
            gradients = torch.autograd.grad(
                losses.sum(), [current.start, *reached.values()], allow_unused=True
            )
        finally:
            current.end()
        pairs = zip(reached, gradients[1:], strict=True)
        if names := frozenset(name for name, gradient in pairs if gradient is not None):
            raise UnforeseenError(names, "used in an operation that no rule covers")

    @property
    def _reached(self) -> Params:
        return {name: leaf for name, leaf in self.params.items() if name not in self.unreached}

    def _by_parameter(self, held: Pieces, derived: Sequence[Source]) -> Pieces:
        """Gradients with respect to what was made of parameters as those of the parameters."""
        by_parameter: Pieces = {name: held[name] for name in self.params if name in held}
        for source in derived:
            pieces = held.get(source.key)
            if pieces is None:
                continue
            for name in source.names - self.unreached.keys():
                outers = [piece for piece in pieces if isinstance(piece, Outer)]
                if source.is_transpose and len(outers) == len(pieces):
                    of_parameter: list[ExampleGradients] = [piece.transposed() for piece in outers]
                else:
                    leaf = self.params[name]
                    of_parameter = [Pulled(pieces, partial(_pull, source.tensor, leaf), leaf.shape)]
                by_parameter.setdefault(name, []).extend(of_parameter)
        return by_parameter

    def _of_rest(self, work: Callable[[VmapEngine | LoopEngine], Result]) -> Result:
        """What is known of the unreached parameters: by vmap, from where that fails by a loop."""
        assert self._rest is not None
        try:
            return work(self._rest)
        except EngineError:
            if isinstance(self._rest, LoopEngine):
                raise
            self._rest = LoopEngine(self.objective, list(self.unreached))
            return work(self._rest)


def _by_source(use: Use, gradient: Tensor) -> Iterator[tuple[Source, ExampleGradients]]:
    """The per-example gradients of those of a use's arguments that depend on parameters."""
    by_argument = use.gradients(gradient)
    for argument, source in use.sources.items():
        if argument not in by_argument:
            raise UnforeseenError(source.names, "a rule leaves it out")
        yield source, by_argument[argument]


def _pull(made: Tensor, leaf: Tensor, gradients: Tensor) -> Tensor:
    """Gradients with respect to `made` (B, *its shape) as such with respect to a leaf of its."""
    if _is_part(made, leaf):  # as of a slice of a table of positions
        whole = gradients.new_zeros(len(gradients), *leaf.shape)
        offset = made.storage_offset() - leaf.storage_offset()
        strides = (leaf.numel(), *made.stride())
        whole.as_strided(gradients.shape, strides, offset).copy_(gradients)
        return whole

    def pull(gradient: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(
            made, leaf, gradient, retain_graph=True, materialize_grads=True
        )
        return pulled

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop")  # a loop inside vmap
        try:
            by_vmap: Tensor = vmap(pull)(gradients)
        except RuntimeError:  # an operation that vmap does not cover
            return torch.stack([pull(gradient) for gradient in gradients])
    return by_vmap


def _is_part(made: Tensor, leaf: Tensor) -> bool:
    """Whether a tensor is a view of some of a leaf's numbers, each of them once."""
    is_view = made._is_view() and made.data_ptr() != 0 and leaf.is_contiguous()
    if not is_view or made.dtype != leaf.dtype or made.is_complex() or made.is_neg():
        return False
    if made.untyped_storage().data_ptr() != leaf.untyped_storage().data_ptr():
        return False
    reached = 0  # of the numbers before the next dimension's second entry
    for stride, size in sorted(zip(made.stride(), made.shape, strict=True)):
        if size > 1 and stride <= reached:
            return False
        reached += (size - 1) * stride
    return True
