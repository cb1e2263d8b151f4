"""Per-example gradients of one parameter as factors, and their norms without writing them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

# What a step may take beyond its operands, before it is divided over examples: 64 MiB, half of what
# a chunk's graph may take on a CPU
TEMPORARY_BYTES = 2**26


@dataclass(frozen=True)
class Outer:
    """Per-example gradients as sums of outer products, g_i = Σ_s left_is ⊗ right_is.

    S counts the places where the parameter is used: sequence positions, pixels; 1 for a plain
    linear layer. G counts groups of the parameter's rows, each with outer products of its own: 1
    but for grouped convolutions.

    Attributes:
        left: (B, G, S, O), or integers (B, G, S) that stand for one-hot rows, as of an embedding
            (G = 1).
        right: (B, G, S, I).
        shape: the parameter's, of G·O·I elements.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    @property
    def sizes(self) -> tuple[int, int, int]:
        """S, O and I."""
        _, groups, places, columns = self.right.shape
        return places, self.shape.numel() // (groups * columns), columns

    @property
    def temporary(self) -> int:
        """Numbers that writing out one example's gradient takes."""
        return self.shape.numel()

    def __len__(self) -> int:
        return len(self.right)

    def __getitem__(self, rows: slice) -> Outer:
        return Outer(self.left[rows], self.right[rows], self.shape)

    def outer(self) -> Outer:
        """Itself; other factored gradients have to be brought into this form."""
        return self

    def dense(self) -> Tensor:
        """(B, *shape)."""
        left = self.left
        if left.ndim == 3:
            left = F.one_hot(left, self.sizes[1]).to(self.right)
        return (left.mT @ self.right).reshape(len(self), *self.shape)  # (B, G, O, I)

    def project(self, direction: Tensor) -> Tensor:
        """The inner products of the gradients with a direction: (B,), float64.

        Args:
            direction: of the parameter's shape.
        """
        _, rows, columns = self.sizes
        matrix = direction.reshape(-1, rows, columns)  # (G, O, I)
        if self.left.ndim == 3:
            images, others = matrix[0][self.left], self.right  # (B, 1, S, I)
        elif len(matrix) == 1:
            images, others = F.linear(self.right, matrix[0]), self.left  # (B, 1, S, O)
        else:
            images, others = self.right @ matrix.mT, self.left  # (B, G, S, O)
        return (images * others).flatten(1).sum(1, dtype=torch.float64)


@dataclass(frozen=True)
class Convolved:
    """Per-example gradients of a convolution's weight, from its inputs and its outputs' gradients.

    g_i = Σ over places of gradient ⊗ patch of the inputs.

    inputs: (B, C, H, W), padded. gradient: of the outputs, (B, channels, H', W').
    shape: (channels, C/groups, h, w).
    """

    inputs: Tensor
    gradient: Tensor
    shape: torch.Size
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """S, O and I."""
        return self.gradient.shape[2:].numel(), self.shape[0] // self.groups, self.shape[1:].numel()

    @property
    def temporary(self) -> int:
        """Numbers that writing out one example's gradient takes, its patches included."""
        places, _, columns = self.sizes
        return self.shape.numel() + self.groups * columns * places

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows: slice) -> Convolved:
        return replace(self, inputs=self.inputs[rows], gradient=self.gradient[rows])

    def outer(self) -> Outer:
        """With the patches copied out, which takes h·w times the memory of the inputs."""
        patches = F.unfold(self.inputs, self.shape[2:], dilation=self.dilation, stride=self.stride)
        right = patches.unflatten(1, (self.groups, -1)).mT  # (B, G·I, S) -> (B, G, S, I)
        left = self.gradient.flatten(2).unflatten(1, (self.groups, -1)).mT  # (B, G, S, O)
        return Outer(left, right, self.shape)

    def dense(self) -> Tensor:
        """(B, *shape)."""
        return self.outer().dense()

    def project(self, direction: Tensor) -> Tensor:
        """The inner products with `direction` (*shape): (B,), float64.

        By the layer's outputs with the direction as its weights.
        """
        outputs = F.conv2d(
            self.inputs,
            direction.view(self.shape),
            stride=self.stride,
            dilation=self.dilation,
            groups=self.groups,
        )
        return (outputs * self.gradient).flatten(1).sum(1, dtype=torch.float64)


ExampleGradients = Outer | Convolved | Tensor  # a tensor: written out, (B, *shape)


def squared_norms(pieces: Sequence[ExampleGradients]) -> Tensor:
    """|Σ pieces|² of each example: (B,), float64.

    Several pieces: a parameter used in several places. Outer products either by their Gram
    matrices, Σ_{s,t} (left_s·left_t)(right_s·right_t), or written out, whichever takes fewer
    operations (Goodfellow 2015, arXiv 1510.01799, for S = 1).
    """
    factored = [piece for piece in pieces if not isinstance(piece, Tensor)]
    if len(factored) == len(pieces):
        places = sum(piece.sizes[0] for piece in factored)
        _, rows, columns = factored[0].sizes
        indexed = all(isinstance(piece, Outer) and piece.left.ndim == 3 for piece in factored)
        if indexed or places * (rows + columns) < rows * columns:
            return _in_parts(_squared_norms_by_gram, pieces, places**2)
    temporary = max(
        piece[0].numel() if isinstance(piece, Tensor) else piece.temporary for piece in pieces
    )
    return _in_parts(_squared_norms_written_out, pieces, temporary)


def projections(pieces: Sequence[ExampleGradients], direction: Tensor) -> Tensor:
    """The inner product of Σ pieces with `direction` (*shape), of each example: (B,), float64."""
    of_pieces = [
        _sum(piece * direction) if isinstance(piece, Tensor) else piece.project(direction)
        for piece in pieces
    ]
    return torch.stack(of_pieces).sum(0)


def _squared_norms_written_out(pieces: Sequence[ExampleGradients]) -> Tensor:
    """|Σ pieces|² of each example from its gradient in full: (B,), float64."""
    first, *others = (piece if isinstance(piece, Tensor) else piece.dense() for piece in pieces)
    for other in others:
        first = first + other.view_as(first)
    return _sum(first.square())


def _squared_norms_by_gram(pieces: Sequence[ExampleGradients]) -> Tensor:
    """|Σ pieces|² of each example from inner products of its factors: (B,), float64."""
    outers = [piece.outer() for piece in pieces if not isinstance(piece, Tensor)]
    if len(outers) == 1 and outers[0].sizes[0] == 1 and outers[0].left.ndim == 4:
        squares = (
            part.square().sum(-1, dtype=torch.float64) for part in (outers[0].left, outers[0].right)
        )
        return _sum(torch.stack([*squares], -1).prod(-1))
    terms = []
    for index, first in enumerate(outers):
        for second in outers[: index + 1]:
            products = _left_gram(first, second) * (first.right @ second.right.mT)  # (B, G, S, T)
            terms.append(_sum(products) * (1 if first is second else 2))
    return torch.stack(terms).sum(0)


def _left_gram(first: Outer, second: Outer) -> Tensor:
    """The inner products left_s·left_t: (B, G, S, T)."""
    if first.left.ndim == 4 and second.left.ndim == 4:
        return first.left @ second.left.mT
    if first.left.ndim == 3 and second.left.ndim == 3:
        return (first.left.unsqueeze(-1) == second.left.unsqueeze(-2)).to(first.right)
    if first.left.ndim == 3:
        return _left_gram(second, first).mT
    columns = second.left.unsqueeze(-2).expand(*first.left.shape[:-1], second.left.shape[-1])
    return first.left.gather(-1, columns)  # left_s at the second's index


def _in_parts(
    work: Callable[[Sequence[ExampleGradients]], Tensor],
    pieces: Sequence[ExampleGradients],
    elements: int,
) -> Tensor:
    """The results of `work`, on few enough examples at a time for its temporaries to stay small.

    elements: numbers that an example's temporaries take.
    """
    step = max(TEMPORARY_BYTES // (8 * elements), 1)  # 8 bytes each, as in float64
    starts = range(0, len(pieces[0]), step)
    return torch.cat(
        [work([piece[slice(start, start + step)] for piece in pieces]) for start in starts]
    )


def _sum(values: Tensor) -> Tensor:
    """Over all but the first dimension: (B, ...) -> (B,), accumulated in float64."""
    return values.reshape(len(values), -1).sum(1, dtype=torch.float64)
