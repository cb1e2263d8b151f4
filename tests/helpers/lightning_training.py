"""A training in Lightning that notes what each update is made of.

`python -m tests.helpers.lightning_training FOLDER` trains in two processes, writes what they saw.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from noisescale.integrations.lightning import NoiseScaleCallback
from tests.helpers.micro_batches import STEPS, data


class Recorder(pl.LightningModule):
    """Linear regression that notes what each update is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False)
        self.updates: list[Any] = []

    def training_step(self, batch, index):
        if index % STEPS == 0:
            self.updates.append((self.layer.weight.detach().clone(), []))
        self.updates[-1][1].append(batch)
        return ((self.layer(batch[0]) - batch[1]) ** 2).mean()

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


def train_in_two_processes(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    callback, model = NoiseScaleCallback(), Recorder()
    trainer = lightning_trainer(folder, callback, devices=2, strategy="ddp", max_epochs=1)
    trainer.fit(model, DataLoader(data(16), batch_size=2))
    seen = {"updates": model.updates, "scalars": callback.monitor.scalars()}
    torch.save(seen, folder / f"{trainer.global_rank}.pt")


if __name__ == "__main__":
    train_in_two_processes(Path(sys.argv[1]))
