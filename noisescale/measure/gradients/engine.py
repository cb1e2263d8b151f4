"""What every way of computing per-example gradients has in common."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from noisescale.errors import MeasurementError, own_words
from noisescale.measure.objective import Objective, is_out_of_memory
from noisescale.problems.problem import Examples, Params

EngineName = Literal["auto", "hooks", "compiled", "vmap", "loop"]


class EngineError(MeasurementError):
    """An engine does not work here, or not on this model; another may."""


class ChunkStatistics(NamedTuple):
    """What an engine finds out about a chunk of B examples.

    losses: (B,). squared_norms: |g_i|² of each of L parameter tensors (B, L), float64. gradient:
    the sum of the gradients, by parameter tensor. weighted: Σ_p w_p g_ip² (B, L), float64; None
    without weights.
    """

    losses: Tensor
    squared_norms: Tensor
    gradient: Sequence[Tensor]
    weighted: Tensor | None = None


class Engine(Protocol):
    """A way of computing per-example gradients.

    name: by which it is chosen. objective: the point, the examples and the chunk size.
    """

    name: EngineName
    objective: Objective

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know of how the latest pass went."""

    def statistics(self, chunk: Examples, weights: Params | None = None) -> ChunkStatistics:
        """Norms of the examples' gradients, by parameter tensor, and their sum.

        Args:
            chunk: the examples.
            weights: of the squared components by parameter, for norms beside the plain ones.
        """

    def coordinate_sums(self, chunk: Examples) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Σ g_i and Σ g_i², coordinate by coordinate, by parameter tensor.

        Args:
            chunk: the examples.
        """

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """g_i·v for K directions v: (K, B, L) by parameter tensor, or (K, B, 1) in all; float64."""


@contextlib.contextmanager
def whatever_fails(name: EngineName, objective: Objective) -> Iterator[None]:
    """A failure of the user's model or loss under an engine as an EngineError.

    Args:
        name: of the engine.
        objective: whose model and loss they are.
    """
    try:
        yield
    except EngineError:
        raise
    except MeasurementError as error:  # the package's own words for what may not fail elsewhere
        raise EngineError(str(error)) from error
    except Exception as error:  # whatever the model and its loss raise under it
        if is_out_of_memory(error) or type(error).__module__.startswith("noisescale."):
            raise
        raise EngineError(
            f"the engine {name} does not work on {objective.name}: {own_words(error, limit=120)}"
        ) from error
