"""Squared norms of gradients: of one process, and before and after a data-parallel reduction."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from noisescale.errors import MeasurementError

# Numbers of which a product is taken by one thread, and in float32 without loss
ONE_THREAD = 2**16
# (state, dist.GradBucket) -> reduced bucket
CommHook = Callable[[Any, Any], torch.futures.Future[Tensor]]


def squared_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Σ|g|² of tensors of one device, float64, without waiting for it."""
    squares = [square for gradient in gradients for square in _squares(_values(gradient))]
    return torch.stack(squares).sum()


def _squares(values: Tensor) -> list[Tensor]:
    """|values|² in parts, float64."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64):
        return [torch.linalg.vector_norm(values, dtype=torch.float64).square()]
    # By one thread: those of the backward pass go on spinning for a while after it, and a second
    # team of threads waits for them longer than the norm takes (12 ms against 0.4 ms, 2 cores).
    return [torch.dot(part, part).double() for part in values.reshape(-1).split(ONE_THREAD)]


def _values(gradient: Tensor) -> Tensor:
    """A dense gradient, or a sparse one's values, repeated rows added up, as real numbers."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


class ReplicaNorms:
    """The squared norms of what a communication hook of DistributedDataParallel reduces.

    comm_hook: the state and hook that do the reduction; None: the mean over the group's processes.
    """

    def __init__(
        self, group: dist.ProcessGroup, comm_hook: tuple[Any, CommHook] | None = None
    ) -> None:
        self._group = group
        self._state: Any = group
        self._reduce: CommHook = allreduce_hook
        if comm_hook is not None:
            self._state, self._reduce = comm_hook
        self._local: list[Tensor] = []  # by bucket
        self._reduced: list[Tensor] = []
        self._rounds = 0  # reductions since the last look

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """To be registered as the hook."""
        self._rounds += bucket.is_last()
        self._local.append(squared_norm([bucket.buffer()]))  # before it is overwritten

        def keep(future: torch.futures.Future[Any]) -> Tensor:
            reduced: Tensor = future.value()
            self._reduced.append(squared_norm([reduced]))
            return reduced

        return self._reduce(self._state, bucket).then(keep)

    def take(self) -> tuple[Tensor, Tensor]:
        """|.|² of this process's gradient and of the reduced one, since the last look.

        MeasurementError unless there was one reduction.
        """
        local, reduced, rounds = self._local, self._reduced, self._rounds
        self.clear()
        if rounds != 1:
            raise MeasurementError(
                f"{rounds} reductions in this update: run all micro-batches but the last under "
                "model.no_sync(), and call update() after the last"
            )
        return torch.stack(local).sum(), torch.stack(reduced).sum()

    def clear(self) -> None:
        """Forgets what was reduced since the last look."""
        self._local, self._reduced, self._rounds = [], [], 0

    def sum(self, values: Tensor) -> tuple[int, Tensor]:
        """The number of processes, and the sum of their values."""
        dist.all_reduce(values, group=self._group)
        return self._group.size(), values
