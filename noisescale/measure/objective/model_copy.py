"""A copy of a model whose parameters and buffers can be exchanged."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from types import CellType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

from noisescale.errors import MeasurementError

# The attributes that every module has, for its parameters, parts and hooks
OF_MODULES = frozenset(vars(nn.Module()))


class Held(NamedTuple):
    """A tensor, and where a module holds it: at `holder[key]`, in a dict or list."""

    tensor: Tensor
    holder: Any
    key: Any


class Place(NamedTuple):
    """Where the copy holds the tensor of this name: at `holder[key]`."""

    holder: Any
    key: Any
    name: str


class _Attributes(NamedTuple):
    """What a module has noted: its attributes, and what its own lists and dicts hold."""

    module: nn.Module
    values: dict[str, Any]
    contents: list[tuple[Any, Any]]  # a list or dict, and a copy of it

    @classmethod
    def of(cls, module: nn.Module) -> _Attributes:
        values = {name: value for name, value in vars(module).items() if name not in OF_MODULES}
        held = [value for value in values.values() if type(value) in (list, dict)]
        return cls(module, values, [(value, value.copy()) for value in held])

    def put_back(self) -> None:
        present = vars(self.module)
        for name in [name for name in present if name not in OF_MODULES]:
            if name not in self.values:
                del present[name]
        present.update(self.values)
        for holder, copied in self.contents:
            holder.clear()
            holder.extend(copied) if isinstance(holder, list) else holder.update(copied)


@contextlib.contextmanager
def forgetting(model: nn.Module) -> Iterator[None]:
    """A context after which a model has the attributes that it had before.

    What it notes in a forward pass, such as a counter, activations or a weight that is computed
    once, belongs to that pass and to its parameters.

    Args:
        model: whose modules' attributes, lists and dicts are put back.
    """
    if torch.compiler.is_compiling():  # which cannot follow it; a program notes nothing
        yield
        return
    attributes = [_Attributes.of(module) for module in model.modules()]
    try:
        yield
    finally:
        for of_module in attributes:
            of_module.put_back()


class ModelCopy:
    """A copy of a model in evaluation mode, which shares every tensor with it.

    Wrappers that only run the model in another way, as DataParallel, are left out; embeddings have
    dense gradients. Tensors go by the names that the given model has for them, a tied one by the
    first, and every place that holds one is known: in a module that is used under two names, in
    scripted modules, in lists and dicts of a module's own.

    Args:
        model: which is only read.
        names: of its parameters and buffers by their id; None: its own.

    Attributes:
        module: the copy.

    Raises:
        MeasurementError: the model cannot be copied.
    """

    def __init__(self, model: nn.Module, names: Mapping[int, str] | None = None) -> None:
        if names is None:
            state = [*model.named_parameters(), *model.named_buffers()]
            names = {id(tensor): name for name, tensor in state}
        original = _without_wrapper(model)
        self.module = _shared_copy(original).eval()
        self._places = [
            Place(of_copy.holder, of_copy.key, names[id(held.tensor)])
            for held, of_copy in zip(_held(original), _held(self.module), strict=True)
            if id(held.tensor) in names
        ]
        for module in list(self.module.modules()):
            for key, child in list(module._modules.items()):
                if child is not None and (inner := _without_wrapper(child)) is not child:
                    module._modules[key] = inner
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = False

    @contextlib.contextmanager
    def exchanged(self, tensors: Mapping[str, Tensor]) -> Iterator[nn.Module]:
        """The copy, for the time of the context with other tensors as parameters and buffers.

        What the modules note meanwhile is forgotten, as by `forgetting`.

        Args:
            tensors: all of them by name, used as they are.
        """
        before = [place.holder[place.key] for place in self._places]
        try:
            with forgetting(self.module):
                for place in self._places:
                    place.holder[place.key] = tensors[place.name]
                yield self.module
        finally:
            for place, tensor in zip(self._places, before, strict=True):
                place.holder[place.key] = tensor

    def instance(self, tensors: Mapping[str, Tensor]) -> nn.Module:
        """Another copy, with other tensors as its parameters and buffers.

        Args:
            tensors: all of them by name, used as they are.
        """
        instance = _shared_copy(self.module)
        names = {(id(place.holder), place.key): place.name for place in self._places}
        for held, of_instance in zip(_held(self.module), _held(instance), strict=True):
            name = names.get((id(held.holder), held.key))
            if name is not None:
                of_instance.holder[of_instance.key] = tensors[name]
        return instance


def _without_wrapper(model: nn.Module) -> nn.Module:
    """What is inside of DataParallel, DistributedDataParallel and `torch.compile`."""
    inner: nn.Module = model
    while True:
        if isinstance(inner, nn.DataParallel | DistributedDataParallel):
            inner = inner.module
        # what torch.compile has made, by its name: to import its class takes a second
        elif type(inner).__name__ == "OptimizedModule":
            inner = inner.get_submodule("_orig_mod")
        else:
            return inner


def _shared_copy(model: nn.Module) -> nn.Module:
    """A copy with the same tensors; those that it has computed and kept are detached."""
    shared = {id(held.tensor): held.tensor for held in _held(model)}
    computed = {
        id(leaf): leaf.detach()
        for module in model.modules()
        for leaf in tree_leaves(vars(module))
        if isinstance(leaf, Tensor) and leaf.grad_fn is not None
    }
    copies: dict[int, Any] = {**shared, **computed}  # by the id of what they are copies of
    try:
        whole = copy.deepcopy(model, copies)
    except (RuntimeError, TypeError) as error:
        raise MeasurementError(f"{type(model).__name__} cannot be copied: {error}") from error
    for module in whole.modules():
        hooks = [value for name, value in vars(module).items() if name.endswith("_hooks")]
        for holder in [vars(module), *(held for held in hooks if isinstance(held, dict))]:
            for name, value in list(holder.items()):
                if isinstance(value, FunctionType) and value.__closure__:
                    holder[name] = _rebound(value, copies)
    return whole


def _rebound(function: FunctionType, copies: Mapping[int, Any]) -> FunctionType:
    """A function of the copy's own, where it speaks of the model: copying leaves functions alone.

    Args:
        function: with a closure, as a hook that is defined in the model's constructor.
        copies: of the model's parts, by the id of the originals.
    """
    cells = []
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not yet filled
            cells.append(cell)
        else:
            cells.append(CellType(copies.get(id(content), content)))
    rebound = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells),
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    return rebound


def _held(model: nn.Module) -> list[Held]:
    """Every tensor in a dict or list of one of the modules."""
    return [
        Held(tensor, holder, key)
        for module in model.modules()
        for holder in _holders(module)
        for key, tensor in (enumerate(holder) if isinstance(holder, list) else holder.items())
        if isinstance(tensor, Tensor)
    ]


def _holders(module: nn.Module) -> list[Any]:
    """The parameters, the buffers, and the dicts and lists that a module keeps of its own."""
    beside = [
        value
        for name, value in vars(module).items()
        if isinstance(value, dict | list) and name not in ("_parameters", "_buffers", "_modules")
    ]
    return [module._parameters, module._buffers, *beside]
