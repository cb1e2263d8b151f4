"""Per-example gradients by `torch.func.vmap(grad(loss))`, written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_map

from noisescale.measure.gradients.engine import ChunkStatistics, EngineName, whatever_fails
from noisescale.measure.objective import Objective, free_bytes
from noisescale.problems.problem import Examples, Params, Tree

# Of written-out gradients at a time on a CPU: 32 MiB, four examples of MNIST's MLP, which was
# measured to be fastest; larger blocks cost page faults
WRITTEN_BYTES = 2**25
# On a GPU the share of the free memory: a sixteenth, since vmap holds several copies of the
# gradients at once, beside the activations
WRITTEN_GPU_SHARE = 16
# Examples of each chunk whose forward-mode derivatives are held against their gradients
COMPARED = 2


class VmapEngine:
    """`torch.func.vmap(grad(loss))`: every gradient of a chunk written out.

    Args:
        objective: the point, the examples and the chunk size.
        names: the parameters that are differentiated, projections by each; None: all of them,
            projections in all, which forward-mode differentiation gives more quickly.
    """

    name: EngineName = "vmap"

    def __init__(self, objective: Objective, names: Sequence[str] | None = None) -> None:
        self.objective = objective
        self._losses = VmappedLosses(objective, names)
        self._by_tensor = names is not None

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def statistics(self, chunk: Examples, weights: Params | None = None) -> ChunkStatistics:
        with whatever_fails(self.name, self.objective):
            parts = [self._of_part(part, weights) for part in self._losses.parts(chunk)]
        totals = zip(*(part.gradient for part in parts), strict=True)
        weighted = [part.weighted for part in parts if part.weighted is not None]
        return ChunkStatistics(
            torch.cat([part.losses for part in parts]),
            torch.cat([part.squared_norms for part in parts]),
            [torch.stack(of_parts).sum(0) for of_parts in totals],
            torch.cat(weighted) if weighted else None,
        )

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        with whatever_fails(self.name, self.objective):
            if self._by_tensor:
                return self._losses.projections_by_tensor(chunk, directions)
            return self._losses.projections(chunk, directions)

    def coordinate_sums(self, chunk: Examples) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        with whatever_fails(self.name, self.objective):
            return self._losses.coordinate_sums(chunk)

    def _of_part(self, part: Examples, weights: Params | None) -> ChunkStatistics:
        gradients, losses = self._losses.gradients(part)
        norms = [_squared_norms(values) for values in gradients.values()]
        total = [values.sum(0) for values in gradients.values()]
        weighted = None
        if weights is not None:
            weighted = torch.stack(
                [weighted_norms(values, weights[name]) for name, values in gradients.items()], 1
            )
        # L times (B,) -> (B, L)
        return ChunkStatistics(losses, torch.stack(norms, 1), total, weighted)


class VmappedLosses:
    """The examples' losses at an objective's point, differentiated by torch.func.

    Args:
        objective: the loss and the point.
        names: the parameters that are differentiated; None: all of them.

    Attributes:
        params: the point, by name.
        names: of the parameters that are differentiated.
    """

    def __init__(self, objective: Objective, names: Sequence[str] | None = None) -> None:
        self.objective = objective
        self.params: Params = {name: leaf.detach() for name, leaf in objective.params().items()}
        self.names = list(self.params if names is None else names)
        self._forward_mode = not _has_padding(objective.model)  # whether it serves, so far

    def parts(self, chunk: Examples) -> list[Examples]:
        """A chunk in parts of as many examples as gradients are written out at a time."""
        size = sum(self.params[name].nbytes for name in self.names)
        budget = WRITTEN_BYTES
        if self.objective.device.type == "cuda":
            budget = free_bytes(self.objective.device) // WRITTEN_GPU_SHARE
        step = max(budget // max(size, 1), 1)
        starts = range(0, chunk.num_examples, step)
        return [chunk.part(slice(start, start + step)) for start in starts]

    def gradients(self, chunk: Examples) -> tuple[Params, Tensor]:
        """The examples' gradients (B, *shape) by parameter, and their losses (B,)."""
        return example_gradients(self.objective, self.params, chunk, self.names)

    def coordinate_sums(self, chunk: Examples) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Σ g_i and Σ g_i², coordinate by coordinate, by parameter."""
        parts = []
        for part in self.parts(chunk):
            gradients, _ = self.gradients(part)
            parts.append([(one.sum(0), one.square().sum(0)) for one in gradients.values()])
        of_each = [zip(*of_parts, strict=True) for of_parts in zip(*parts, strict=True)]
        sums, squares = zip(
            *([torch.stack(one).sum(0) for one in of_one] for of_one in of_each), strict=True
        )
        return sums, squares

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """g_i·v for K directions v, by forward-mode differentiation of the losses: (K, B, 1).

        Where an operation's forward-mode derivative is missing, or not that of its gradient, as of
        an embedding's padding index, from the written-out gradients.
        """
        self._forward_mode = self._forward_mode and self._forward_mode_serves(chunk, directions)
        by_directions = self._by_forward_mode if self._forward_mode else self._by_gradients
        return by_directions(chunk, directions).unsqueeze(-1)

    def _forward_mode_serves(self, chunk: Examples, directions: Sequence[Params]) -> bool:
        """Whether it gives what the gradients give, for the first few of the chunk."""
        few = chunk.part(slice(COMPARED))
        wanted = self._by_gradients(few, directions)
        try:
            given = self._by_forward_mode(few, directions)
        except (RuntimeError, NotImplementedError):
            return False
        precision = torch.finfo(self.objective.dtype).eps ** 0.5
        close = torch.isclose(given, wanted, rtol=precision, atol=precision * wanted.abs().max())
        return bool(close.all())

    def _by_forward_mode(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """(K, B), float64."""
        constants = self.params

        def losses(free: Params) -> Tensor:
            params = constants | free
            outputs = self.objective.outputs(params, chunk.inputs)
            return self.objective.losses(outputs, chunk.targets, params)

        free = {name: constants[name] for name in self.names}
        tangents = [
            jvp(losses, (free,), ({name: direction[name] for name in free},))[1]
            for direction in directions
        ]
        return torch.stack(tangents).double()

    def _by_gradients(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """(K, B), float64."""
        return self.projections_by_tensor(chunk, directions).sum(2)

    def projections_by_tensor(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """g_i·v for K directions v of each parameter, from the written-out gradients: (K, B, L)."""
        blocks = []
        for part in self.parts(chunk):
            gradients, _ = self.gradients(part)
            along = [
                (values * direction[name]).reshape(len(values), -1).sum(1, dtype=torch.float64)
                for direction in directions
                for name, values in gradients.items()
            ]
            blocks.append(torch.stack(along).unflatten(0, (len(directions), -1)))  # (K, L, B)
        return torch.cat(blocks, 2).mT


def example_gradients(
    objective: Objective, params: Params, chunk: Examples, names: Sequence[str] | None = None
) -> tuple[Params, Tensor]:
    """The gradients (B, *shape) of the examples' losses by parameter, and the losses (B,).

    Args:
        objective: the loss.
        params: the point, by name.
        chunk: the examples.
        names: the parameters that are differentiated; None: all of them.
    """
    constants: Params = {name: leaf.detach() for name, leaf in params.items()}
    free = {name: constants[name] for name in (constants if names is None else names)}

    def loss(free: Params, inputs: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        example = tree_map(lambda leaf: leaf.unsqueeze(0), Examples(inputs, targets))
        params = constants | free
        outputs = objective.outputs(params, example.inputs)
        (value,) = objective.losses(outputs, example.targets, params)
        return value, value.detach()

    each = vmap(grad(loss, has_aux=True), in_dims=(None, 0, 0))
    gradients: tuple[Params, Tensor] = each(free, *chunk)
    return gradients


def weighted_norms(gradients: Tensor, weights: Tensor) -> Tensor:
    """Σ_p w_p g_p² of each example: gradients (B, *shape), weights (*shape) -> (B,), float64."""
    return (gradients.square().reshape(len(gradients), -1) @ weights.flatten()).double()


def _has_padding(model: nn.Module) -> bool:
    """Whether an embedding has a padding index, whose row gets a tangent though no gradient."""
    return any(
        isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None
        for module in model.modules()
    )


def _squared_norms(gradients: Tensor) -> Tensor:
    """(B, *shape) -> (B,), in float64.

    Norms of rows in the gradients' own precision, which saves a copy, and the sum of their squares
    in float64.
    """
    rows = gradients.reshape(len(gradients), -1, gradients.shape[-1] if gradients.ndim > 1 else 1)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return lengths.double().square().sum(1)
