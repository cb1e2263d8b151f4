"""One launch an update on a GPU, where a small batch's step is bound by launching its kernels."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noisescale.errors import first_line
from noisescale.training.updates.in_place.proved import agree

Update = Callable[[Tensor], Tensor]
# eager updates of a batch size before it is captured, in which libraries set themselves up: torch's
# own count
WARM_UP = 3


class _Captured(NamedTuple):
    """A graph, the tensor it reads the indices (B,) from, and the one it writes the loss () to."""

    graph: torch.cuda.CUDAGraph
    indices: Tensor
    loss: Tensor


class CudaGraphUpdate:
    """An update, replayed as a CUDA graph from the fourth call of each batch size on.

    Called with the update, the same every time, and the indices (B,) of its examples on the GPU;
    returns the loss (). The update changes its model and optimizer in place and nothing else. A
    graph launches the same kernels whatever the values and runs no Python code, so it stands in
    only for updates that are seen to leave the numbers, words and lists that the model holds, and
    Python's random state, as they were; that can be captured, which excludes what depends on the
    values of tensors; and whose first replay does what the update itself does from the same state.
    All others run as they are. No update is made twice.

    Args:
        device: of the model and its examples.
        model: what is updated.
        optimizer: of its parameters.

    Attributes:
        note: why updates are not replayed; None: they are, or will be.
    """

    def __init__(self, device: torch.device, model: nn.Module, optimizer: Optimizer) -> None:
        self.note: str | None = None
        self._device = device
        self._model = model
        self._optimizer = optimizer
        self._calls: Counter[int] = Counter()
        self._captured: dict[int, _Captured] = {}
        self._stream = torch.cuda.Stream(device)
        # one for all batch sizes: a graph's memory is free once it is replayed
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, update: Update, indices: Tensor) -> Tensor:
        with torch.cuda.device(indices.device):
            return self._run(update, indices)

    def _run(self, update: Update, indices: Tensor) -> Tensor:
        batch_size = len(indices)
        captured = self._captured.get(batch_size)
        if self.note is not None:
            return update(indices)
        if captured is not None:
            captured.indices.copy_(indices)
            captured.graph.replay()
            return captured.loss.clone()
        self._calls[batch_size] += 1
        if self._calls[batch_size] <= WARM_UP:
            return self._watched(update, indices)
        return self._both_ways(update, indices)

    def _watched(self, update: Update, indices: Tensor) -> Tensor:
        """The update as it is, Python's part in it watched."""
        before = copy.deepcopy(_python_state(self._model)), random.getstate()
        loss = self._on_side_stream(update, indices)
        if before != (_python_state(self._model), random.getstate()):
            self._give_up("the model keeps account of its calls, or draws random numbers of Python")
        return loss

    def _both_ways(self, update: Update, indices: Tensor) -> Tensor:
        """The update as it is, and captured and replayed from the same state, which is kept."""
        held = self._tensors()
        before = [tensor.clone() for tensor in held]
        random_state = torch.cuda.get_rng_state(self._device)
        loss = self._on_side_stream(update, indices)
        after = [tensor.clone() for tensor in held]
        after_random_state = torch.cuda.get_rng_state(self._device)
        _copy(before, held)
        torch.cuda.set_rng_state(random_state, self._device)
        try:
            captured = self._capture(update, indices)
            captured.graph.replay()
        except RuntimeError as error:
            self._model.zero_grad()  # of what was captured and never computed
            self._give_up(f"an update cannot be captured ({first_line(error)})")
        else:
            if all(map(agree, after, held, before)):
                self._captured[len(indices)] = captured
                return loss
            self._give_up("a replayed update is another one")
        _copy(after, held)
        torch.cuda.set_rng_state(after_random_state, self._device)
        return loss

    def _tensors(self) -> list[Tensor]:
        """All that an update changes."""
        of_optimizer = [
            value
            for state in self._optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        return [*self._model.parameters(), *self._model.buffers(), *of_optimizer]

    def _give_up(self, reason: str) -> None:
        self.note = f"updates are not replayed as CUDA graphs, which is slower: {reason}"

    def _on_side_stream(self, update: Update, indices: Tensor) -> Tensor:
        """Capturing wants its warm-up off the default stream."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            loss = update(indices)
        torch.cuda.current_stream().wait_stream(self._stream)
        return loss

    def _capture(self, update: Update, indices: Tensor) -> _Captured:
        static = indices.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            loss = update(static)
        return _Captured(graph, static, loss)


@torch.no_grad()
def _copy(values: list[Tensor], to: list[Tensor]) -> None:
    for tensor, value in zip(to, values, strict=True):
        tensor.copy_(value)


def _python_state(model: nn.Module) -> dict[tuple[str, str], Any]:
    """The numbers, words and collections of these that a model holds, by module and attribute."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if all(
            isinstance(leaf, bool | int | float | complex | str | bytes | None)
            for leaf in torch.utils._pytree.tree_leaves(value)
        )
    }
