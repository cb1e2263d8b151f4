"""From the items of a data set to a batch: collation, and which part of it is the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import (
    keystr,
    tree_flatten_with_path,
    tree_leaves,
    tree_map,
    tree_structure,
)
from torch.utils.data import default_collate

from noisescale.errors import DataError, own_words
from noisescale.problems.data.examples import Examples, Tree, kind_of, shapes, with_dicts

Collate = Callable[[list[Any]], Any]
# The names under which a dict may hold the target, the first of these that it has
TARGET_NAMES = ("labels", "label", "targets", "target", "y")
COLLATED = (Tensor, np.ndarray, np.generic, int, float, str, bytes)  # by torch's default_collate
HOW_TO_COLLATE = "in a collate function: DataLoader(dataset, collate_fn=…)"


def collated(items: list[Any], collate_fn: Collate | None) -> Examples:
    """The items as one batch.

    An item, and what a collate function returns, is a pair (input, target); a tuple or list of
    more, of which the last is the target and the others are the model's inputs; or a dict, of which
    one entry is the target (see `TARGET_NAMES`) and the others are the model's inputs by name.

    Args:
        items: B of them.
        collate_fn: makes a batch of them; None: torch's default_collate.

    Raises:
        DataError: items that cannot be collated, or whose target cannot be told.
    """
    try:
        batch = plain((collate_fn or default_collate)(items))
    except Exception as error:  # whatever the user's own function raises
        raise DataError(_obstacle(items, collate_fn, error)) from error
    examples = Examples(*_pair(batch, collate_fn))
    if any(not isinstance(leaf, Tensor) for leaf in tree_leaves(examples)):
        raise DataError(_no_tensor(items[0], batch, collate_fn))
    sizes = {leaf.shape[:1] for leaf in tree_leaves(examples)}
    if sizes != {(len(items),)}:
        raise DataError(
            f"{len(items)} items make a batch of shapes {shapes(examples)}: "
            "give tensors whose first dimension is the number of examples"
        )
    return examples


def plain(tree: Tree) -> Tree:
    """The tree with dicts for other mappings and tensors for arrays and their numbers."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind in "biufc":
            return torch.as_tensor(leaf)
        return leaf

    return tree_map(convert, with_dicts(tree))


def concatenated(parts: Sequence[Examples]) -> Examples | None:
    """Batches as one; None where their shapes differ."""
    if len(parts) == 1:
        return parts[0]
    if len({(str(tree_structure(part)), _row_shapes(part)) for part in parts}) > 1:
        return None
    whole: Examples = tree_map(lambda *leaves: torch.cat(leaves), *parts)
    return whole


def are_same(examples: Examples, others: Examples) -> bool:
    """Whether two batches are equal, nan and nan too."""
    pairs = zip(tree_leaves(examples), tree_leaves(others), strict=False)
    return _row_shapes(examples) == _row_shapes(others) and all(
        bool(((one == other) | ((one != one) & (other != other))).all()) for one, other in pairs
    )


def num_bytes(examples: Examples) -> int:
    """What a batch takes."""
    return sum(leaf.nbytes for leaf in tree_leaves(examples))


def _row_shapes(examples: Examples) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(leaf.shape[1:]) for leaf in tree_leaves(examples))


def _pair(batch: Tree, collate_fn: Collate | None) -> tuple[Tree, Tree]:
    """Inputs and targets; DataError where they cannot be told."""
    if isinstance(batch, Mapping):
        name = next((name for name in TARGET_NAMES if name in batch), None)
        inputs = {key: part for key, part in batch.items() if key != name}
        if name is None or not inputs:
            raise DataError(
                f"{_holder(collate_fn)} a dict of {', '.join(map(str, batch)) or 'nothing'}: give "
                f"the inputs by name and the target as one of {', '.join(TARGET_NAMES)}"
            )
        return inputs, batch[name]
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return batch[0] if len(batch) == 2 else tuple(batch[:-1]), batch[-1]
    raise DataError(
        f"{_holder(collate_fn)} an input and no target: give pairs (input, target); where the loss "
        "takes no target, the input twice"
        if collate_fn is None
        else f"{_holder(collate_fn)} {kind_of(batch)}: give a pair (inputs, targets), or a dict"
    )


def _holder(collate_fn: Collate | None) -> str:
    """What is at fault, for messages."""
    return "an item holds" if collate_fn is None else "the collate function returns"


def _no_tensor(item: Tree, batch: Tree, collate_fn: Collate | None) -> str:
    """What of a batch is no tensor; without a collate function, what of an item."""
    if collate_fn is None:
        leaves = tree_flatten_with_path(plain(item))[0]
        for path, leaf in leaves:
            if isinstance(leaf, str | bytes):
                return f"an item holds {kind_of(leaf)}{_place(path)}: {_remedy(None)}"
    leaves = tree_flatten_with_path(batch)[0]
    path, leaf = next((path, leaf) for path, leaf in leaves if not isinstance(leaf, Tensor))
    return f"the collate function returns {kind_of(leaf)}{_place(path)}: {_remedy(collate_fn)}"


def _obstacle(items: list[Any], collate_fn: Collate | None, error: Exception) -> str:
    """Why items cannot be collated, and what to do."""
    if collate_fn is not None:
        return f"the collate function fails on {len(items)} items: {own_words(error)}"
    first, *others = [tree_flatten_with_path(plain(item))[0] for item in items]
    for path, leaf in first:
        if not isinstance(leaf, COLLATED):
            return f"an item holds {kind_of(leaf)}{_place(path)}: {_remedy(None)}"
    for other in others:
        for (path, one), (_, another) in zip(first, other, strict=False):
            one_shape, other_shape = np.shape(one), np.shape(another)
            if one_shape != other_shape:
                return (
                    f"items hold shapes {tuple(one_shape)} and {tuple(other_shape)}"
                    f"{_place(path)}: make them of equal shapes throughout, or pad them "
                    f"{HOW_TO_COLLATE}"
                )
        if len(first) != len(other):
            return (
                f"items hold {len(first)} and {len(other)} values: make them of equal shapes "
                f"throughout, or pad them {HOW_TO_COLLATE}"
            )
    return f"the items cannot be collated: {own_words(error)}; do it {HOW_TO_COLLATE}"


def _remedy(collate_fn: Collate | None) -> str:
    if collate_fn is not None:
        return "give tensors"
    return f"turn it into a tensor in the Dataset, as by its transform, or {HOW_TO_COLLATE}"


def _place(path: Any) -> str:
    """Where in an item, as one would index it."""
    return f" at {keystr(path)}" if path else ""
