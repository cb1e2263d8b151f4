"""Squared norms of gradients before and after the reduce-scatter of FSDP2 (`fully_shard`)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed as dist, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.monitor.gradients import local, squared_norms
from noisescale.measure.monitor.groups import Groups
from noisescale.measure.monitor.live_preconditioner import LivePreconditioner, under
from noisescale.statistics.display import counted

# Newer torch warns of the older name
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class ShardNorms:
    """The squared norms, by group, of what the reduce-scatters of a sharded model reduce.

    The input of a reduce-scatter is this process's whole gradient, its output this process's shard
    of the sum. What either was divided by is not asked of FSDP, whose factors depend on the number
    of processes, the type of the numbers, and the user: with c Σ_r input_r the gradient that the
    optimizer sees, c² of each module is its squared norm over that of the summed inputs.

    reduce_scatter: does the reduction, as one of the user's own; None: torch's.
    preconditioner: under which norms are taken, of whose shards each process gathers all; None:
        plain ones.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        reduce_scatter: Any = None,
        preconditioner: LivePreconditioner | None = None,
    ) -> None:
        owned = _owned(model)
        parameters = [parameter for own in owned.values() for parameter in own]
        self._mesh = _mesh_of(parameters)
        _check_covered(groups, parameters)
        self.num_processes = self._mesh.size()
        self._replicas = self._mesh.size(0) if self._mesh.ndim == 2 else 1
        self._num_groups = len(groups.names)
        self._parts = [
            _Part(module, own, groups, self._mesh, reduce_scatter, preconditioner)
            for module, own in owned.items()
        ]

    @property
    def rounds(self) -> int:
        """Reductions since the last look."""
        return max(part.rounds for part in self._parts)

    def take(self, weight: float) -> Tensor:
        """This process's numbers to be summed over all: 3 of each module and group, flat.

        MeasurementError unless there was one reduction.
        """
        rounds = self.rounds
        numbers = [part.numbers(weight) for part in self._parts] if rounds == 1 else []
        self.clear()
        if rounds != 1:
            raise MeasurementError(
                f"{rounds} reductions in this update: call "
                "model.set_requires_gradient_sync(False) before the update, (True) before its "
                "last micro-batch, and update() after that, or discard() where the step is skipped"
            )
        return torch.stack(numbers).reshape(-1)

    def clear(self) -> None:
        """Forgets what was reduced since the last look."""
        for part in self._parts:
            part.clear()

    def sum(self, values: Tensor) -> Tensor:
        """The sum of the processes' values."""
        dist.all_reduce(values, group=self._mesh.get_group() if self._mesh.ndim == 1 else None)
        return values

    def squares(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """Σ|.|²/weight over processes and |.|² of the reduced gradient, (G,) each."""
        whole = torch.zeros_like(sums[: self._num_groups])
        own = torch.zeros_like(whole)
        for part, numbers in zip(self._parts, sums.reshape(-1, 3, self._num_groups), strict=True):
            inputs, summed, reduced = numbers  # (G,) each
            own += self.num_processes**2 * part.squared_factor(summed, reduced) * inputs
            whole += reduced / self._replicas
        return own, whole


class _Part:
    """One module's reduce-scatter, in place of torch's, and its look at input and output."""

    def __init__(
        self,
        module: FSDPModule,
        parameters: list[DTensor],
        groups: Groups,
        mesh: DeviceMesh,
        reduce_scatter: Any,
        preconditioner: LivePreconditioner | None,
    ) -> None:
        group_of = {
            id(parameter): group
            for parameter, group in zip(groups.parameters, groups.of, strict=True)
        }
        self._parameters = [(one, group_of.get(id(one))) for one in parameters]
        self._num_groups = len(groups.names)
        self._mesh, self._inner = mesh, reduce_scatter
        self._preconditioner = preconditioner
        self._factor: Tensor | None = None  # c², once it is known of replicas of shards
        self.clear()
        _replace_reduce_scatter(module, self)
        for place, (parameter, group) in enumerate(self._parameters):
            if group is not None:
                parameter.register_post_accumulate_grad_hook(partial(self._look, place))

    def clear(self) -> None:
        """Forgets what was reduced since the last look."""
        self.rounds = 0
        self._inputs: Tensor | None = None  # (G,)
        self._summed: Tensor | None = None  # (G,)
        self._reduced: Tensor | None = None  # (G,)
        self._waiting: list[tuple[Tensor, int]] = []  # shards, of the present reduction
        self._roots: dict[int, Tensor] = {}  # √P of the parameters' shards, by their places
        self._is_whole = False  # it is of all the parameters

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for an input or an output, as torch asks for."""
        if self._inner is None:
            return torch.empty(*size, dtype=dtype, device=device)
        memory: Tensor = self._inner.allocate(size, dtype=dtype, device=device)
        return memory

    def __call__(
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: dist.ProcessGroup,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        """The reduction, with a look before and after it."""
        self.rounds += 1
        rows = input_tensor.view(group.size(), -1)
        self._is_whole = sum(self._widths()) == rows.shape[1]
        root, roots = self._take_roots(group)
        self._inputs, self._waiting = self._norms(rows, roots), []
        if self._inner is None:
            work = _reduce_scatter(output_tensor, input_tensor, op, group, async_op)
        else:
            work = self._inner(output_tensor, input_tensor, group, op, async_op)
        if self._factor is None:
            if work is not None:
                work.wait()
            summed = output_tensor
            if self._mesh.ndim == 2:
                summed = output_tensor.clone()
                dist.all_reduce(summed, group=self._mesh.get_group(0))
            self._summed = self._norms(summed.view(1, -1), root) / _weight(op, group) ** 2
        return work

    def numbers(self, weight: float) -> Tensor:
        """Of this process (3, G): |input|²/weight, |summed shard|², |shard of the gradient|²."""
        device = self._parameters[0][0].device
        none = torch.zeros(self._num_groups, dtype=torch.float64, device=device)
        inputs, summed, reduced = (
            none if square is None else square.to(device)
            for square in (self._inputs, self._summed, self._reduced)
        )
        return torch.stack([inputs / weight, summed, reduced])

    def squared_factor(self, summed: Tensor, reduced: Tensor) -> Tensor:
        """c², from |.|² (G,) of the summed inputs and of the gradient, over all processes."""
        if self._factor is not None:
            return self._factor
        factor = reduced.sum() / summed.sum()
        factor = torch.where(summed.any(), factor, 0.0)  # a module that took no part
        if self._mesh.ndim == 2 and factor.isfinite() and factor > 0:
            self._factor = factor  # a further reduction, of the summed inputs, once is enough
        return factor

    def _look(self, place: int, parameter: Tensor) -> None:
        """FSDP calls it once the gradient's shard is there; the last takes one norm of all."""
        group = self._parameters[place][1]
        if parameter.grad is None or group is None:
            return
        self._waiting.append((under(self._roots.get(place), local(parameter.grad)), group))
        watched = sum(one.requires_grad for one, member in self._parameters if member is not None)
        if self._is_whole and len(self._waiting) < watched:
            return
        parts, places = zip(*self._waiting, strict=True)
        self._waiting = []
        square = squared_norms(parts, places, self._num_groups)
        self._reduced = square if self._reduced is None else self._reduced + square

    def _widths(self) -> list[int]:
        """Of the parameters' gradients in each row, where all of them take part."""
        return [_width(one, self._mesh) for one, _ in self._parameters if one.requires_grad]

    def _take_roots(self, group: dist.ProcessGroup) -> tuple[Tensor | None, Tensor | None]:
        """√P of this process's row and of all rows, (1, width) and (processes, width)."""
        if self._preconditioner is None:
            return None, None
        self._check_whole("a preconditioner of them cannot be told apart: leave preconditioner=")
        watched = {
            place: one
            for place, (one, member) in enumerate(self._parameters)
            if member is not None and one.requires_grad
        }
        roots = self._preconditioner.roots(list(watched.values()))
        self._roots = {place: local(root) for place, root in zip(watched, roots, strict=True)}
        pieces = []
        for place, (one, _) in enumerate(self._parameters):
            if not one.requires_grad:
                continue
            root = self._roots.get(place, torch.zeros(0, device=one.device)).reshape(-1)
            # shards of fewer numbers end in zeros, as their gradients do
            pieces.append(nn.functional.pad(root, (0, _width(one, self._mesh) - len(root))))
        row = torch.cat(pieces)[None]
        rows = row.new_empty(group.size(), row.shape[1])
        dist.all_gather_into_tensor(rows, row, group=group)
        return row, rows

    def _check_whole(self, why: str) -> None:
        """MeasurementError where parameters of the present reduction take no part in it."""
        if not self._is_whole:
            raise MeasurementError(
                "some parameters of a sharded module have no gradient in this update, so that "
                f"{why} out, and give the monitor all parameters"
            )

    def _norms(self, rows: Tensor, roots: Tensor | None) -> Tensor:
        """(G,), of the gradients, side by side in the rows, times the roots."""
        rows = under(roots, rows)
        members = [group for one, group in self._parameters if one.requires_grad]
        if self._num_groups == 1 and None not in members:
            return squared_norms([rows], [0], 1)
        widths = self._widths()
        self._check_whole("those of its groups cannot be told apart: leave groups=")
        watched = [
            (part, group)
            for part, group in zip(rows.split(widths, dim=1), members, strict=True)
            if group is not None
        ]
        if not watched:
            return torch.zeros(self._num_groups, dtype=torch.float64, device=rows.device)
        parts, places = zip(*watched, strict=True)
        return squared_norms(parts, places, self._num_groups)


def is_sharded(model: nn.Module) -> bool:
    """Whether a model is sharded by `fully_shard`, in whole or in parts."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def _owned(model: nn.Module) -> dict[FSDPModule, list[DTensor]]:
    """The modules that shard parameters, each with those, in the order that FSDP reduces them in.

    Of modules that are sharded together, as `fully_shard` takes a list of them, the first alone.
    """
    owned: dict[FSDPModule, list[DTensor]] = {}
    states: set[int] = set()
    for module in model.modules():
        if not isinstance(module, FSDPModule) or id(module._get_fsdp_state()) in states:
            continue
        states.add(id(module._get_fsdp_state()))
        sharded: list[DTensor] = [
            parameter.sharded_param for group in _groups(module) for parameter in group.fsdp_params
        ]
        if sharded:
            owned[module] = sharded
    return owned


def _groups(module: FSDPModule) -> list[Any]:
    """FSDP's own records of the parameters that a module shards."""
    state = module._get_fsdp_state()
    several = getattr(state, "_fsdp_param_groups", None)  # of newer torch
    found: list[Any] = [state._fsdp_param_group] if several is None else several
    return [group for group in found if group is not None]


def _mesh_of(parameters: list[DTensor]) -> DeviceMesh:
    """The processes that parameters are sharded over, and perhaps replicated; or SettingError."""
    if not parameters:
        raise SettingError("fully_shard has left no parameter to be sharded: use micro-batches")
    mesh = parameters[0].device_mesh
    for parameter in parameters:
        *replicated, last = parameter.placements
        plain = isinstance(last, Shard) and all(isinstance(one, Replicate) for one in replicated)
        if parameter.device_mesh != mesh or mesh.ndim > 2 or not plain:
            raise SettingError(
                f"parameters on {parameter.device_mesh} as {parameter.placements}: only data "
                "parallelism is measured, sharded over one dimension of processes and perhaps "
                "replicated over another; with tensor parallelism beside it use micro-batches"
            )
    if mesh.size(mesh.ndim - 1) < 2:
        raise SettingError(
            "parameters sharded over one process, whose gradient is the whole batch's: use "
            "micro-batches"
        )
    if mesh.ndim == 2 and mesh.size() != dist.get_world_size():
        raise SettingError(
            f"replicas of shards over {mesh.size()} of {dist.get_world_size()} processes: only "
            "all of them are measured"
        )
    return mesh


def _check_covered(groups: Groups, sharded: list[DTensor]) -> None:
    """SettingError where the monitor has parameters that the model does not shard."""
    ids = {id(parameter) for parameter in sharded}
    missing = [one for one in groups.parameters if one.requires_grad and id(one) not in ids]
    if missing:
        raise SettingError(
            f"{counted(len(missing), 'parameter')} of the monitor that the model does not shard, "
            "as ignored_params of fully_shard or of another model: FSDP does not reduce their "
            "gradients; give the monitor the others, "
            "NoiseScaleMonitor(p for p in model.parameters() if isinstance(p, DTensor))"
        )


def _replace_reduce_scatter(module: FSDPModule, part: _Part) -> None:
    """Puts ours in place of torch's; SettingError where there is another, or it cannot be put."""
    replace = getattr(module, "set_custom_reduce_scatter", None)
    if replace is None:
        raise SettingError(
            f"torch {torch.__version__} does not show what FSDP reduces: use torch 2.9 or later, "
            "DistributedDataParallel, or micro-batches"
        )
    for group in _groups(module):
        present = type(getattr(group, "_reduce_scatter_comm", part))
        if not present.__module__.startswith("torch.") and part._inner is None:
            raise SettingError(
                f"the model reduces by {present.__name__} already: give attach(model, "
                "reduce_scatter=...), which then does the reduction"
            )
    try:
        replace(part)
    except ValueError as error:
        raise SettingError(f"this model's reductions cannot be watched: {error}") from error


def _width(parameter: DTensor, mesh: DeviceMesh) -> int:
    """Numbers of a parameter's gradient in each row: its share, of equal ones."""
    processes = mesh.size(mesh.ndim - 1)
    placement = parameter.placements[-1]
    assert isinstance(placement, Shard), "as _mesh_of has seen"
    size = parameter.shape[placement.dim]
    return math.ceil(size / processes) * (parameter.numel() // size)


def _weight(op: Any, group: dist.ProcessGroup) -> float:
    """What a reduction multiplies the sum by."""
    if op == dist.ReduceOp.SUM:
        return 1.0
    if op == dist.ReduceOp.AVG:
        return 1.0 / group.size()
    kind, factor = op.__getstate__()  # of what is multiplied before it is summed
    if kind != dist.ReduceOp.PREMUL_SUM:
        raise SettingError(f"a reduction by {kind}: only sums and means are measured")
    return float(factor)
