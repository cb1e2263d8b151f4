"""One launch an update on a GPU, where a small batch's step is bound by launching its kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

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
    returns the loss (). The update changes its model and optimizer in place and nothing else, and
    must launch the same kernels whatever the values. The first calls run it as it is, and they are
    real updates: nothing is computed twice and no state needs to be put back.
    """

    def __init__(self, device: torch.device) -> None:
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
        if captured is None:
            self._calls[batch_size] += 1
            if self._calls[batch_size] <= WARM_UP:
                return self._on_side_stream(update, indices)
            captured = self._captured[batch_size] = self._capture(update, indices)
        captured.indices.copy_(indices)
        captured.graph.replay()
        return captured.loss.clone()

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
