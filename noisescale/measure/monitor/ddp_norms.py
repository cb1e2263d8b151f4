"""Squared norms of gradients before and after the reduction of DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.monitor.gradients import squared_norms
from noisescale.measure.monitor.groups import Groups
from noisescale.measure.monitor.live_preconditioner import (
    LivePreconditioner,
    flat_in_memory,
    under,
)

# (state, dist.GradBucket) -> reduced bucket
CommHook = Callable[[Any, Any], torch.futures.Future[Tensor]]


class ReplicaNorms:
    """The squared norms, by group, of what a communication hook of a model reduces.

    comm_hook: the state and hook that do the reduction; None: the mean over the group's processes.
    preconditioner: under which norms are taken; None: plain ones.
    """

    def __init__(
        self,
        model: DistributedDataParallel,
        groups: Groups,
        comm_hook: tuple[Any, CommHook] | None = None,
        preconditioner: LivePreconditioner | None = None,
    ) -> None:
        if model.process_group.size() < 2:
            raise SettingError(
                "a process group of one: its gradient is the whole batch's; use micro-batches"
            )
        self._group = model.process_group
        self.num_processes = self._group.size()
        self._state: Any = self._group
        self._reduce: CommHook = allreduce_hook
        if comm_hook is not None:
            self._state, self._reduce = comm_hook
        self._groups = groups
        self._preconditioner = preconditioner
        self._group_of = {
            id(parameter): group
            for parameter, group in zip(groups.parameters, groups.of, strict=True)
        }
        self._local: list[Tensor] = []  # (G,) by bucket
        self._reduced: list[Tensor] = []
        self.rounds = 0  # reductions since the last look
        try:
            model.register_comm_hook(None, lambda state, bucket: self._watch(bucket))
        except RuntimeError as error:
            raise SettingError(
                "the model has a communication hook already: leave register_comm_hook out and give "
                f"attach(model, comm_hook=(state, hook)) ({error})"
            ) from error

    def _watch(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """The hook."""
        is_first = self.rounds == 0
        self.rounds += bucket.is_last()
        if not is_first:  # a second reduction that nobody has looked at, which `take` refuses
            return self._reduce(self._state, bucket)
        parameters = bucket.parameters()
        norms = partial(
            _norms,
            sizes=[parameter.numel() for parameter in parameters],
            members=[self._group_of.get(id(parameter)) for parameter in parameters],
            num_groups=len(self._groups.names),
            roots=self._roots(parameters),
        )
        self._local.append(norms(bucket.buffer()))  # before it is overwritten
        # The callback must not hold the process group, as this object does: gloo's own thread may
        # be the last to let go of it, and a group that ends there waits for itself and aborts.
        squares = self._reduced

        def keep(future: torch.futures.Future[Any]) -> Tensor:
            reduced: Tensor = future.value()
            squares.append(norms(reduced))
            return reduced

        return self._reduce(self._state, bucket).then(keep)

    def _roots(self, parameters: list[Tensor]) -> list[Tensor | None]:
        """√P of a bucket's parameters, in the order of their memory; None of those not watched."""
        watched = [one for one in parameters if id(one) in self._group_of]
        if self._preconditioner is None:
            return [None] * len(parameters)
        roots = zip(watched, self._preconditioner.roots(watched), strict=True)
        flat = {id(one): flat_in_memory(root, one) for one, root in roots}
        return [flat.get(id(one)) for one in parameters]

    def take(self, weight: float) -> Tensor:
        """This process's numbers to be summed over all, since the last look: |.|²/weight (G,).

        MeasurementError unless there was one reduction.
        """
        local, reduced, rounds = self._local, self._reduced, self.rounds
        self.clear()
        if rounds != 1:
            raise MeasurementError(
                f"{rounds} reductions in this update: run all micro-batches but the last under "
                "model.no_sync(), and call update() after the last, or discard() where the step "
                "is skipped"
            )
        self._whole = torch.stack(reduced).sum(0)  # (G,)
        return torch.stack(local).sum(0) / weight

    def clear(self) -> None:
        """Forgets what was reduced since the last look."""
        self._local, self._reduced, self.rounds = [], [], 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' values."""
        dist.all_reduce(values, group=self._group)
        return values

    def squares(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Σ|.|²/weight over processes and |.|² of the reduced gradient, (G,) each."""
        return sums, self._whole


def _norms(
    buffer: Tensor,
    *,
    sizes: list[int],
    members: list[int | None],
    num_groups: int,
    roots: list[Tensor | None],
) -> Tensor:
    """(G,), of a bucket's gradients, which lie in it one after another, times these roots."""
    if num_groups == 1 and None not in members and roots[0] is None:
        return squared_norms([buffer], [0], 1)
    watched = [
        (under(root, part), group)
        for part, group, root in zip(buffer.split(sizes), members, roots, strict=True)
        if group is not None
    ]
    if not watched:
        return torch.zeros(num_groups, dtype=torch.float64, device=buffer.device)
    parts, places = zip(*watched, strict=True)
    return squared_norms(parts, places, num_groups)
