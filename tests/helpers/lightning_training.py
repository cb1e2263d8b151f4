"""A training in Lightning that notes what each update is made of.

`torchrun ... -m tests.helpers.lightning_training FOLDER` trains in each of several ways and writes
FOLDER/RANK.pt, what the process saw.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader

from noisescale import NoiseScaleMonitor
from noisescale.integrations.lightning import NoiseScaleCallback
from tests.helpers.micro_batches import BATCH, STEPS, data


class Recorder(pl.LightningModule):
    """Linear regression that notes what each update is made of."""

    steps = STEPS

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)
        self.updates: list[Any] = []

    def training_step(self, batch, index):
        if index % self.steps == 0:
            self.updates.append((self.weight().detach().clone(), []))
        self.updates[-1][1].append(batch)
        return ((self.layer(batch[0]) - batch[1]) ** 2).mean()

    def weight(self) -> torch.Tensor:
        return self.layer.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def lightning_trainer(folder: Path, callback: pl.Callback, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "accumulate_grad_batches": STEPS,
            "gradient_clip_val": 0.1,
            "logger": pl.loggers.CSVLogger(folder),
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
            "callbacks": [callback],
            "max_epochs": 2,
            **settings,
        }
    )


class Sharded(Recorder):
    """The same, sharded by `fully_shard`, with an update after every batch."""

    steps = 1

    def configure_model(self) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not isinstance(self.layer, FSDPModule):
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def weight(self) -> torch.Tensor:
        return self.layer.weight.full_tensor()


class Scheduled(Recorder):
    """Of one batch per update in the first epoch."""

    @property
    def steps(self) -> int:
        return 1 if self.current_epoch == 0 else STEPS


class Manual(Recorder):
    """Steps by hand, and watches its gradients itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.noise_monitor = NoiseScaleMonitor(self.layer.parameters())

    def on_train_start(self) -> None:
        if self.trainer.world_size > 1:
            self.noise_monitor.attach(self.trainer.model)

    def training_step(self, batch, index):
        is_last = index % STEPS == STEPS - 1
        reduces = is_last or self.trainer.world_size == 1
        with nullcontext() if reduces else self.trainer.model.no_sync():
            self.manual_backward(super().training_step(batch, index) / STEPS)
        self.noise_monitor.micro_batch(len(batch[0]))
        if is_last:
            self.noise_monitor.update()
            self.optimizers().step()
            self.optimizers().zero_grad()


CASES = {
    "ddp": Recorder,
    "schedule": Scheduled,
    "manual": Manual,
    "fsdp2": Sharded,
    "fsdp2 accumulated": Sharded,
}


def train(folder: Path, case: str) -> dict[str, Any]:
    torch.manual_seed(0)
    callback, model = NoiseScaleCallback(), CASES[case]()
    settings: dict[str, Any] = {"strategy": "ddp"}
    if case == "schedule":
        settings["callbacks"] = [callback, GradientAccumulationScheduler({0: 1, 1: STEPS})]
        settings["accumulate_grad_batches"] = 1
    elif case == "manual":
        settings |= {"callbacks": [], "accumulate_grad_batches": 1, "gradient_clip_val": None}
    elif case.startswith("fsdp2"):
        shards = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        settings = {"strategy": shards, "gradient_clip_val": None}
        settings["accumulate_grad_batches"] = 1 if case == "fsdp2" else STEPS
    trainer = lightning_trainer(folder, callback, devices=2, **settings)
    trainer.fit(model, DataLoader(data(16), batch_size=BATCH))
    monitor = model.noise_monitor if isinstance(model, Manual) else callback.monitor
    return {
        "epochs": trainer.current_epoch,
        "updates": model.updates,
        "unmeasured": monitor.unmeasured,
        "scalars": {} if monitor.unmeasured else monitor.scalars(),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {case: train(Path(sys.argv[1]), case) for case in CASES}
    torch.save(found, Path(sys.argv[1]) / f"{torch.distributed.get_rank()}.pt")
    torch.distributed.destroy_process_group()
