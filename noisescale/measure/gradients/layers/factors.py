"""Per-example gradients of one tensor as factors, in little memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from noisescale.statistics.display import one_line

# Numbers that are written out at a time: 16 MiB in float32 on a CPU, which its allocator hands out
# again without new page faults; 256 MiB on a GPU, enough that a kernel fills it
WRITTEN, WRITTEN_ON_GPU = 2**22, 2**26


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
        return row_sums(self.values * direction)


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
        return row_sums(images * self.left)

    def transposed(self) -> Outer:
        """The gradients with respect to the transpose, of a tensor of two dimensions."""
        return Outer(self.right, self.left, torch.Size(reversed(self.shape)))

    def blocks(self) -> Sequence[Outer]:
        """Itself in blocks of the tensor's rows, of which one example's fits into the budget."""
        columns = self.right.shape[3]
        step = max(budget(self) // columns, 1)
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
        return row_sums(direction[self.index] * self.values)


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
        return row_sums(outputs.reshape(self.gradient.shape) * self.gradient)


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
        return self.back(written_sum(self.pieces))

    def total(self) -> Tensor:
        return self.back(torch.stack([piece.total() for piece in self.pieces]).sum(0)[None])[0]

    def project(self, direction: Tensor) -> Tensor:
        groups = groups_of([self], self.written)
        return torch.cat([row_sums(group.dense() * direction) for (group,) in groups])


def written_sum(pieces: Sequence[ExampleGradients]) -> Tensor:
    """Σ pieces in full, (B, *shape)."""
    first, *others = (piece.dense() for piece in pieces)
    for other in others:
        first = first + other
    return first


def groups_of(
    pieces: Sequence[ExampleGradients], numbers: int
) -> Iterator[Sequence[ExampleGradients]]:
    """The pieces of a few examples after the others', as many as the budget holds.

    numbers: that one example takes.
    """
    step = max(budget(pieces[0]) // max(numbers, 1), 1)
    for start in range(0, len(pieces[0]), step):
        yield [piece[start : start + step] for piece in pieces]


def budget(piece: ExampleGradients) -> int:
    """Numbers that are written out at a time."""
    return WRITTEN_ON_GPU if piece.device.type == "cuda" else WRITTEN


def row_sums(values: Tensor) -> Tensor:
    """Over all but the first dimension: (B, ...) -> (B,), float64.

    Rows in their own precision, which saves a copy, and their sum in float64.
    """
    if values.ndim == 1:
        return values.double()
    return values.sum(-1).reshape(len(values), -1).double().sum(1)
