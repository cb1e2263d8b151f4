"""Which examples, in which order: random subsets of a split, and the batches of a run."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noisescale.errors import SettingError, check_count
from noisescale.problems.data.stream import Stream
from noisescale.problems.problem import (
    SPLITS,
    Data,
    Examples,
    Problem,
    Source,
    held,
    source_of,
)
from noisescale.statistics.scores.cross_validation import fold_indices

LARGEST_SEED = 2**62  # of a draw that is to be a seed


class Selection(NamedTuple):
    """A random subset of a split.

    examples: the n examples chosen, of a Dataset not read yet.
    indices: (n,), which of the split's they are, on the CPU.
    population_size: N, how many the split has in all.
    """

    examples: Source
    indices: Tensor
    population_size: int


def select(
    problem: Problem,
    *,
    split: str = "train",
    num_examples: int | None = None,
    generator: torch.Generator | None = None,
    augmentations: int = 1,
) -> Selection:
    """A random subset of a split's examples, in random order; all of them in their own order.

    Random, never the first n: the order of a data set is seldom exchangeable. Of a Dataset a few of
    the chosen items are read, to see whether they can be and whether they change from read to read;
    the others as they are needed. Items that change and cannot be drawn again, since they have a
    random generator of their own, are read and held.

    Args:
        problem: whose examples they are.
        split: "train", "validation" or "test".
        num_examples: n; None, or as many as there are: all.
        generator: of the choice, on the CPU; None: seed 0. What items draw at random follows from
            the seed it began with.
        augmentations: how many draws of each example the split is made of, where items change from
            read to read.

    Raises:
        SettingError: a split that the problem lacks, a number of examples that it does not have, or
            augmentations of items that do not change.
        DataError: an item that cannot be read, or items that make no batch.
    """
    generator = generator or torch.Generator().manual_seed(0)
    source = split_source(
        problem, split, seed=generator.initial_seed(), augmentations=augmentations
    )
    population_size = source.num_examples
    if num_examples is not None:
        check_count("num examples", num_examples)
    if num_examples is None or num_examples == population_size:
        return Selection(_checked(source), torch.arange(population_size), population_size)
    if not 1 <= num_examples <= population_size:
        raise SettingError(
            f"num examples {num_examples}: the {split} split has {population_size}; "
            f"give 1 to {population_size}"
        )
    # not the order in which a run of the same seed first trains on them, see `Batches`
    drawn = int(torch.randint(LARGEST_SEED, (), generator=generator))
    own = torch.Generator().manual_seed(independent_seed("subset", drawn))
    indices = torch.randperm(population_size, generator=own)[:num_examples]
    return Selection(_checked(source.subset(indices)), indices, population_size)


def split_source(problem: Problem, split: str, *, seed: int = 0, augmentations: int = 1) -> Source:
    """The examples of a split, of a Dataset not read yet.

    Args:
        problem: whose examples they are.
        split: "train", "validation" or "test".
        seed: of what items draw at random.
        augmentations: how many draws of each example there are; more than one takes items that
            change.
    """
    check_count("augmentations", augmentations)
    source = source_of(split_data(problem, split), seed=seed, draws=augmentations)
    if augmentations > 1:
        changes = isinstance(source, Stream) and source.check().changes
        if not changes:
            raise SettingError(
                f"augmentations {augmentations}: the items of the {split} split do not change from "
                "read to read; leave it at 1"
            )
    return source


def without_fold(problem: Problem, fold: int, num_folds: int) -> Problem:
    """The problem on its training examples but those of one fold, now its validation split.

    Args:
        problem: whose training examples are divided, always in the same way, see `fold_indices`.
        fold: which one is left out, from 0.
        num_folds: k.
    """
    source = source_of(problem.train)
    parts = [torch.from_numpy(part) for part in fold_indices(source.num_examples, num_folds)]
    kept = torch.cat([part for number, part in enumerate(parts) if number != fold]).sort().values
    return replace(problem, train=source.subset(kept), validation=source.subset(parts[fold]))


def part_of(data: Data, indices: Tensor) -> Examples:
    """The examples at indices (n,) on the CPU; of a Dataset only these are read."""
    return source_of(data).part(indices)


def _checked(source: Source) -> Source:
    """The same examples; held where they can be read only once."""
    if isinstance(source, Stream) and source.check().reader.is_free:
        return held(source)
    return source


def split_data(problem: Problem, split: str) -> Data:
    """The data of a split; SettingError for one that the problem lacks."""
    present = [name for name in SPLITS if getattr(problem, name) is not None]
    if split not in present:
        raise SettingError(f"split {split!r}: this problem has {', '.join(present)}")
    data: Data = getattr(problem, split)
    return data


def independent_seed(*labels: int | str) -> int:
    """A seed below 2**63 for what these labels name, such as the orders of one seed at one size.

    Args:
        labels: in which order they are given matters.
    """
    digest = hashlib.blake2b(repr(labels).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


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
