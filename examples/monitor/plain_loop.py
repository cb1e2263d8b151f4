"""The noise scale in a plain training loop with gradient accumulation, to a table."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from noisescale import NoiseScaleMonitor, norm_test
from noisescale.integrations.loggers import CSVLogger, named

torch.manual_seed(0)
inputs = torch.randn(4096, 20)
targets = inputs.sum(1, keepdim=True) + torch.randn(4096, 1)
model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
monitor = NoiseScaleMonitor(model, groups="layer")
with TemporaryDirectory() as folder:
    logger = CSVLogger(Path(folder) / "noise.csv")
    for step, rows in enumerate(torch.randperm(4096).split(64)):
        for part in rows.split(16):
            loss = nn.functional.mse_loss(model(inputs[part]), targets[part])
            (loss / 4).backward()
            monitor.micro_batch(len(part))
        if monitor.update():
            logger.log(named(monitor.scalars()), step)
        optimizer.step()
        optimizer.zero_grad()
print(monitor.noise())
print("by layer:", {name: str(noise.simple) for name, noise in monitor.noise_by_group().items()})
print(
    "at 64 examples, noise over gradient:", norm_test(monitor.noise(), batch_size=64).squared_error
)
