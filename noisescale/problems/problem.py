"""A learning problem: a model, a loss per example and the examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset

from noisescale.errors import DataError, SettingError
from noisescale.problems.config import ProblemConfig

Params = dict[str, Tensor]  # by name, as model.named_parameters() gives them
# A tensor (B, ...), or a dict, tuple or list, nested as one likes, of tensors with one first
# dimension
Tree = Any
LossFn = Callable[[Any, Any], Tensor]  # what the model returns, targets -> (B,)
MatVec = Callable[[Tensor], Tensor]  # v -> Hv, (P,) -> (P,)

SPLITS = ("train", "validation", "test")
PAIRS = (
    "the items of a Dataset must be pairs (input, target) of tensors, of equal shapes throughout"
)


class Examples(NamedTuple):
    """Inputs and targets of N examples.

    Each is a tensor with one example a row, or a dict, tuple or list, nested as one likes, of such
    tensors.

    Attributes:
        inputs: what the model is called with: `model(inputs)` where it is a tensor (N, *F),
            `model(*inputs)` where it is a tuple or list, `model(**inputs)` where it is a dict.
        targets: what the loss takes beside the model's outputs, such as classes (N,) or values
            (N, C).
    """

    inputs: Tree
    targets: Tree

    @property
    def num_examples(self) -> int:
        """N."""
        return first_size(self.targets)

    @property
    def device(self) -> torch.device:
        """Where they are, by the first of their tensors."""
        device: torch.device = tree_leaves(self.inputs)[0].device
        return device

    def part(self, rows: slice | Tensor) -> Examples:
        """The examples at these rows.

        Args:
            rows: a slice, which copies nothing, or indices (n,) on any device.
        """

        def pick(leaf: Tensor) -> Tensor:
            return leaf[rows if isinstance(rows, slice) else rows.to(leaf.device)]

        part: Examples = tree_map(pick, self)
        return part

    def to(self, device: torch.device | str) -> Examples:
        """The examples on a device.

        Args:
            device: where to; what is there already is not copied.
        """
        moved: Examples = tree_map(lambda leaf: leaf.to(device), self)
        return moved


Data = Examples | Dataset[tuple[Tensor, Tensor]]  # a split, as tensors or read item by item


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained and measured: a model, a loss for each example, and the examples.

    Attributes:
        model: maps inputs (B, *F) to outputs (B, ...), row by row unless it normalises over the
            batch.
        loss: outputs (B, ...), targets (B, ...) -> (B,): one loss for each example, not reduced.
        train: the training examples, or a map-style Dataset of pairs (input, target) of equal
            shapes, on the model's device.
        validation: the same for the validation split; None: there is none.
        test: the same for the test split; None: there is none.
        config: how the problem was built, where it was built from a ProblemConfig.
    """

    model: nn.Module
    loss: LossFn
    train: Data
    validation: Data | None = None
    test: Data | None = None
    config: ProblemConfig | None = None


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


def as_examples(data: Data) -> Examples:
    """All of `data` as one pair of tensors; Examples come back as they are.

    Raises:
        DataError: a Dataset whose items are not pairs (input, target) of equal shapes throughout.
        SettingError: neither Examples nor a map-style Dataset, or Examples that hold other things
            than tensors of one first dimension.
    """
    if isinstance(data, Examples):
        num_examples_of(data)
        return data
    # a generator of its own, since a DataLoader otherwise draws a seed from the global random state
    whole = DataLoader(data, batch_size=num_examples_of(data), generator=torch.Generator())
    try:
        inputs, targets = next(iter(whole))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"{PAIRS}: {error}") from error
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise DataError(
            f"{PAIRS}: the first gives {type(inputs).__name__} and {type(targets).__name__}"
        )
    return Examples(inputs, targets)


def num_examples_of(data: Data) -> int:
    """How many examples there are.

    Raises:
        SettingError: neither Examples nor a map-style Dataset, or different numbers of inputs and
            targets.
    """
    if isinstance(data, Examples):
        sizes = [_size_of(name, part) for name, part in zip(data._fields, data, strict=True)]
        if sizes[0] != sizes[1]:
            raise SettingError(f"{sizes[0]} inputs but {sizes[1]} targets: give as many of both")
        return sizes[0]
    is_map_style = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, DataLoader | tuple | list) or not is_map_style:
        raise SettingError(
            f"data of type {type(data).__name__}: give noisescale.Examples or a map-style torch "
            "Dataset"
        )
    return len(cast(Sized, data))


def _size_of(name: str, tree: Tree) -> int:
    """How many examples the inputs or the targets hold; SettingError where that is not clear."""
    wrong = [leaf for leaf in tree_leaves(tree) if not isinstance(leaf, Tensor)]
    if wrong:
        raise SettingError(
            f"the {name} of Examples hold a {type(wrong[0]).__name__}: give tensors, or dicts, "
            "tuples or lists of tensors, as torch.as_tensor makes of arrays and lists"
        )
    sizes = {leaf.shape[:1] for leaf in tree_leaves(tree)}
    if len(sizes) != 1 or not min(sizes):
        raise SettingError(
            f"the {name} of Examples have shapes {shapes(tree)}: "
            "give tensors whose first dimension is the number of examples, the same in all"
        )
    return first_size(tree)
