"""Where the parameters enter a forward pass, operation by operation."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from noisescale.measure.gradients.layers.factors import ExampleGradients
from noisescale.measure.gradients.layers.parts import RECURRENT, TAKEN_APART, NotPlainError
from noisescale.problems.problem import Params


class Layout(NamedTuple):
    """Where the n examples lie in an operation's output (..., n·m, ...).

    dim: that holds them. per_example: m, its entries of each. alternate: whether it has the first
    entry of every example, then the second, and so on, not one example after the other.
    """

    dim: int
    per_example: int
    alternate: bool = False

    def examples(self, values: Tensor) -> Tensor:
        """(..., n·m, ...) -> (n, m, ...)."""
        first = values.movedim(self.dim, 0)
        rest = first.shape[1:]
        if self.alternate:
            return first.reshape(self.per_example, -1, *rest).transpose(0, 1)
        return first.reshape(-1, self.per_example, *rest)

    def places(self, values: Tensor) -> Tensor:
        """(..., n·m, ..., F) -> (n, S, F), every other entry of an example a place."""
        return self.examples(values).flatten(1, -2)


class Plan(NamedTuple):
    """What is known of a model's operations on parameters before a pass.

    layouts: where the examples lie in the outputs of those that take examples. constants: those
    whose outputs depend on parameters alone.
    """

    layouts: Mapping[str, Layout]
    constants: frozenset[str]


class Source(NamedTuple):
    """A tensor that depends on parameters alone: one of them, or what was made of them.

    key: the parameter's name, or that of the operation that made it. tensor: with its graph.
    names: of the parameters it depends on. is_transpose: whether it is their transpose.
    """

    key: str
    tensor: Tensor
    names: frozenset[str]
    is_transpose: bool = False

    @property
    def is_parameter(self) -> bool:
        """Whether it is a parameter itself."""
        return self.names == {self.key}


# (layout, gradient of the output, *arguments of the operation) -> gradients by argument
OperationRule = Callable[..., dict[str, ExampleGradients]]


class UnfitError(Exception):
    """A rule does not cover what its operation is called with."""


class Use:
    """An operation of a forward pass that takes parameters and examples.

    Args:
        rule: of the operation.
        bound: the rule's arguments, its output's gradient still to come.
        sources: the parameters among them, by argument.
    """

    def __init__(
        self, rule: OperationRule, bound: inspect.BoundArguments, sources: dict[str, Source]
    ) -> None:
        self.sources = sources
        self._rule = rule
        self._bound: inspect.BoundArguments | None = bound

    def gradients(self, gradient: Tensor) -> dict[str, ExampleGradients]:
        """Of the single examples, by argument; to be asked for once, when the rest is let go."""
        bound, self._bound = self._bound, None
        names = _names(self.sources.values())
        if bound is None:
            raise UnforeseenError(names, "its gradient is taken twice")
        bound.arguments["gradient"] = gradient
        dtype = next(iter(self.sources.values())).tensor.dtype
        if gradient.dtype != dtype:  # under autocast: products as precise as their parts are known
            for argument, value in bound.arguments.items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    bound.arguments[argument] = value.to(dtype)
        try:
            return self._rule(*bound.args, **bound.kwargs)
        except UnfitError as error:
            raise UnforeseenError(names, "its use is not covered by a rule") from error


class UnforeseenError(Exception):
    """A pass uses parameters otherwise than the examples that it was planned by.

    names: of the parameters that it cannot give per-example gradients of.
    """

    def __init__(self, names: frozenset[str], reason: str) -> None:
        super().__init__(reason)
        self.names = names


class Pass:
    """What a forward pass through a model leaves for its backward pass.

    Args:
        num_examples: n.
        start: a leaf at which a backward pass ends.
        receive: is called in the backward pass with every use that the losses depend on, and the
            gradient of its output.

    Attributes:
        counts: how many uses each parameter has.
        derived: what was made of parameters alone.
        is_forward: until the model and its loss are through.
        differentiates: whether the model takes gradients itself.
    """

    def __init__(
        self, num_examples: int, start: Tensor, receive: Callable[[Use, Tensor], None]
    ) -> None:
        self.num_examples = num_examples
        self.start = start
        self.counts: Counter[str] = Counter()
        self.derived: list[Source] = []
        self.is_forward = True
        self.differentiates = False
        self._receive: Callable[[Use, Tensor], None] | None = receive

    def receive(self, use: Use, gradient: Tensor) -> None:
        """Takes the gradient of a use's output."""
        if self.is_forward:
            self.differentiates = True
        else:
            assert self._receive is not None
            with torch.no_grad():
                self._receive(use, gradient.detach())

    def end(self) -> None:
        """Lets go of what receives, which may hold gradients, and the pass by its own name."""
        self._receive = None


class ParameterUses(TorchFunctionMode):
    """Follows parameters, and what is made of them alone, through the operations of a pass.

    An operation that takes a parameter and examples, and has a rule, is a use: it gets the
    parameter's value alone, so that autograd goes on to the examples' side and no further, and its
    output's gradient goes to the pass's `receive`. Whatever else takes a parameter leaves it in
    autograd's hands: a gradient that arrives at a parameter tells that its uses are not all of it.

    Args:
        params: the parameters that are followed, leaves by name.
        rules: of operations, by name.
        plan: of the operations.
        current: the pass; None: nothing is changed, and what the operations do is only noted.
        given_up: names of parameters that are followed, but whose uses are not received.

    Attributes:
        outputs: of the operations that are no uses, by operation.
        with_examples: the operations that take differentiable tensors beside parameters.
    """

    def __init__(
        self,
        params: Params,
        rules: Mapping[str, OperationRule],
        plan: Plan,
        current: Pass | None = None,
        *,
        given_up: Collection[str] = (),
    ) -> None:
        super().__init__()
        self.outputs: dict[str, list[Tensor]] = {}
        self.with_examples: set[str] = set()
        self._rules = rules
        self._plan = plan
        self._pass = current
        self._given_up = frozenset(given_up)
        # sources hold their tensors, so that no other can get an id of theirs
        self._sources = {
            id(leaf): Source(name, leaf, frozenset([name])) for name, leaf in params.items()
        }
        self._occurrences: Counter[str] = Counter()
        self._is_recurring = False

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        sources = self._sources_among([*args, *kwargs.values()])
        if not sources or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        name = operation_name(function)
        if name in TAKEN_APART:
            with contextlib.suppress(NotPlainError), self._inside(is_loop=name in RECURRENT):
                return TAKEN_APART[name](*args, **kwargs)
        rule = self._rules.get(name)
        if rule is None and (plain := _without_looks(function)) is not None:
            with self:
                return plain(*args, **kwargs)
        key = f"{name}({', '.join(source.key for source in sources)})"
        if not self._is_recurring:
            self._occurrences[key] += 1
            key = f"{key} #{self._occurrences[key]}"
        layout = self._plan.layouts.get(key)
        if rule is not None and layout is not None and self._pass is not None:
            return self._use(self._pass, rule, layout, function, args, kwargs)
        output = function(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(output) if _has_gradient(leaf)]
        if outputs:
            self._note(key, outputs, sources, [*args, *kwargs.values()])
        return output

    @contextlib.contextmanager
    def _inside(self, *, is_loop: bool) -> Iterator[None]:
        """While open, an operation's parts are followed.

        In a loop the same one on the same parameters counts as one, however often it comes.
        """
        before, self._is_recurring = self._is_recurring, is_loop
        try:
            with self:
                yield
        finally:
            self._is_recurring = before

    def _sources_among(self, arguments: Sequence[Any]) -> list[Source]:
        """The followed tensors among an operation's arguments, also in lists."""
        leaves: list[Any] = []
        for value in arguments:
            leaves.extend(value if isinstance(value, list | tuple) else [value])
        sources = (self._sources.get(id(leaf)) for leaf in leaves if isinstance(leaf, Tensor))
        return [source for source in sources if source is not None]

    def _note(
        self,
        key: str,
        outputs: Sequence[Tensor],
        sources: Sequence[Source],
        arguments: Sequence[Any],
    ) -> None:
        """Notes what an operation gives; follows it where it depends on parameters alone."""
        if all(id(output) in self._sources for output in outputs):  # as they were given
            return
        if self._pass is None:
            self.outputs[key] = [output.detach().clone() for output in outputs]
        followed = {id(source.tensor) for source in sources}
        others = (leaf for leaf in tree_leaves(arguments) if id(leaf) not in followed)
        if any(map(_has_gradient, others)):
            self.with_examples.add(key)
        elif key in self._plan.constants:
            names = _names(sources)
            for index, output in enumerate(outputs):
                is_transpose = len(sources) == 1 and _is_transpose(output, sources[0])
                derived = Source(f"{key}[{index}]", output, names, is_transpose)
                self._sources.setdefault(id(output), derived)
                if self._pass is not None:
                    self._pass.derived.append(derived)

    def _use(
        self,
        current: Pass,
        rule: OperationRule,
        layout: Layout,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """The operation on the parameters' values, its output's gradient to be received."""
        bound = _bind(rule, layout, args, kwargs)
        if bound is None or not all(map(_is_plain, tree_leaves((args, kwargs)))):
            return function(*args, **kwargs)
        sources = {
            argument: source
            for argument, value in _named(bound)
            if (source := self._sources.get(id(value))) is not None
            and not source.names <= self._given_up
        }
        if not sources:
            return function(*args, **kwargs)
        _detach(bound)
        arguments = [self._value(value) for value in args]
        output = function(*arguments, **{key: self._value(kwargs[key]) for key in kwargs})
        _check(output, layout, current.num_examples, sources)
        current.counts.update(name for source in sources.values() for name in source.names)
        if output._is_view():  # which cannot be marked as changed
            output = output.clone()
        used: Tensor = _Used.apply(current.start, output, current, Use(rule, bound, sources))
        return used

    def _value(self, argument: Any) -> Any:
        """An operation's argument, without its graph where it is followed."""
        is_followed = isinstance(argument, Tensor) and id(argument) in self._sources
        return argument.detach() if is_followed else argument


class _Used(torch.autograd.Function):
    """An output as it is, on the way from the losses to a leaf, its gradient passed on."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, output: Tensor, current: Pass, use: Use) -> Tensor:
        ctx.current, ctx.use = current, use
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        (gradient,) = gradients
        ctx.current.receive(ctx.use, gradient)
        return None, gradient, None, None


def make_plan(
    run: Callable[[ParameterUses, Sequence[int]], object],
    params: Params,
    rules: Mapping[str, OperationRule],
) -> Plan:
    """What a model's operations on parameters do, by passes of an example alone and of two.

    Of the two in either order, by which a model shows itself that orders them by what they are.

    Args:
        run: sends the examples at these rows through the model in a context.
        params: the parameters that are followed, leaves by name.
        rules: of operations, by name.
    """

    def outputs(rows: Sequence[int]) -> ParameterUses:
        context = ParameterUses(params, rules, Plan({}, constants))
        run(context, rows)
        return context

    constants: frozenset[str] = frozenset()
    while True:  # what is made of constants shows when these are followed
        alone, both = outputs([0]), outputs([0, 1])
        operations = alone.outputs.keys() & both.outputs.keys()
        new = {
            key
            for key in operations - alone.with_examples - both.with_examples - constants
            if _are_equal(alone.outputs[key], both.outputs[key])
        }
        if not new:
            break
        constants |= new
    reverse = outputs([1, 0])
    layouts = {
        key: _layout(alone.outputs[key], both.outputs[key], reverse.outputs[key])
        for key in operations & reverse.outputs.keys() - constants
    }
    return Plan({key: layout for key, layout in layouts.items() if layout}, constants)


def _are_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether an operation's outputs are the same in two passes."""
    return len(first) == len(second) and all(
        one.numel() > 0 and torch.equal(one, other)
        for one, other in zip(first, second, strict=True)
    )


def _layout(alone: list[Tensor], both: list[Tensor], reverse: list[Tensor]) -> Layout | None:
    """Where the examples lie in an output, by what it is with one, with two and in reverse."""
    if not len(alone) == len(both) == len(reverse) == 1:
        return None
    (one,), (two,), (turned,) = alone, both, reverse
    if one.ndim != two.ndim or two.shape != turned.shape:
        return None
    sizes = zip(one.shape, two.shape, strict=True)
    differing = [dim for dim, (single, double) in enumerate(sizes) if single != double]
    if len(differing) != 1 or two.shape[differing[0]] != 2 * one.shape[differing[0]]:
        return None
    (dim,) = differing
    entries = one.movedim(dim, 0)  # (m, ...)
    precision = torch.finfo(two.dtype).eps ** 0.5
    floor = precision * float(two.abs().max()) if two.numel() else 0.0
    for layout in (Layout(dim, len(entries)), Layout(dim, len(entries), alternate=True)):
        first, last = layout.examples(two)[0], layout.examples(turned)[1]
        if all(torch.allclose(part, entries, rtol=precision, atol=floor) for part in (first, last)):
            return layout
    return None


def operation_name(function: Callable[..., Any]) -> str:
    """The name of a torch function, the same for the function and the tensor's method."""
    name: str = getattr(function, "__name__", "")
    attribute = getattr(function, "__self__", None) if name == "__get__" else None  # such as mT
    return str(getattr(attribute, "__name__", name))


@lru_cache(maxsize=256)
def _without_looks(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """A Python function of torch's without the look for a mode such as ours that it begins with.

    With it the operations of which it consists are seen, as those of multi-head attention. None
    for what is not such a function.
    """
    if not isinstance(function, types.FunctionType):
        return None
    looks = [name for name in function.__code__.co_names if name.startswith("has_torch_function")]
    if not looks:
        return None
    names = function.__globals__ | {name: lambda *arguments: False for name in looks}
    plain = types.FunctionType(
        function.__code__, names, function.__name__, function.__defaults__, function.__closure__
    )
    plain.__kwdefaults__ = function.__kwdefaults__
    return plain


@lru_cache(maxsize=256)
def _signature(rule: OperationRule) -> inspect.Signature:
    return inspect.signature(rule)


def _bind(
    rule: OperationRule, layout: Layout, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments | None:
    """An operation's arguments as its rule's; None where the rule does not know one."""
    try:
        # a module's own rule holds the module, which must not be kept
        signature = inspect.signature(rule) if isinstance(rule, partial) else _signature(rule)
        return signature.bind(layout, None, *args, **kwargs)
    except TypeError:
        return None


def _named(bound: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    """Each argument under its name, those that the rule takes by any name as well."""
    for argument, value in bound.arguments.items():
        yield from value.items() if isinstance(value, dict) else [(argument, value)]


def _detach(bound: inspect.BoundArguments) -> None:
    """Takes the graphs away from the tensors among the arguments."""
    for argument, value in bound.arguments.items():
        if isinstance(value, Tensor):
            bound.arguments[argument] = value.detach()


def _is_plain(leaf: object) -> bool:
    """Whether a leaf is no tensor of torch.func's, which stands for others."""
    if not isinstance(leaf, Tensor):
        return True
    try:
        leaf.untyped_storage()
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _names(sources: Iterable[Source]) -> frozenset[str]:
    """The parameters that the sources depend on."""
    return frozenset[str]().union(*(source.names for source in sources))


def _has_gradient(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _is_transpose(output: Tensor, source: Source) -> bool:
    """Whether an output is the transpose of a parameter, the same numbers in the same place."""
    tensor = source.tensor
    if not source.is_parameter or tensor.ndim != 2 or output.data_ptr() != tensor.data_ptr():
        return False
    return output.shape == tensor.T.shape and output.stride() == tensor.T.stride()


def _check(
    output: Tensor, layout: Layout, num_examples: int, sources: Mapping[str, Source]
) -> None:
    """UnforeseenError unless an output holds the examples as planned, in the parameters' dtype.

    Under autocast, which casts parameters as it goes, it may be in another one.
    """
    size = output.shape[layout.dim] if output.ndim > layout.dim else None
    if size != layout.per_example * num_examples:
        raise UnforeseenError(_names(sources.values()), "it is used on a part of the examples")
    is_cast = any(source.tensor.dtype != output.dtype for source in sources.values())
    if is_cast and not torch.is_autocast_enabled(output.device.type):
        raise UnforeseenError(_names(sources.values()), "it is used in another dtype than its own")
