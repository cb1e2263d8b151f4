"""A data set of any length, read a part at a time as it is needed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from noisescale.errors import DataError, own_words
from noisescale.problems.data.examples import Examples
from noisescale.problems.data.items import concatenated, num_bytes
from noisescale.problems.data.reader import Reader

# Items that are read twice to see whether they are the same: few, since reading one may take long
CHECKED = 4
# What may be held in memory of data that are gone through many times: 1 GiB, in which CIFAR-10's
# training images have room in float32
HELD_BYTES = 2**30
READ_AT_ONCE = 1024  # items, where all are read into memory


class Stream:
    """The examples of a map-style Dataset, of which no more than a part is ever in memory.

    Args:
        reader: of the data set's items.
        rows: (n,), those of them that are meant, on the CPU; None: all N.
        num_workers: processes that read the next parts while one is used; 0: none.
    """

    def __init__(
        self,
        reader: Reader,
        rows: Tensor | None = None,
        *,
        num_workers: int = 0,
    ) -> None:
        self.reader = reader
        self.draws = 1  # of each item among the rows
        self._rows = rows
        self._offset = 0  # of the rows, for other draws
        self._num_workers = num_workers
        self._held: Examples | None = None
        self._stop = 0  # of the latest slice
        self._ahead: Iterator[tuple[range, Examples]] | None = None
        self._checked = False

    @property
    def num_examples(self) -> int:
        """How many there are."""
        return self.reader.size if self._rows is None else len(self._rows)

    @property
    def changes(self) -> bool:
        """Whether items may differ from read to read, as by augmentation, as far as was seen."""
        return self.reader.changes

    @property
    def notes(self) -> tuple[str, ...]:
        """That the items change, where they do."""
        if not self.changes:
            return ()
        draws = "one draw" if self.draws == 1 else f"{self.draws} draws"
        held = ", held in memory as they cannot be drawn again" if self.reader.is_free else ""
        return (
            "the items of the data set change from read to read, as by augmentation: "
            f"measured on {draws} of each{held}",
        )

    def check(self) -> Stream:
        """Itself; the first time a few items are read twice, to see whether they change."""
        if not self._checked and self.num_examples:
            num_checked = min(CHECKED, self.num_examples)
            few = torch.arange(num_checked) * self.num_examples // num_checked  # spread out
            self.reader.check(self._at(few))
            self._checked = True
        return self

    def part(self, rows: slice | Tensor) -> Examples:
        """The examples at these rows, in memory.

        Args:
            rows: indices (n,), a mask (N,) or a slice; where one goes on from the last, the workers
                read what follows.
        """
        if self._held is not None:
            return self._held.part(rows)
        if self._num_workers and isinstance(rows, slice):
            return self._part_ahead(range(self.num_examples)[rows])
        return self.reader.read(self._at(rows))

    def subset(self, rows: slice | Tensor) -> Stream:
        """The same examples, none of which is read yet.

        Args:
            rows: a slice, indices (n,) or a mask (N,).
        """
        if self._held is not None:
            return self._with(self._held.part(rows))
        return self._of(self._chosen(rows))

    def with_draws(self, draws: int) -> Stream:
        """The same items, so many draws of each.

        Args:
            draws: of those that draw random numbers.
        """
        own = self._chosen(slice(None))
        other = self._of(torch.cat([own + draw * self.reader.size for draw in range(draws)]))
        other.draws, other._held = draws, None
        return other

    def drawn(self, draw: int) -> Stream:
        """The same items under other random numbers, where they draw any.

        Args:
            draw: 0, 1, …, each of them another.
        """
        other = self._of(self._rows)
        other._offset = draw * self.reader.size
        return other

    def held(self) -> Source:
        """The examples in memory where they take no more than 1 GiB; else as they are.

        Raises:
            DataError: they do not fit, or are of different shapes, and cannot be read again as they
                are.
        """
        self.check()
        if self._held is not None or not self.num_examples:
            return self
        few = self.part(slice(CHECKED))
        if num_bytes(few) * self.num_examples > HELD_BYTES * few.num_examples:
            if self.reader.is_free:
                raise DataError(
                    f"{self.num_examples} items take more than {HELD_BYTES >> 30} GiB; they change "
                    "from read to read and cannot be drawn again, as their random numbers are not "
                    "those of torch, numpy or random: draw from one of these, or measure fewer"
                )
            return self
        whole = concatenated(list(self._parts()))
        if whole is not None:
            return self._with(whole) if self.changes else whole
        if self.reader.is_free:
            raise DataError(
                "items of different shapes change from read to read and cannot be drawn again, as "
                "their random numbers are not those of torch, numpy or random: draw from one of "
                "these"
            )
        return self

    def whole(self) -> Examples:
        """All the examples in memory, as one batch."""
        return concatenated(list(self._parts())) or self.part(slice(None))

    def targets(self) -> Tensor:
        """The targets (n,) of all examples, where they are one number for each."""
        return torch.cat([part.targets for part in self._parts()])

    def _parts(self) -> Iterator[Examples]:
        """The examples, some at a time."""
        for start in range(0, self.num_examples, READ_AT_ONCE):
            yield self.part(slice(start, start + READ_AT_ONCE))

    def _with(self, held: Examples) -> Stream:
        """The same data set, of which these are the examples."""
        other = self._of(torch.arange(held.num_examples))
        other._held = held
        return other

    def _of(self, rows: Tensor | None) -> Stream:
        """The same data set at other rows."""
        other = copy.copy(self)
        other._rows, other._ahead, other._stop = rows, None, 0
        return other

    def _chosen(self, rows: slice | Tensor) -> Tensor:
        """The reader's rows (n,) at some of these, this draw's offset left out."""
        rows = rows.cpu() if isinstance(rows, Tensor) else rows
        if self._rows is not None:
            return self._rows[rows]
        if isinstance(rows, slice):
            return torch.arange(*rows.indices(self.num_examples))
        return rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows

    def _at(self, rows: slice | Tensor) -> list[int]:
        """The reader's rows at some of these."""
        return [row + self._offset for row in self._chosen(rows).tolist()]

    def _part_ahead(self, span: range) -> Examples:
        """The examples of a span; one that goes on from the last is read ahead by the workers."""
        goes_on = 0 < span.start == self._stop
        ahead, self._ahead, self._stop = self._ahead, None, span.stop
        if not goes_on:
            return self.reader.read(self._at(slice(span.start, span.stop)))
        read, examples = (range(0), None) if ahead is None else next(ahead, (range(0), None))
        if ahead is None or read != span or examples is None:  # the first, or of another size
            ahead = self._read_ahead(span.start, len(span))
            _, examples = next(ahead)
        if span.stop == self.num_examples:
            next(ahead, None)  # its end, so that the workers end now and not whenever it is missed
        else:
            self._ahead = ahead
        return examples

    def _read_ahead(self, start: int, size: int) -> Iterator[tuple[range, Examples]]:
        """The examples from here on, so many at a time, read by the workers."""
        every = range(self.num_examples)
        spans = [every[first : first + size] for first in every[start::size]]
        parts = _Parts(self, spans)
        loader: DataLoader[Any] = DataLoader(
            parts,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=self._num_workers,
            generator=torch.Generator(),  # else the workers' seed is drawn from the global state
        )
        try:
            for span, (examples, draws, collate_draws) in zip(spans, loader, strict=True):
                if isinstance(examples, str):
                    raise DataError(examples)
                self.reader.draws |= draws
                self.reader.collate_draws |= collate_draws
                yield span, examples
        except DataError:
            raise
        except Exception as error:  # a worker that died, or a data set that cannot be sent to one
            raise DataError(
                f"the {self._num_workers} workers that read the data fail: {own_words(error)}; "
                "give the DataLoader num_workers=0"
            ) from error


class _Parts(Dataset[Any]):
    """What workers read: spans of a stream's examples, with what the reader has found."""

    def __init__(self, stream: Stream, spans: Sequence[range]) -> None:
        self._stream = copy.copy(stream)
        self._stream._ahead = None
        self._spans = spans

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> tuple[Examples | str, bool, bool]:
        """A batch, or why there is none, as torch would bury the message in a traceback."""
        span, reader = self._spans[index], self._stream.reader
        try:
            examples: Examples | str = reader.read(self._stream._at(slice(span.start, span.stop)))
        except DataError as error:
            examples = str(error)
        return examples, reader.draws, reader.collate_draws


Source = Examples | Stream  # examples that lie in memory, or are read as they are needed


def _unchanged(value: Any) -> Any:
    return value
