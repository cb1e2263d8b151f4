"""Norms, sums and products of per-example gradients in factors, by whichever way is quickest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from noisescale.measure.gradients.layers.factors import (
    Convolved,
    ExampleGradients,
    Outer,
    Rows,
    budget,
    groups_of,
    row_sums,
    written_sum,
)

# Multiply–adds in whose time a number is written, squared and summed (measured: 20 to 40 on two
# cores), by which the Gram form is held against writing out
WRITING = 24
LONGEST_ROW = 4096  # numbers whose squares are summed in their own precision: to about 1e-6


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
    parts = [group.dense().flatten(1) @ matrix for (group,) in groups_of([pieces], pieces.written)]
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
    for group in groups_of(pieces, sum(piece.written for piece in pieces)):
        written = written_sum(group)
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
    for group in groups_of(pieces, sum(piece.written for piece in pieces)):
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
    return row_sums(images * left)


def _weighted_rows(piece: Rows, weights: Tensor | None) -> Tensor | None:
    """Σ w_vd g_vd² where few rows v are not zero: (B,), float64, by each place's row in all.

    A row that is used at k places is summed once at each of them, for 1/k.
    """
    if weights is None:
        return None
    norms = []
    numbers = 2 * piece.index.shape[1] ** 2 + 2 * piece.values[0].numel()
    step = max(budget(piece) // numbers, 1)
    for start in range(0, len(piece), step):
        few = piece[start : start + step]
        index, values = few.index, few.values  # (b, S), (b, S, D)
        same = (index.unsqueeze(2) == index.unsqueeze(1)).to(values)  # (b, S, S)
        in_all = same @ values  # (b, S, D): the gradient of each place's row
        of_places = (in_all.square() * weights[index]).sum(2) / same.sum(2)  # (b, S)
        norms.append(row_sums(of_places))
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
    for group in groups_of(pieces, sum(_gram_size(piece) for piece in pieces)):
        products = []
        for index, first in enumerate(group):
            for second in group[: index + 1]:
                once = row_sums(_gram(first, second))
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
    for group in groups_of(pieces, sum(piece.written for piece in pieces)):
        written = written_sum(group)
        norms.append(_squares(written))
        if weights is not None:  # a product, which sums as it reads
            weighted.append((written.square().flatten(1) @ weights.flatten()).double())
        total = written.sum(0) if total is None else total + written.sum(0)
    assert total is not None
    return Summary(torch.cat(norms), total, _joined(weighted))


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
