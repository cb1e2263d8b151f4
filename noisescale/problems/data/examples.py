"""Batches of anything: trees of tensors, one example a row, and how a model takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from noisescale.errors import SettingError
from noisescale.statistics.display import one_line

# A tensor (B, ...), or a dict, tuple or list, nested as one likes, of tensors with one first
# dimension
Tree = Any


class Examples(NamedTuple):
    """Inputs and targets of N examples.

    Each is a tensor with one example a row, or a dict, tuple or list, nested as one likes, of such
    tensors.

    Attributes:
        inputs: what the model is called with: `model(inputs)` where it is a tensor (N, *F),
            `model(*inputs)` where it is a tuple or list, `model(**inputs)` where it is a dict.
        targets: what the loss takes beside the model's outputs, such as classes (N,) or values
            (N, C).

    Examples:
        >>> import torch
        >>> from noisescale import Examples
        >>> examples = Examples(torch.randn(500, 20), torch.randint(0, 3, (500,)))
        >>> examples
        Examples(inputs (500, 20), targets (500,))
        >>> examples.part(slice(10)).num_examples
        10
    """

    inputs: Tree
    targets: Tree

    def __repr__(self) -> str:
        return one_line(self, f"inputs {shapes(self.inputs)}", f"targets {shapes(self.targets)}")

    @property
    def num_examples(self) -> int:
        """N."""
        return first_size(self.targets)

    @property
    def device(self) -> torch.device:
        """Where they are, by the first of their tensors."""
        device: torch.device = tree_leaves(self.inputs)[0].device
        return device

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how they were read: nothing."""
        return ()

    def part(self, rows: slice | Tensor) -> Examples:
        """The examples at these rows.

        Args:
            rows: a slice, which copies nothing, or indices (n,) or a mask (N,) on any device.
        """

        def pick(leaf: Tensor) -> Tensor:
            if isinstance(rows, slice):
                return leaf[rows]
            own = rows.to(leaf.device)
            return leaf[own] if own.dtype == torch.bool else leaf.index_select(0, own)

        if isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor):
            return Examples(pick(self.inputs), pick(self.targets))  # as often, and at every step
        part: Examples = tree_map(pick, self)
        return part

    def subset(self, rows: slice | Tensor) -> Examples:
        """As `part`; of data that are read as they are needed, it would read nothing.

        Args:
            rows: as for `part`.
        """
        return self.part(rows)

    def to(self, device: torch.device | str) -> Examples:
        """The examples on a device.

        Args:
            device: where to; what is there already is not copied.
        """
        moved: Examples = tree_map(lambda leaf: leaf.to(device), self)
        return moved


def first_size(tree: Tree) -> int:
    """How many examples the tensors of a tree hold, by the first of them."""
    return len(tree_leaves(tree)[0])


def shapes(tree: Tree) -> str:
    """The shapes of a tree's tensors, for messages: "(4, 3)" or "{ids: (4, 7), mask: (4, 7)}"."""
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{name}: {shapes(part)}" for name, part in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        return "[" + ", ".join(map(shapes, tree)) + "]"
    return str(tuple(tree.shape)) if isinstance(tree, Tensor) else type(tree).__name__


def kind_of(thing: object) -> str:
    """The type of what was given, for messages: "None", "a str" or "a numpy.ndarray"."""
    if thing is None:
        return "None"
    name = f"{type(thing).__module__}.{type(thing).__name__}".removeprefix("builtins.")
    return f"a{'n' if name[0] in 'aeio' else ''} {name}"


def arguments_of(inputs: Tree) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and the keyword arguments that a model takes its inputs as."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)), {}


def call_model(model: Callable[..., Any], inputs: Tree) -> Any:
    """`model(x)` of a tensor, `model(*x)` of a tuple or list, `model(**x)` of a dict.

    Args:
        model: a module, or a function in its place.
        inputs: a tensor (B, *F), or a dict, tuple or list of such.
    """
    arguments, keywords = arguments_of(inputs)
    return model(*arguments, **keywords)


def with_dicts(tree: Tree) -> Tree:
    """The tree with dicts for other mappings, as tokenizers return them."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return {name: with_dicts(part) for name, part in leaf.items()}
        return leaf

    return tree_map(convert, tree)


def check_examples(examples: Examples) -> None:
    """SettingError unless inputs and targets are tensors of one first dimension."""
    sizes = [_size_of(name, part) for name, part in zip(examples._fields, examples, strict=True)]
    if sizes[0] != sizes[1]:
        raise SettingError(f"{sizes[0]} inputs but {sizes[1]} targets: give as many of both")


def _size_of(name: str, tree: Tree) -> int:
    """How many examples the inputs or the targets hold; SettingError where that is not clear."""
    leaves = tree_leaves(tree)
    wrong = [leaf for leaf in leaves if not isinstance(leaf, Tensor)]
    if wrong:
        advice = (
            "give targets; where the loss takes none, the inputs once more"
            if name == "targets" and tree is None
            else "give tensors, or dicts, tuples or lists of tensors, "
            "as torch.as_tensor makes of arrays and of lists of numbers"
        )
        raise SettingError(f"the {name} of Examples hold {kind_of(wrong[0])}: {advice}")
    sizes = {leaf.shape[:1] for leaf in leaves}
    if len(sizes) != 1 or not min(sizes):
        raise SettingError(
            f"the {name} of Examples have shapes {shapes(tree)}: "
            "give tensors whose first dimension is the number of examples, the same in all"
        )
    if isinstance(tree, Mapping) and not all(isinstance(key, str) for key in tree):
        raise SettingError(
            f"the {name} of Examples are a dict with the keys {', '.join(map(repr, tree))}: "
            "give names, by which the model takes them"
        )
    return first_size(tree)
