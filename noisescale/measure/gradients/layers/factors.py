"""Per-example gradients of one tensor as factors, their norms and their sum, in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from noisescale.statistics.display import one_line

# Numbers that are written out at a time: 16 MiB in float32 on a CPU, which its allocator hands out
# again without new page faults; 256 MiB on a GPU, enough that a kernel fills it
WRITTEN, WRITTEN_ON_GPU = 2**22, 2**26
# Multiply–adds in whose time a number is written, squared and summed (measured: 20 to 40 on two
# cores), by which the Gram form is held against writing out
WRITING = 24
LONGEST_ROW = 4096  # numbers whose squares are summed in their own precision: to about 1e-6


class ExampleGradients(Protocol):
    """The gradients g_i of B examples with respect to one tensor, in some form."""

    def __len__(self) -> int:
        """B."""

    def __getitem__(self, rows: slice) -> ExampleGradients:
        """Those of some of the examples."""

    @property
    def device(self) -> torch.device:
        """Where they are."""

    @property
    def written(self) -> int:
        """Numbers that writing out one example's gradient takes."""

    def dense(self) -> Tensor:
        """(B, *shape)."""

    def total(self) -> Tensor:
        """Σ_i g_i (*shape), without writing the single ones out where that can be."""

    def project(self, direction: Tensor) -> Tensor:
        """The inner products g_i·direction: (B,), float64.

        Args:
            direction: (*shape).
        """


@dataclass(frozen=True)
class Dense:
    """Gradients written out, (B, *shape)."""

    values: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Dense:
        return Dense(self.values[rows])

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def written(self) -> int:
        return self.values.shape[1:].numel()

    def dense(self) -> Tensor:
        return self.values

    def total(self) -> Tensor:
        return self.values.sum(0)

    def project(self, direction: Tensor) -> Tensor:
        return _row_sums(self.values * direction)


@dataclass(frozen=True, repr=False)
class Outer:
    """Gradients as sums of outer products, g_i = Σ_s left_is ⊗ right_is.

    S counts the places where the tensor is used: sequence positions, pixels; 1 for a plain linear
    layer. G counts groups of the tensor's rows, each with outer products of its own: 1 but for
    grouped convolutions.

    Attributes:
        left: (B, G, S, O); in a rule of one's own also integers (B, 1, S) that stand for one-hot
            rows, as of an embedding.
        right: (B, G, S, I).
        shape: the tensor's, of G·O·I elements.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    def __repr__(self) -> str:
        parts = {"left": self.left.shape, "right": self.right.shape, "shape": self.shape}
        return one_line(self, *(f"{name} {tuple(size)}" for name, size in parts.items()))

    def __len__(self) -> int:
        return len(self.right)

    def __getitem__(self, rows: slice) -> Outer:
        return Outer(self.left[rows], self.right[rows], self.shape)

    @property
    def places(self) -> int:
        """S."""
        return self.right.shape[2]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.right.device

    @property
    def written(self) -> int:
        """Numbers that writing out one example's gradient takes."""
        return self.shape.numel()

    def dense(self) -> Tensor:
        """The gradients written out, (B, *shape)."""
        return (self.left.mT @ self.right).reshape(len(self), *self.shape)  # (B, G, O, I)

    def total(self) -> Tensor:
        """Their sum over the examples (*shape), without writing them out."""
        left, right = self.left.movedim(1, 0), self.right.movedim(1, 0)  # (G, B, S, ·)
        return (left.flatten(1, 2).mT @ right.flatten(1, 2)).reshape(self.shape)

    def project(self, direction: Tensor) -> Tensor:
        """The inner products with a direction: (B,), float64.

        Args:
            direction: of the tensor's shape.
        """
        groups, rows, columns = self.left.shape[1], self.left.shape[3], self.right.shape[3]
        matrix = direction.reshape(groups, rows, columns)
        is_one = groups == 1
        images = F.linear(self.right, matrix[0]) if is_one else self.right @ matrix.mT
        return _row_sums(images * self.left)

    def transposed(self) -> Outer:
        """The gradients with respect to the transpose, of a tensor of two dimensions."""
        return Outer(self.right, self.left, torch.Size(reversed(self.shape)))

    def blocks(self) -> Sequence[Outer]:
        """Itself in blocks of the tensor's rows, of which one example's fits into the budget."""
        columns = self.right.shape[3]
        step = max(_budget(self) // columns, 1)
        if self.left.shape[1] > 1 or step >= self.left.shape[3]:
            return [self]
        return [
            Outer(block, self.right, torch.Size([block.shape[3], columns]))
            for block in self.left.split(step, 3)
        ]


@dataclass(frozen=True)
class Rows:
    """Gradients of which few rows are not zero, as an embedding's: row index_is gets values_is.

    Attributes:
        index: (B, S), integers below V.
        values: (B, S, D).
        shape: (V, D).
    """

    index: Tensor
    values: Tensor
    shape: torch.Size

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> Rows:
        return Rows(self.index[rows], self.values[rows], self.shape)

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def written(self) -> int:
        return self.shape.numel()

    def dense(self) -> Tensor:
        written = self.values.new_zeros(len(self), *self.shape)
        index = self.index.unsqueeze(-1).expand_as(self.values)
        return written.scatter_add_(1, index, self.values)

    def total(self) -> Tensor:
        zeros = self.values.new_zeros(self.shape)
        return zeros.index_add_(0, self.index.flatten(), self.values.flatten(0, 1))

    def project(self, direction: Tensor) -> Tensor:
        return _row_sums(direction[self.index] * self.values)


@dataclass(frozen=True)
class Convolved:
    """Gradients of a convolution's weight, g_i = Σ over places of gradient ⊗ patch of the inputs.

    Attributes:
        inputs: (B, m, C, *sizes), padded; m images of each example.
        gradient: of the outputs, (B, m, O, *places).
        shape: of the weight, (O, C/groups, *kernel).
        stride: along each of the sizes.
        dilation: along each of the sizes.
        groups: into which the channels fall.
    """

    inputs: Tensor
    gradient: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> Convolved:
        return replace(self, inputs=self.inputs[rows], gradient=self.gradient[rows])

    @property
    def device(self) -> torch.device:
        return self.inputs.device

    @property
    def written(self) -> int:
        patches = self.gradient.shape[3:].numel() * self.shape[1:].numel() * self.groups
        return self.shape.numel() + self.inputs.shape[1] * patches

    def outer(self) -> Outer:
        """With the patches copied out, which takes the kernel's size times the inputs' memory."""
        examples, images, channels = self.inputs.shape[:3]
        sizes, kernel = self.gradient.shape[3:], self.shape[2:]
        strides = self.inputs.stride()
        steps = [step * along for step, along in zip(strides[3:], self.stride, strict=True)]
        within = [step * along for step, along in zip(strides[3:], self.dilation, strict=True)]
        windows = self.inputs.as_strided(  # a view; places last, along which copying is quick
            (examples, images, channels, *kernel, *sizes), (*strides[:3], *within, *steps)
        )
        grouped = windows.unflatten(2, (self.groups, -1)).movedim(1, 3 + len(kernel))
        right = grouped.reshape(examples, self.groups, self.shape[1:].numel(), -1).mT
        left = self.gradient.flatten(3).unflatten(2, (self.groups, -1))  # (B, m, G, O/G, S)
        left = left.movedim(1, 3).flatten(3).mT  # (B, G, m·S, O/G)
        return Outer(left, right, self.shape)

    def dense(self) -> Tensor:
        return self.outer().dense()

    def total(self) -> Tensor:
        return self.outer().total()

    def project(self, direction: Tensor) -> Tensor:
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(self.stride)]
        outputs = convolve(
            self.inputs.flatten(0, 1),
            direction.reshape(self.shape),
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
        )
        for dim, size in enumerate(self.gradient.shape[3:], 2):
            outputs = outputs.narrow(dim, 0, size)
        return _row_sums(outputs.reshape(self.gradient.shape) * self.gradient)


@dataclass(frozen=True)
class Pulled:
    """Gradients with respect to a parameter by those with respect to what was made of it.

    Attributes:
        pieces: with respect to the tensor that was made of the parameter.
        back: (B, *shape of that tensor) -> (B, *shape of the parameter), linear.
        shape: of the parameter.
    """

    pieces: Sequence[ExampleGradients]
    back: Callable[[Tensor], Tensor]
    shape: torch.Size

    def __len__(self) -> int:
        return len(self.pieces[0])

    def __getitem__(self, rows: slice) -> Pulled:
        return replace(self, pieces=[piece[rows] for piece in self.pieces])

    @property
    def device(self) -> torch.device:
        return self.pieces[0].device

    @property
    def written(self) -> int:
        return self.shape.numel() + max(piece.written for piece in self.pieces)

    def dense(self) -> Tensor:
        return self.back(_written_sum(self.pieces))

    def total(self) -> Tensor:
        return self.back(torch.stack([piece.total() for piece in self.pieces]).sum(0)[None])[0]

    def project(self, direction: Tensor) -> Tensor:
        groups = _groups([self], self.written)
        return torch.cat([_row_sums(group.dense() * direction) for (group,) in groups])


def project_all(pieces: ExampleGradients, directions: Sequence[Tensor]) -> Tensor:
    """The inner products of B gradients with K directions of the tensor's shape: (K, B), float64.

    Outer products at several places are written out once for all directions where that is quicker:
    each direction by itself costs as much as writing out.

    Args:
        pieces: the gradients.
        directions: K of the tensor's shape.
    """
    places = 1
    if isinstance(pieces, Outer):
        places = pieces.places
    elif isinstance(pieces, Convolved):
        places = pieces.inputs.shape[1] * pieces.gradient.shape[3:].numel()
    if (len(directions) - 1) * places <= WRITING:
        return torch.stack([pieces.project(direction) for direction in directions])
    matrix = torch.stack([direction.flatten() for direction in directions], 1)  # (P, K)
    parts = [group.dense().flatten(1) @ matrix for (group,) in _groups([pieces], pieces.written)]
    return torch.cat(parts).mT.double()


class Summary(NamedTuple):
    """What is kept of B per-example gradients with respect to one tensor.

    squared_norms: |g_i|² (B,), float64. total: Σ_i g_i (*shape). weighted: Σ_p w_p g_ip² (B,),
    float64; None without weights.
    """

    squared_norms: Tensor
    total: Tensor
    weighted: Tensor | None = None


def summarise(pieces: Sequence[ExampleGradients], weights: Tensor | None = None) -> Summary:
    """Norms and sum of g_i = Σ pieces_i; several pieces for a tensor used in several places.

    Outer products at a single place by the norms of their factors (Goodfellow 2015, arXiv
    1510.01799), with weights (left²)ᵀ w right²; at several places either by their Gram matrices,
    Σ_{s,t} (left_s·left_t)(right_s·right_t), and one product for the sum, or written out, a few
    examples or rows at a time, from which all of it follows: whichever is quicker. No Gram form
    knows weights, but that of an embedding's rows, each of which has its own.

    Args:
        pieces: of the same B examples, with respect to the same tensor.
        weights: w_p of the squared components (*shape), for norms beside the plain ones; None:
            none.
    """
    if any(isinstance(piece, Convolved) for piece in pieces):
        return _with_patches(pieces, weights)
    pieces = _merged(pieces)
    first, is_one = pieces[0], len(pieces) == 1
    if is_one and isinstance(first, Outer) and first.places == 1:
        weighted = None if weights is None else _weighted_rank_one_norms(first, weights)
        return Summary(_rank_one_norms(first), first.total(), weighted)
    if is_one and isinstance(first, Rows) and _suit_gram(pieces):
        return Summary(_norms_by_gram(pieces), first.total(), _weighted_rows(first, weights))
    if weights is None and _suit_gram(pieces):
        total = torch.stack([piece.total() for piece in pieces]).sum(0)
        return Summary(_norms_by_gram(pieces), total)
    if is_one and isinstance(first, Outer):
        return _by_blocks(first, weights)
    return _written_out(pieces, weights)


def coordinate_sums(pieces: Sequence[ExampleGradients]) -> tuple[Tensor, Tensor]:
    """Σ_i g_i and Σ_i g_i², coordinate by coordinate, of g_i = Σ pieces_i: (*shape) each.

    Of outer products at a single place by a product of squares, else written out.

    Args:
        pieces: of the same B examples, with respect to the same tensor.
    """
    pieces = _merged(pieces)
    first = pieces[0]
    if len(pieces) == 1 and isinstance(first, Outer) and first.places == 1:
        squared = Outer(first.left.square(), first.right.square(), first.shape)
        return first.total(), squared.total()
    sums, squares = [], []
    for group in _groups(pieces, sum(piece.written for piece in pieces)):
        written = _written_sum(group)
        sums.append(written.sum(0))
        squares.append(written.square().sum(0))
    return torch.stack(sums).sum(0), torch.stack(squares).sum(0)


def _by_blocks(piece: Outer, weights: Tensor | None) -> Summary:
    """Outer products written out, in blocks of rows where one example's exceed the budget."""
    blocks = piece.blocks()
    if len(blocks) == 1:
        return _written_out([piece], weights)
    columns = piece.right.shape[3]
    parts: Sequence[Tensor | None] = [None] * len(blocks)
    if weights is not None:
        parts = weights.reshape(-1, columns).split([block.left.shape[3] for block in blocks])
    summaries = [_written_out([block], part) for block, part in zip(blocks, parts, strict=True)]
    return Summary(
        torch.stack([summary.squared_norms for summary in summaries]).sum(0),
        torch.cat([summary.total for summary in summaries]).reshape(piece.shape),
        _stacked_sum([summary.weighted for summary in summaries]),
    )


def _stacked_sum(parts: Sequence[Tensor | None]) -> Tensor | None:
    """The sum of norms of parts (B,); None where there are none."""
    known = [part for part in parts if part is not None]
    return torch.stack(known).sum(0) if known else None


def _with_patches(pieces: Sequence[ExampleGradients], weights: Tensor | None) -> Summary:
    """Convolutions by their patches, copied out for as many examples as the budget holds."""
    summaries = []
    for group in _groups(pieces, sum(piece.written for piece in pieces)):
        factored = [piece.outer() if isinstance(piece, Convolved) else piece for piece in group]
        summaries.append(summarise(factored, weights))
    return Summary(
        torch.cat([summary.squared_norms for summary in summaries]),
        torch.stack([summary.total for summary in summaries]).sum(0),
        _joined([summary.weighted for summary in summaries]),
    )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Norms of several groups of examples, one after the other; None where there are none."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if known else None


def _merged(pieces: Sequence[ExampleGradients]) -> Sequence[ExampleGradients]:
    """Several sums of outer products as one, over all their places."""
    outers = [piece for piece in pieces if isinstance(piece, Outer)]
    if len(outers) < 2:
        return pieces
    left = torch.cat([piece.left for piece in outers], 2)  # (B, G, S + T, O)
    right = torch.cat([piece.right for piece in outers], 2)
    others = [piece for piece in pieces if not isinstance(piece, Outer)]
    return [Outer(left, right, outers[0].shape), *others]


def _rank_one_norms(piece: Outer) -> Tensor:
    """|left ⊗ right|² of outer products at a single place: (B,), float64."""
    left, right = piece.left.squeeze(2), piece.right.squeeze(2)  # (B, G, O), (B, G, I)
    return (_squared_lengths(left) * _squared_lengths(right)).sum(1)


def _weighted_rank_one_norms(piece: Outer, weights: Tensor) -> Tensor:
    """Σ w_oi left_o² right_i² of outer products at a single place: (B,), float64."""
    left, right = piece.left.squeeze(2).square(), piece.right.squeeze(2).square()
    groups, rows, columns = left.shape[1], left.shape[2], right.shape[2]
    matrix = weights.reshape(groups, rows, columns)
    is_one = groups == 1
    images = F.linear(right, matrix[0]) if is_one else torch.einsum("goi,bgi->bgo", matrix, right)
    return _row_sums(images * left)


def _weighted_rows(piece: Rows, weights: Tensor | None) -> Tensor | None:
    """Σ w_vd g_vd² where few rows v are not zero: (B,), float64, by each place's row in all.

    A row that is used at k places is summed once at each of them, for 1/k.
    """
    if weights is None:
        return None
    norms = []
    numbers = 2 * piece.index.shape[1] ** 2 + 2 * piece.values[0].numel()
    step = max(_budget(piece) // numbers, 1)
    for start in range(0, len(piece), step):
        few = piece[start : start + step]
        index, values = few.index, few.values  # (b, S), (b, S, D)
        same = (index.unsqueeze(2) == index.unsqueeze(1)).to(values)  # (b, S, S)
        in_all = same @ values  # (b, S, D): the gradient of each place's row
        of_places = (in_all.square() * weights[index]).sum(2) / same.sum(2)  # (b, S)
        norms.append(_row_sums(of_places))
    return torch.cat(norms)


def _suit_gram(pieces: Sequence[ExampleGradients]) -> bool:
    """Whether Gram matrices, beside a product for the sum, are quicker than writing out."""
    if not all(isinstance(piece, Outer | Rows) for piece in pieces):
        return False
    places = rows = groups = 0
    for piece in pieces:
        if isinstance(piece, Rows):
            places += piece.index.shape[1]
            columns, size = piece.values.shape[2], piece.shape.numel()
            groups = max(groups, 1)
        elif isinstance(piece, Outer):
            places += piece.places
            rows, columns, size = piece.left.shape[3], piece.right.shape[3], piece.shape.numel()
            groups = piece.left.shape[1]
    if len(pieces) > 1 and groups > 1:
        return False
    return groups * places**2 * (rows + columns) < WRITING * size


def _norms_by_gram(pieces: Sequence[ExampleGradients]) -> Tensor:
    """|Σ pieces|² of each example from inner products of the factors: (B,), float64."""
    norms = []
    for group in _groups(pieces, sum(_gram_size(piece) for piece in pieces)):
        products = []
        for index, first in enumerate(group):
            for second in group[: index + 1]:
                once = _row_sums(_gram(first, second))
                products.append(once if first is second else 2 * once)
        norms.append(torch.stack(products).sum(0))
    return torch.cat(norms)


def _gram_size(piece: ExampleGradients) -> int:
    """Numbers that an example's Gram matrix takes."""
    if isinstance(piece, Rows):
        return piece.index.shape[1] ** 2
    return piece.left.shape[1] * piece.places**2 if isinstance(piece, Outer) else 0


def _gram(first: ExampleGradients, second: ExampleGradients) -> Tensor:
    """(left_s·left_t)(right_s·right_t) of two kinds of products: (B, ..., S, T)."""
    if isinstance(first, Outer) and isinstance(second, Outer):
        return (first.left @ second.left.mT) * (first.right @ second.right.mT)
    if isinstance(first, Rows) and isinstance(second, Rows):
        same = first.index.unsqueeze(2) == second.index.unsqueeze(1)  # (B, S, T)
        return same * (first.values @ second.values.mT)
    if isinstance(first, Rows) and isinstance(second, Outer):
        index = first.index.unsqueeze(1).expand(-1, second.places, -1)
        lefts = second.left[:, 0].gather(2, index)  # (B, T, S): left_t at the row of s
        return lefts * (second.right[:, 0] @ first.values.mT)
    return _gram(second, first)


def _written_out(pieces: Sequence[ExampleGradients], weights: Tensor | None = None) -> Summary:
    """By the gradients in full, no more of them at a time than the budget holds."""
    norms: list[Tensor] = []
    weighted: list[Tensor] = []
    total: Tensor | None = None
    for group in _groups(pieces, sum(piece.written for piece in pieces)):
        written = _written_sum(group)
        norms.append(_squares(written))
        if weights is not None:  # a product, which sums as it reads
            weighted.append((written.square().flatten(1) @ weights.flatten()).double())
        total = written.sum(0) if total is None else total + written.sum(0)
    assert total is not None
    return Summary(torch.cat(norms), total, _joined(weighted))


def _written_sum(pieces: Sequence[ExampleGradients]) -> Tensor:
    """Σ pieces in full, (B, *shape)."""
    first, *others = (piece.dense() for piece in pieces)
    for other in others:
        first = first + other
    return first


def _groups(
    pieces: Sequence[ExampleGradients], numbers: int
) -> Iterator[Sequence[ExampleGradients]]:
    """The pieces of a few examples after the others', as many as the budget holds.

    numbers: that one example takes.
    """
    step = max(_budget(pieces[0]) // max(numbers, 1), 1)
    for start in range(0, len(pieces[0]), step):
        yield [piece[start : start + step] for piece in pieces]


def _budget(piece: ExampleGradients) -> int:
    """Numbers that are written out at a time."""
    return WRITTEN_ON_GPU if piece.device.type == "cuda" else WRITTEN


def _squares(written: Tensor) -> Tensor:
    """(B, *shape) -> (B,), float64; rows in their own precision, which saves a copy."""
    if written[0].numel() <= LONGEST_ROW:
        return _squared_lengths(written.reshape(len(written), -1))
    if written.ndim == 2:
        return written.double().square().sum(1)
    return _squared_lengths(written.flatten(2)).sum(1)  # (B, O, I)


def _squared_lengths(values: Tensor) -> Tensor:
    """(..., K) -> (...), float64."""
    lengths: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return lengths.double().square()


def _row_sums(values: Tensor) -> Tensor:
    """Over all but the first dimension: (B, ...) -> (B,), float64.

    Rows in their own precision, which saves a copy, and their sum in float64.
    """
    if values.ndim == 1:
        return values.double()
    return values.sum(-1).reshape(len(values), -1).double().sum(1)
