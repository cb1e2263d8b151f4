"""Per-example gradients by single backward passes, one example after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from noisescale.measure.gradients.engine import ChunkStatistics, EngineName, whatever_fails
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Params


class LoopEngine:
    """The definition: the gradient of each example's loss, by a backward pass of its own.

    Everything that autograd differentiates is measured so, in the time of as many small passes.

    Args:
        objective: the point, the examples and the chunk size.
        names: the parameters that are differentiated; None: all of them.
    """

    name: EngineName = "loop"
    notes: tuple[str, ...] = ()

    def __init__(self, objective: Objective, names: Sequence[str] | None = None) -> None:
        self.objective = objective
        self._params = params = objective.params()
        self._model = objective.instance(params)
        # whose graph as pairs of real numbers all examples share
        self._is_complex = any(param.is_complex() for param in objective.model.parameters())
        self._leaves = {name: params[name] for name in (params if names is None else names)}

    def statistics(self, chunk: Examples, weights: Params | None = None) -> ChunkStatistics:
        losses, norms, weighted = [], [], []
        total = [torch.zeros_like(leaf, dtype=torch.float64) for leaf in self._leaves.values()]
        with whatever_fails(self.name, self.objective):
            for loss, gradient in self._gradients(chunk):
                losses.append(loss)
                squares = [part.double().square() for part in gradient]
                norms.append(torch.stack([part.sum() for part in squares]))
                if weights is not None:
                    in_metric = zip(self._leaves, squares, strict=True)
                    weighted.append(
                        torch.stack([(part * weights[name]).sum() for name, part in in_metric])
                    )
                for accumulated, part in zip(total, gradient, strict=True):
                    accumulated.add_(part)
        return ChunkStatistics(
            torch.stack(losses),
            torch.stack(norms),
            total,
            torch.stack(weighted) if weighted else None,
        )

    def coordinate_sums(self, chunk: Examples) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        leaves = self._leaves.values()
        sums, squares = (
            [torch.zeros_like(leaf, dtype=torch.float64) for leaf in leaves] for _ in range(2)
        )
        with whatever_fails(self.name, self.objective):
            for _, gradient in self._gradients(chunk):
                for total, square, part in zip(sums, squares, gradient, strict=True):
                    total.add_(part)
                    square.add_(part.double().square())
        return sums, squares

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        along = []
        with whatever_fails(self.name, self.objective):
            for _, gradient in self._gradients(chunk):
                by_name = dict(zip(self._leaves, gradient, strict=True))
                of_example = [
                    (part.double() * direction[name]).sum()
                    for direction in directions
                    for name, part in by_name.items()
                ]
                along.append(torch.stack(of_example).view(len(directions), -1))  # (K, L)
        return torch.stack(along, 1)  # (K, B, L)

    def _gradients(self, chunk: Examples) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """The loss and the gradient of each example, by parameter."""
        for row in range(chunk.num_examples):
            example = chunk.part(slice(row, row + 1))
            outputs = self.objective.call(self._model, example.inputs)
            (loss,) = self.objective.losses(outputs, example.targets, self._params)
            leaves = list(self._leaves.values())
            gradient = [torch.zeros_like(leaf) for leaf in leaves]
            if loss.requires_grad:
                given = torch.autograd.grad(
                    loss, leaves, retain_graph=self._is_complex, allow_unused=True
                )
                gradient = [
                    zeros if part is None else part.to_dense() if part.is_sparse else part
                    for zeros, part in zip(gradient, given, strict=True)
                ]
            yield loss.detach(), gradient
