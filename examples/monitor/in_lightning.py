"""The noise scale in a Lightning Trainer that accumulates batches."""

import logging
from tempfile import TemporaryDirectory

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noisescale.integrations.lightning import NoiseScaleCallback


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02)


logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pl.seed_everything(0, verbose=False)
inputs = torch.randn(2048, 20)
data = TensorDataset(inputs, inputs.sum(1, keepdim=True) + torch.randn(2048, 1))
callback = NoiseScaleCallback()
quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
with TemporaryDirectory() as folder:
    settings = {"accelerator": "cpu", "devices": 1, "enable_checkpointing": False, **quiet}
    settings |= {"default_root_dir": folder, "max_epochs": 1, "accumulate_grad_batches": 4}
    trainer = pl.Trainer(callbacks=[callback], **settings)
    trainer.fit(Regression(), DataLoader(data, batch_size=16, shuffle=True))
print(callback.monitor.noise())
