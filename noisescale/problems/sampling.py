"""Which examples, in which order: random subsets of a split, and the batches of a run."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset

from noisescale.errors import SettingError
from noisescale.problems.problem import (
    SPLITS,
    Data,
    Examples,
    Problem,
    as_examples,
    num_examples_of,
)


class Selection(NamedTuple):
    """A random subset of a split.

    examples: the n examples chosen.
    indices: (n,), which of the split's they are, on the CPU.
    population_size: N, how many the split has in all.
    """

    examples: Examples
    indices: Tensor
    population_size: int


def select(
    problem: Problem,
    *,
    split: str = "train",
    num_examples: int | None = None,
    generator: torch.Generator | None = None,
) -> Selection:
    """A random subset of a split's examples, in random order; all of them in their own order.

    Random, never the first n: the order of a data set is seldom exchangeable. Of a Dataset only the
    chosen items are read.

    Args:
        problem: whose examples they are.
        split: "train", "validation" or "test".
        num_examples: n; None, or as many as there are: all.
        generator: of the choice, on the CPU; None: seed 0.

    Raises:
        SettingError: a split that the problem lacks, or a number of examples that it does not have.
    """
    data = split_data(problem, split)
    population_size = num_examples_of(data)
    if num_examples is not None and not isinstance(num_examples, int):
        raise SettingError(f"num examples {num_examples!r}: give a whole number")
    if num_examples is None or num_examples == population_size:
        return Selection(as_examples(data), torch.arange(population_size), population_size)
    if not 1 <= num_examples <= population_size:
        raise SettingError(
            f"num examples {num_examples}: the {split} split has {population_size}; "
            f"give 1 to {population_size}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    indices = torch.randperm(population_size, generator=generator)[:num_examples]
    return Selection(part_of(data, indices), indices, population_size)


def part_of(data: Data, indices: Tensor) -> Examples:
    """The examples at indices (n,) on the CPU; of a Dataset only these are read."""
    if isinstance(data, Examples):
        return data.part(indices)
    return as_examples(Subset(data, indices.tolist()))


def split_data(problem: Problem, split: str) -> Data:
    """The data of a split; SettingError for one that the problem lacks."""
    present = [name for name in SPLITS if getattr(problem, name) is not None]
    if split not in present:
        raise SettingError(f"split {split!r}: this problem has {', '.join(present)}")
    data: Data = getattr(problem, split)
    return data


class Batches:
    """Indices of examples without replacement, a fresh permutation each epoch, batches of any size.

    The batch size is an argument of every `take`, so it may change between any two steps at no
    cost: an epoch ends when every example has been used once, however the batches divided it, and
    its last batch is the ragged rest.

    Args:
        num_examples: N, how many there are.
        seed: of the permutations, which are drawn on the CPU: the same on every device.
        device: of the indices.
    """

    def __init__(self, num_examples: int, *, seed: int, device: torch.device | str = "cpu") -> None:
        self.num_examples = num_examples
        self.device = device
        self.epoch = 0
        self.offset = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._shuffle()

    @property
    def remaining(self) -> int:
        """Examples left in this epoch."""
        return self.num_examples - self.offset

    def take(self, batch_size: int) -> Tensor:
        """The next min(batch_size, remaining) indices, from a new epoch where one has ended."""
        if self.remaining == 0:
            self.epoch += 1
            self.offset = 0
            self._shuffle()
        indices = self._permutation[self.offset : self.offset + batch_size]
        self.offset += len(indices)
        return indices

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the offset in it, and the generator before this epoch's permutation."""
        return {
            "epoch": self.epoch,
            "offset": self.offset,
            "generator": self._generator_state.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.epoch, self.offset = state["epoch"], state["offset"]
        self._generator.set_state(state["generator"].cpu())
        self._shuffle()

    def _shuffle(self) -> None:
        """Draws this epoch's permutation, and keeps what it was drawn from."""
        self._generator_state = self._generator.get_state()
        permutation = torch.randperm(self.num_examples, generator=self._generator)
        self._permutation = permutation.to(self.device)
