"""A learning problem: a model, a loss per example and the examples."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from noisescale.errors import DataError, SettingError
from noisescale.problems.config import ProblemConfig

Params = dict[str, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]
MatVec = Callable[[Tensor], Tensor]

SPLITS = ("train", "validation", "test")
PAIRS = (
    "the items of a Dataset must be pairs (input, target) of tensors, of equal shapes throughout"
)


class Examples(NamedTuple):
    """Inputs (N, *F) and targets (N, ...), on one device."""

    inputs: Tensor
    targets: Tensor

    @property
    def num_examples(self) -> int:
        return len(self.targets)

    def part(self, rows: slice | Tensor) -> Examples:
        """The examples at these rows."""
        return Examples(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained and measured.

    model: maps inputs (B, *F) to outputs (B, ...), row by row unless it normalises over the batch.
    loss: outputs (B, ...), targets (B, ...) -> (B,), one loss per example, unreduced.
    train, validation, test: examples on the model's device.
    config: how the problem was built, where it was built from a ProblemConfig.
    """

    model: nn.Module
    loss: LossFn
    train: Examples | Dataset[tuple[Tensor, Tensor]]
    validation: Examples | Dataset[tuple[Tensor, Tensor]] | None = None
    test: Examples | Dataset[tuple[Tensor, Tensor]] | None = None
    config: ProblemConfig | None = None


def as_examples(data: Examples | Dataset[tuple[Tensor, Tensor]]) -> Examples:
    """All of `data` as one pair of tensors; Examples come back as they are.

    A Dataset's items must be pairs (input, target) of equal shapes throughout.
    """
    if isinstance(data, Examples):
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


def num_examples_of(data: Examples | Dataset[tuple[Tensor, Tensor]]) -> int:
    """How many examples there are; SettingError for what is neither Examples nor a map-style Dataset."""
    if isinstance(data, Examples):
        if len(data.inputs) != len(data.targets):
            raise SettingError(
                f"{len(data.inputs)} inputs but {len(data.targets)} targets: give as many of both"
            )
        return len(data.targets)
    is_map_style = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, DataLoader | tuple | list) or not is_map_style:
        raise SettingError(
            f"data of type {type(data).__name__}: give noisescale.Examples or a map-style torch Dataset"
        )
    return len(cast(Sized, data))
