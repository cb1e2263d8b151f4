"""What every way of computing per-example gradients has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from noisescale.errors import MeasurementError
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Params

EngineName = Literal["auto", "hooks", "compiled", "vmap"]


class EngineError(MeasurementError):
    """An engine does not work here, or not on this model; another may."""


class ChunkStatistics(NamedTuple):
    """What an engine finds out about a chunk of B examples.

    losses: (B,). squared_norms: |g_i|² of each of L parameter tensors (B, L), float64. gradient:
    the sum of the gradients, by parameter tensor.
    """

    losses: Tensor
    squared_norms: Tensor
    gradient: Sequence[Tensor]


class Engine(Protocol):
    """A way of computing per-example gradients.

    name: by which it is chosen. objective: the point, the examples and the chunk size.
    """

    name: EngineName
    objective: Objective

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how the latest pass went."""

    def statistics(self, chunk: Examples) -> ChunkStatistics:
        """Norms of the examples' gradients, by parameter tensor, and their sum."""

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """g_i·v for K directions v: (K, B, L) by parameter tensor, or (K, B, 1) in all; float64."""
