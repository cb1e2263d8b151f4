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

Params = dict[str, Tensor]  # by name, as model.named_parameters() gives them
LossFn = Callable[[Tensor, Tensor], Tensor]  # outputs (B, ...), targets (B, ...) -> (B,)
MatVec = Callable[[Tensor], Tensor]  # v -> Hv, (P,) -> (P,)

SPLITS = ("train", "validation", "test")
PAIRS = (
    "the items of a Dataset must be pairs (input, target) of tensors, of equal shapes throughout"
)


class Examples(NamedTuple):
    """Inputs and targets of N examples, on one device.

    Attributes:
        inputs: (N, *F), one example a row.
        targets: (N, ...), such as classes (N,) or values (N, C).
    """

    inputs: Tensor
    targets: Tensor

    @property
    def num_examples(self) -> int:
        """N."""
        return len(self.targets)

    def part(self, rows: slice | Tensor) -> Examples:
        """The examples at these rows.

        Args:
            rows: a slice, which copies nothing, or indices (n,) on the examples' device.
        """
        return Examples(self.inputs[rows], self.targets[rows])


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


def as_examples(data: Data) -> Examples:
    """All of `data` as one pair of tensors; Examples come back as they are.

    Raises:
        DataError: a Dataset whose items are not pairs (input, target) of equal shapes throughout.
        SettingError: neither Examples nor a map-style Dataset.
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


def num_examples_of(data: Data) -> int:
    """How many examples there are.

    Raises:
        SettingError: neither Examples nor a map-style Dataset, or different numbers of inputs and
            targets.
    """
    if isinstance(data, Examples):
        if len(data.inputs) != len(data.targets):
            raise SettingError(
                f"{len(data.inputs)} inputs but {len(data.targets)} targets: give as many of both"
            )
        return len(data.targets)
    is_map_style = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, DataLoader | tuple | list) or not is_map_style:
        raise SettingError(
            f"data of type {type(data).__name__}: give noisescale.Examples or a map-style torch "
            "Dataset"
        )
    return len(cast(Sized, data))
