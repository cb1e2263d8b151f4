"""Per-example gradients by `torch.func.vmap(grad(loss))`, compiled so that none is ever stored."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from noisescale.errors import first_line
from noisescale.measure.gradients.engine import ChunkStatistics, EngineError, EngineName
from noisescale.measure.gradients.vmap import VmappedLosses, example_gradients
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Params, Tree

LARGEST_COMPILED_CHUNK = 2048  # examples on a CPU; a larger chunk is no faster

# Losses, squared norms, weighted ones, summed gradient
Program = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]


class CompiledEngine:
    """The vmapped gradient compiled together with its norms, so that no gradient is ever stored.

    The compiler fuses the outer products with their squares and sums. The summed gradient comes
    from a backward pass of the batch in the same program. A short last chunk is filled up with
    examples of weight zero, since every shape is compiled anew. Raises EngineError where
    compilation is not possible.
    """

    name: EngineName = "compiled"

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._losses = VmappedLosses(objective)
        if objective.device.type == "cpu":
            objective.cap_chunk_size(LARGEST_COMPILED_CHUNK)
        # chunks as even as they come, so that the last one is hardly filled up
        num_chunks = -(-objective.num_examples // objective.chunk_size)
        objective.cap_chunk_size(-(-objective.num_examples // num_chunks))
        self._compiled = torch.compile(self._program, fullgraph=True, dynamic=False)

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def statistics(self, chunk: Examples, weights: Params | None = None) -> ChunkStatistics:
        missing = self.objective.chunk_size - chunk.num_examples
        index = torch.arange(self.objective.chunk_size, device=self.objective.device)
        whole = chunk if missing <= 0 else chunk.part(index % chunk.num_examples)
        counts = (index < chunk.num_examples).to(self.objective.point)
        with _quietly():
            try:
                losses, norms, weighted, gradient = self._run(*whole, counts, weights)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = f"{self.objective.name} cannot be compiled ({first_line(error)})"
                raise EngineError(reason) from error
        rows = slice(chunk.num_examples)
        squared_norms = torch.stack(norms, 1)[rows].double()  # L times (B,) -> (B, L)
        in_metric = torch.stack(weighted, 1)[rows].double() if weighted else None
        return ChunkStatistics(losses[rows], squared_norms, gradient, in_metric)

    def coordinate_sums(self, chunk: Examples) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return self._losses.coordinate_sums(chunk)  # rarely asked for, and so not compiled

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        return self._losses.projections(chunk, directions)

    def _program(
        self,
        params: Params,
        inputs: Tree,
        targets: Tree,
        counts: Tensor,
        weights: Params | None,
    ) -> Program:
        gradients, losses = example_gradients(self.objective, params, Examples(inputs, targets))
        squares = {name: part.reshape(len(part), -1).square() for name, part in gradients.items()}
        norms = [part.sum(1) for part in squares.values()]
        weighted: list[Tensor] = []
        if weights is not None:
            weighted = [(part * weights[name].flatten()).sum(1) for name, part in squares.items()]

        def total(params: Params) -> Tensor:
            return (
                self.objective.losses(self.objective.outputs(params, inputs), targets, params)
                * counts
            ).sum()

        return losses, norms, weighted, list(grad(total)(params).values())

    def _run(self, *arguments: Any) -> Program:
        """The compiled program's results; where the compiler has reached its limit, it is reset."""
        try:
            results: Program = self._compiled(self._losses.params, *arguments)
        except torch._dynamo.exc.FailOnRecompileLimitHit:  # eight models or sizes in this process
            torch.compiler.reset()
            results = self._compiled(self._losses.params, *arguments)
        return results


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the compiler's remarks on the machine it runs on, and on how often it has run."""
    loggers = [logging.getLogger(name) for name in ("torch.utils.cpp_extension", "torch._dynamo")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
