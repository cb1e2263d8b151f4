"""Per-example gradients by their definition, `torch.func.vmap(grad(loss))`, written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, jvp
from torch.utils._pytree import tree_map

from noisescale.measure.gradients.engine import ChunkStatistics, EngineName
from noisescale.measure.gradients.example_map import ExampleMap, Map, by_vmap
from noisescale.measure.objective import Objective, flatten
from noisescale.problems.problem import Examples, Params, Tree

# Of written-out gradients at a time on a CPU: 32 MiB, four examples of MNIST's MLP, which was
# measured to be fastest; larger blocks cost page faults
WRITTEN_BYTES = 2**25
# On a GPU the share of the free memory: a sixteenth, since vmap holds several copies of the
# gradients at once, beside the activations
WRITTEN_GPU_SHARE = 16


class VmapEngine:
    """`torch.func.vmap(grad(loss))`: the definition, every gradient of a chunk written out."""

    name: EngineName = "vmap"

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._losses = VmappedLosses(objective)
        objective.cap_chunk_size(self._losses.written_chunk)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._losses.notes

    def statistics(self, chunk: Examples) -> ChunkStatistics:
        gradients, losses = self._losses.gradients(chunk)
        total = [part.sum(0) for part in gradients.values()]
        norms = [_squared_norms(part) for part in gradients.values()]
        return ChunkStatistics(losses, torch.stack(norms, 1), total)  # L times (B,) -> (B, L)

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        return self._losses.projections(chunk, directions)


class VmappedLosses:
    """The examples' losses at an objective's point, differentiated by torch.func.

    params: the point, by name. written_chunk: how many examples' gradients are written out at a
        time.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self.params: Params = {name: leaf.detach() for name, leaf in objective.params().items()}
        self.written_chunk = _written_chunk(objective)
        self._each = ExampleMap()
        self._forward_mode = not _has_padding(objective.model)

    @property
    def notes(self) -> tuple[str, ...]:
        """That vmap was of no use, where it was not."""
        reason = self._each.reason
        if reason is None:
            return ()
        return (f"vmap does not work on this model ({reason}), its examples went one by one",)

    def gradients(self, chunk: Examples) -> tuple[Params, Tensor]:
        """The examples' gradients (B, *shape) by parameter, and their losses (B,)."""
        return example_gradients(self.objective, self.params, chunk, each=self._each)

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """g_i·v for K directions v, by forward-mode differentiation of the losses: (K, B, 1).

        Where an operation has no forward-mode derivative, from the written-out gradients.
        """
        if self._forward_mode:
            try:
                return self._by_forward_mode(chunk, directions).unsqueeze(-1)
            except (RuntimeError, NotImplementedError) as error:
                if "forward AD" not in str(error) and "forward mode AD" not in str(error):
                    raise
                self._forward_mode = False
        return self._by_gradients(chunk, directions).unsqueeze(-1)

    def _by_forward_mode(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """(K, B), float64."""

        def losses(params: Params) -> Tensor:
            return self.objective.losses(
                self.objective.outputs(params, chunk.inputs), chunk.targets
            )

        tangents = [jvp(losses, (self.params,), (direction,))[1] for direction in directions]
        return torch.stack(tangents).double()

    def _by_gradients(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """(K, B), float64."""
        vectors = torch.stack([flatten(list(direction.values())) for direction in directions])
        blocks = []
        for start in range(0, chunk.num_examples, self.written_chunk):
            part = chunk.part(slice(start, start + self.written_chunk))
            gradients, _ = self.gradients(part)
            blocks.append(vectors @ _flatten_examples(gradients).T)  # (K, P) @ (P, B)
        return torch.cat(blocks, 1).double()


def example_gradients(
    objective: Objective,
    params: Params,
    chunk: Examples,
    names: Sequence[str] | None = None,
    *,
    each: Map = by_vmap,
) -> tuple[Params, Tensor]:
    """The gradients (B, *shape) of the examples' losses by parameter, and the losses (B,).

    Args:
        objective: the loss.
        params: the point, by name.
        chunk: the examples.
        names: the parameters that are differentiated; None: all of them.
        each: what applies the gradient of one example to all of them.
    """
    constants: Params = {name: leaf.detach() for name, leaf in params.items()}
    free = {name: constants[name] for name in (constants if names is None else names)}

    def loss(free: Params, inputs: Tree, targets: Tree) -> tuple[Tensor, Tensor]:
        example = tree_map(lambda leaf: leaf.unsqueeze(0), Examples(inputs, targets))
        outputs = objective.outputs(constants | free, example.inputs)
        (value,) = objective.losses(outputs, example.targets)
        return value, value.detach()

    gradient = grad(loss, has_aux=True)
    gradients: tuple[Params, Tensor] = each(
        gradient, (None, 0, 0), chunk.num_examples, (free, *chunk)
    )
    return gradients


def _flatten_examples(parts: Params) -> Tensor:
    """Tensors (B, *shape) as one (B, P)."""
    return torch.cat([part.reshape(len(part), -1) for part in parts.values()], 1)


def _squared_norms(gradients: Tensor) -> Tensor:
    """(B, *shape) -> (B,), in float64.

    Norms of rows in the gradients' own precision, which saves a copy, and the sum of their squares
    in float64.
    """
    rows = gradients.reshape(len(gradients), -1, gradients.shape[-1] if gradients.ndim > 1 else 1)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return lengths.double().square().sum(1)


def _has_padding(model: nn.Module) -> bool:
    """Whether an embedding has a padding index, whose row gets a tangent though no gradient."""
    return any(
        isinstance(module, nn.Embedding) and module.padding_idx is not None
        for module in model.modules()
    )


def _written_chunk(objective: Objective) -> int:
    """How many examples' gradients are written out at a time."""
    budget = WRITTEN_BYTES
    if objective.device.type == "cuda":
        budget = torch.cuda.mem_get_info(objective.device)[0] // WRITTEN_GPU_SHARE
    return max(budget // (objective.dim * objective.point.element_size()), 1)
