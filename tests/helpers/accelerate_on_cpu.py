"""Accelerate's FSDP on a CPU, where it silently takes DistributedDataParallel instead."""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """Has Accelerate do on a CPU what it does on a GPU where an fsdp_plugin is given.

    Its state is told so as it tells itself there; all that follows is its own: how it wraps a
    model, accumulates, clips and unwraps.
    """
    begin = AcceleratorState.__init__

    def begin_sharded(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = begin_sharded


def begin_anew() -> None:
    """Forgets the Accelerator of an earlier training, but not the processes."""
    AcceleratorState._reset_state()
    GradientState._reset_state()
    if PartialState._shared_state:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
