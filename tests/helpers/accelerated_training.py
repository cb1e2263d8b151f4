"""A loop of one's own with Accelerate in several processes, and what its monitor found.

`torchrun ... -m tests.helpers.accelerated_training FOLDER` trains wrapped by DDP and by FSDP2 and
writes FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.utils.data import DataLoader

from noisescale import NoiseScaleMonitor
from tests.helpers.accelerate_on_cpu import begin_anew, shard_on_cpu
from tests.helpers.micro_batches import BATCH, data

STEPS = 3  # micro-batches of a process in an update


def train(*, sharded: bool) -> dict[str, Any]:
    """Of linear regression: its updates, as weight and micro-batches, and the monitor's scalars."""
    begin_anew()
    torch.manual_seed(0)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="NO_WRAP")
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=STEPS,
        fsdp_plugin=plugin if sharded else None,
    )
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(data(36), batch_size=BATCH)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    monitor = NoiseScaleMonitor(model.parameters())
    monitor.attach(model)
    updates: list[Any] = []
    for number, (inputs, targets) in enumerate(loader):
        if number % STEPS == 0:
            updates.append((whole(model), []))
        updates[-1][1].append((inputs, targets))
        with accelerator.accumulate(model):
            accelerator.backward(((model(inputs) - targets) ** 2).mean())
            monitor.micro_batch(len(inputs))
            if accelerator.sync_gradients:
                assert monitor.update()
                accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
    return {
        "wrapped": type(model).__name__,
        "scalars": monitor.scalars(),
        "updates": updates,
    }


def whole(model: nn.Module) -> torch.Tensor:
    """The weight (1, 3) of a model that may be sharded."""
    (weight,) = model.parameters()
    gather = getattr(weight, "full_tensor", None)
    return (weight if gather is None else gather()).detach().clone()


if __name__ == "__main__":
    torch.set_num_threads(1)
    shard_on_cpu()
    found = {name: train(sharded=name == "fsdp2") for name in ("ddp", "fsdp2")}
    torch.save(found, Path(sys.argv[1]) / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
