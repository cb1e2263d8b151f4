"""Per-example gradients by their definition, `torch.func.vmap(grad(loss))`, written out or compiled away."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import grad, jvp

from noisescale.measure.gradients.engine import ChunkStatistics, EngineError, EngineName
from noisescale.measure.gradients.example_map import ExampleMap, Map, by_vmap
from noisescale.measure.objective import Objective, flatten
from noisescale.problems.problem import Examples, Params

WRITTEN_BYTES = (
    2**25
)  # of written-out gradients on a CPU, where more page-fault: measured, see theory.md
GPU_SHARE = 16  # of the free memory
LARGEST_COMPILED_CHUNK = 2048  # examples


class VmapEngine:
    """`torch.func.vmap(grad(loss))`: the definition, every gradient of a chunk written out."""

    name: EngineName = "vmap"

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._each = ExampleMap()
        self._written_chunk = _written_chunk(objective)
        objective.cap_chunk_size(self._written_chunk)
        self._params: Params = {name: leaf.detach() for name, leaf in objective.params().items()}
        self._forward_mode = not _has_padding(objective.model)

    @property
    def notes(self) -> tuple[str, ...]:
        if self._each.reason is None:
            return ()
        return (
            f"vmap does not work on this model ({self._each.reason}), its examples went one by one",
        )

    def statistics(self, chunk: Examples) -> ChunkStatistics:
        gradients, losses = example_gradients(self.objective, self._params, chunk, each=self._each)
        total = [part.sum(0) for part in gradients.values()]
        norms = [_squared_norms(part) for part in gradients.values()]
        return ChunkStatistics(losses, torch.stack(norms, 1), total)

    def projections(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        """By forward-mode differentiation of the losses along each direction; (K, B, 1).

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
        def losses(params: Params) -> Tensor:
            return self.objective.losses(
                self.objective.outputs(params, chunk.inputs), chunk.targets
            )

        found = [jvp(losses, (self._params,), (direction,))[1] for direction in directions]
        return torch.stack(found).double()

    def _by_gradients(self, chunk: Examples, directions: Sequence[Params]) -> Tensor:
        found = []
        for start in range(0, chunk.num_examples, self._written_chunk):
            part = chunk.part(slice(start, start + self._written_chunk))
            gradients = flatten_examples(
                example_gradients(self.objective, self._params, part, each=self._each)[0]
            )
            vectors = torch.stack([flatten(list(direction.values())) for direction in directions])
            found.append(vectors @ gradients.T)  # (K, B)
        return torch.cat(found, 1).double()


def flatten_examples(parts: Params) -> Tensor:
    """Tensors (B, *shape) as one (B, P)."""
    return torch.cat([part.reshape(len(part), -1) for part in parts.values()], 1)


def example_gradients(
    objective: Objective,
    params: Params,
    chunk: Examples,
    names: Sequence[str] | None = None,
    *,
    each: Map = by_vmap,
) -> tuple[Params, Tensor]:
    """The gradients (B, *shape) of the examples' losses in the named parameters, all of them for None.

    And the losses (B,). each: what applies the gradient of one example to all of them.
    """
    constants: Params = {name: leaf.detach() for name, leaf in params.items()}
    free = {name: constants[name] for name in (constants if names is None else names)}

    def loss(free: Params, example: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        outputs = objective.outputs(constants | free, example.unsqueeze(0))
        (value,) = objective.losses(outputs, target.unsqueeze(0))
        return value, value.detach()

    gradient = grad(loss, has_aux=True)
    found: tuple[Params, Tensor] = each(gradient, (None, 0, 0), chunk.num_examples, (free, *chunk))
    return found


class CompiledEngine(VmapEngine):
    """The vmapped function compiled together with the norms, so that no example's gradient is ever stored.

    The compiler fuses the outer products with their squares and sums. The summed gradient comes from a
    backward pass of the batch in the same program. A short last chunk is filled up with examples of weight
    zero, since every shape is compiled anew. Raises EngineError where compilation is not possible.
    """

    name: EngineName = "compiled"

    def __init__(self, objective: Objective) -> None:
        self.objective = objective
        self._each = ExampleMap()
        self._written_chunk = _written_chunk(objective)
        self._forward_mode = not _has_padding(objective.model)
        if objective.device.type == "cpu":
            objective.cap_chunk_size(LARGEST_COMPILED_CHUNK)
        num_chunks = -(-objective.num_examples // objective.chunk_size)
        objective.cap_chunk_size(-(-objective.num_examples // num_chunks))
        self._params = {name: leaf.detach() for name, leaf in objective.params().items()}
        self._compiled = torch.compile(self._program, fullgraph=True, dynamic=False)

    def _program(
        self, params: Params, inputs: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        gradients, losses = example_gradients(self.objective, params, Examples(inputs, targets))
        norms = [part.reshape(len(part), -1).square().sum(1) for part in gradients.values()]

        def total(params: Params) -> Tensor:
            return (
                self.objective.losses(self.objective.outputs(params, inputs), targets) * weights
            ).sum()

        return losses, norms, list(grad(total)(params).values())

    def _run(self, *arguments: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        try:
            found: tuple[Tensor, list[Tensor], list[Tensor]] = self._compiled(
                self._params, *arguments
            )
        except torch._dynamo.exc.FailOnRecompileLimitHit:  # eight models or sizes in this process
            torch.compiler.reset()
            found = self._compiled(self._params, *arguments)
        return found

    def statistics(self, chunk: Examples) -> ChunkStatistics:
        missing = self.objective.chunk_size - chunk.num_examples
        index = torch.arange(self.objective.chunk_size, device=chunk.targets.device)
        whole = chunk if missing <= 0 else chunk.part(index % chunk.num_examples)
        weights = (index < chunk.num_examples).to(self.objective.point)
        with _quietly():
            try:
                losses, norms, gradient = self._run(*whole, weights)
            except torch._dynamo.exc.TorchDynamoException as error:
                reason = f"{self.objective.name} cannot be compiled ({_reason(error)})"
                raise EngineError(reason) from error
        count = chunk.num_examples
        return ChunkStatistics(losses[:count], torch.stack(norms, 1)[:count].double(), gradient)


def _squared_norms(gradients: Tensor) -> Tensor:
    """(B, *shape) -> (B,): rows in the gradients' own precision, to save a copy, and their sum in float64."""
    rows = gradients.reshape(len(gradients), -1, gradients.shape[-1] if gradients.ndim > 1 else 1)
    lengths: Tensor = torch.linalg.vector_norm(rows, dim=-1)
    return lengths.double().square().sum(1)


def _has_padding(model: nn.Module) -> bool:
    """Whether an embedding has a padding index, whose row gets no gradient but, in torch, a tangent."""
    return any(
        isinstance(module, nn.Embedding) and module.padding_idx is not None
        for module in model.modules()
    )


def _written_chunk(objective: Objective) -> int:
    """How many examples' gradients are written out at a time."""
    budget = WRITTEN_BYTES
    if objective.device.type == "cuda":
        budget = torch.cuda.mem_get_info(objective.device)[0] // GPU_SHARE
    return max(budget // (objective.dim * objective.point.element_size()), 1)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:200]


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
