"""Per-example gradients of one parameter as factors, and their norms without ever being written out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TEMPORARY_BYTES = 2**26  # what a step may take beyond its operands, before it is divided over examples


@dataclass(frozen=True)
class Outer:
    """g_i = Σ_s left_is ⊗ right_is, for each of G groups of the parameter's rows.

    left: (B, G, S, O), or (B, G, S) integers that stand for one-hot rows, as of an embedding.
    right: (B, G, S, I). shape: the parameter's, of G·O·I elements (G = 1 but for grouped convolutions).
    S counts the places where the parameter is used: sequence positions, pixels; 1 for a plain linear layer.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    @property
    def num_rows(self) -> int:
        """O."""
        return self.shape.numel() // (self.right.shape[1] * self.right.shape[3])

    def part(self, rows: slice) -> Outer:
        return Outer(self.left[rows], self.right[rows], self.shape)

    def dense(self) -> Tensor:
        """(B, *shape)."""
        left = self.left
        if left.ndim == 3:
            left = torch.nn.functional.one_hot(left, self.num_rows).to(self.right)
        gradients = torch.einsum("bgso,bgsi->bgoi", left, self.right)
        return gradients.reshape(len(left), *self.shape)


ExampleGradients = Outer | Tensor  # a tensor: written out, (B, *shape)


def squared_norms(pieces: Sequence[ExampleGradients]) -> Tensor:
    """|Σ pieces|² of each example: (B,), float64. Several pieces: a parameter used in several places.

    Outer products either by their Gram matrices, Σ_{s,t} (left_s·left_t)(right_s·right_t), or written out,
    whichever takes fewer operations (Goodfellow 2015, arXiv 1510.01799, for S = 1).
    """
    outers = [piece for piece in pieces if isinstance(piece, Outer)]
    if len(outers) == len(pieces):
        first, places = outers[0], sum(outer.right.shape[2] for outer in outers)
        if len(outers) == 1 and places == 1 and first.left.ndim == 4:
            return (_squares(first.left, -1) * _squares(first.right, -1)).sum((1, 2))
        rows, columns = first.num_rows, first.right.shape[3]
        if all(outer.left.ndim == 3 for outer in outers) or places * (rows + columns) < rows * columns:
            return _in_parts(_squared_norms_by_gram, outers, places**2)
    size = pieces[0].shape.numel() if isinstance(pieces[0], Outer) else pieces[0][0].numel()
    return _in_parts(_squared_norms_written_out, pieces, size)


def projections(pieces: Sequence[ExampleGradients], direction: Tensor) -> Tensor:
    """The inner product of Σ pieces with `direction` (*shape), of each example: (B,), float64."""
    return torch.stack([_projection(piece, direction) for piece in pieces]).sum(0)


def _projection(piece: ExampleGradients, direction: Tensor) -> Tensor:
    if not isinstance(piece, Outer):
        return (piece * direction).reshape(len(piece), -1).sum(1, dtype=torch.float64)
    groups, columns = piece.right.shape[1], piece.right.shape[3]
    matrix = direction.reshape(groups, piece.num_rows, columns)  # (G, O, I)
    if piece.left.ndim == 3:
        images = matrix[0][piece.left]  # (B, 1, S, I): an embedding has no groups
        return (images * piece.right).flatten(1).sum(1, dtype=torch.float64)
    if groups == 1:
        images = torch.nn.functional.linear(piece.right, matrix[0])  # (B, 1, S, O)
    else:
        images = torch.einsum("bgsi,goi->bgso", piece.right, matrix)
    return images.mul_(piece.left).flatten(1).sum(1, dtype=torch.float64)


def _squared_norms_written_out(pieces: Sequence[ExampleGradients]) -> Tensor:
    total = sum(piece.dense() if isinstance(piece, Outer) else piece for piece in pieces)
    assert isinstance(total, Tensor)
    return _squares(total.reshape(len(total), -1), 1)


def _squared_norms_by_gram(pieces: Sequence[ExampleGradients]) -> Tensor:
    total: Tensor | float = 0.0
    for index, one in enumerate(pieces):
        for other in pieces[: index + 1]:
            assert isinstance(one, Outer)
            assert isinstance(other, Outer)
            products = _left_gram(one, other) * (one.right @ other.right.mT)  # (B, G, S, T)
            twice = 1 if one is other else 2
            total = total + twice * products.flatten(1).sum(1, dtype=torch.float64)
    assert isinstance(total, Tensor)
    return total


def _left_gram(one: Outer, other: Outer) -> Tensor:
    """The inner products left_s·left_t: (B, G, S, T)."""
    if one.left.ndim == 4 and other.left.ndim == 4:
        return one.left @ other.left.mT
    if one.left.ndim == 3 and other.left.ndim == 3:
        return (one.left.unsqueeze(-1) == other.left.unsqueeze(-2)).to(one.right)
    if one.left.ndim == 3:
        return _left_gram(other, one).mT
    columns = other.left.unsqueeze(-2).expand(*one.left.shape[:-1], other.left.shape[-1])
    return one.left.gather(-1, columns)  # left_s at the other's index


def _in_parts(
    work: Callable[[Sequence[ExampleGradients]], Tensor],
    pieces: Sequence[ExampleGradients],
    elements: int,
) -> Tensor:
    """`work` on so many examples at a time that its temporaries stay small; `elements` of them each."""
    piece = pieces[0]
    batch = len(piece.right) if isinstance(piece, Outer) else len(piece)
    step = max(TEMPORARY_BYTES // (8 * elements), 1)
    parts = [
        work([one.part(rows) if isinstance(one, Outer) else one[rows] for one in pieces])
        for rows in (slice(start, start + step) for start in range(0, batch, step))
    ]
    return torch.cat(parts)


def _squares(values: Tensor, dim: int) -> Tensor:
    return values.square().sum(dim, dtype=torch.float64)
