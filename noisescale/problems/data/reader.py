"""Items read one after the other, so that reading them again gives the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from noisescale.errors import DataError, own_words
from noisescale.problems.data.examples import Examples
from noisescale.problems.data.items import Collate, are_same, collated, concatenated
from noisescale.problems.random_state import (
    GlobalStates,
    preserved_global_states,
    seed_global_states,
)


class Reader:
    """Reads a data set's items and makes batches of them; no global random state is touched.

    An item that draws random numbers, as by augmentation, from the global states of torch, numpy or
    Python is read under a seed of its own, so that it is the same whenever and in whatever company
    it is read. That it draws shows in the states after reading it. A collate function that draws
    gets every item by itself, under its seed.

    Row j ≥ N stands for another draw of item j mod N.

    Args:
        dataset: map-style, of N items.
        collate_fn: makes a batch of a list of items; None: torch's default_collate.
        seed: of the draws.

    Attributes:
        size: N.
        draws: whether items have been found to draw random numbers.
        collate_draws: whether the collate function has.
        is_free: whether `check` found items that differ though read under one seed: they have a
            generator of their own.
    """

    def __init__(self, dataset: Any, collate_fn: Collate | None = None, *, seed: int = 0) -> None:
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.seed = seed
        self.size = _length(dataset)
        self.draws = False
        self.collate_draws = False
        self.is_free = False

    @property
    def changes(self) -> bool:
        """Whether an item may differ from draw to draw, as far as has been seen."""
        return self.draws or self.collate_draws or self.is_free

    def check(self, rows: Sequence[int]) -> None:
        """Reads a few items twice, to see whether they are the same."""
        self.is_free = not are_same(self.read(rows), self.read(rows))

    def read(self, rows: Sequence[int]) -> Examples:
        """The items at these rows as one batch.

        Args:
            rows: whose order the batch has.

        Raises:
            DataError: an item cannot be read, which is named, or the items cannot be collated.
        """
        with preserved_global_states():
            items = self.items(rows)
            before = GlobalStates()
            if not self.collate_draws:
                batch = collated(items, self.collate_fn)
                self.collate_draws = before.moved()
                if not self.collate_draws:
                    return batch
            return self._collated_singly(items, rows)

    def items(self, rows: Sequence[int]) -> list[Any]:
        """The items at these rows, the global random states left anyhow."""
        if not self.draws:
            before = GlobalStates()
            items = self._at_once([row % self.size for row in rows])
            self.draws = before.moved()
            if not self.draws:
                return items
        items = []
        for row in rows:
            seed_global_states(self._seed_of(row))
            items.append(self._item(row % self.size))
        return items

    def _at_once(self, indices: list[int]) -> list[Any]:
        """The items at these indices, in one call where the data set has one for several."""
        several = getattr(self.dataset, "__getitems__", None)
        if several is not None:
            try:
                return list(several(indices))
            except Exception:  # which item it is shows below
                return [self._item(index) for index in indices]
        return [self._item(index) for index in indices]

    def _item(self, index: int) -> Any:
        """An item; DataError, with its index, for whatever the user's own code raises."""
        try:
            return self.dataset[index]
        except Exception as error:
            raise DataError(
                f"item {index} of the {type(self.dataset).__name__} cannot be read: "
                f"{own_words(error)}"
            ) from error

    def _collated_singly(self, items: list[Any], rows: Sequence[int]) -> Examples:
        """Batches of one, each under its row's seed, as one; DataError for different shapes."""
        batches = []
        for item, row in zip(items, rows, strict=True):
            seed_global_states(self._seed_of(row))
            batches.append(collated([item], self.collate_fn))
        batch = concatenated(batches)
        if batch is None:
            raise DataError(
                "the collate function draws random numbers and makes batches of different shapes "
                "of single items: draw in the Dataset, or pad to one length"
            )
        return batch

    def _seed_of(self, row: int) -> int:
        """32 bits, which numpy's and torch's generators take, that look unrelated."""
        digest = hashlib.blake2b(f"{self.seed} {row}".encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big")


def _length(dataset: Any) -> int:
    """How many items there are; DataError for whatever the user's own code raises."""
    try:
        return len(dataset)
    except Exception as error:
        raise DataError(
            f"the {type(dataset).__name__} does not tell how many items it has: {own_words(error)}"
        ) from error
