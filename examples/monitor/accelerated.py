"""The noise scale in a loop of one's own with Accelerate; accelerate launch takes processes."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noisescale import NoiseScaleMonitor

torch.manual_seed(0)
inputs = torch.randn(2048, 20)
data = TensorDataset(inputs, inputs.sum(1, keepdim=True) + torch.randn(2048, 1))
model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
model, optimizer, loader = accelerator.prepare(
    model, optimizer, DataLoader(data, batch_size=16, shuffle=True)
)
monitor = NoiseScaleMonitor(model.parameters())
if accelerator.num_processes > 1:
    monitor.attach(model)
for batch, targets in loader:
    with accelerator.accumulate(model):
        accelerator.backward(nn.functional.mse_loss(model(batch), targets))
        monitor.micro_batch(len(batch))
        if accelerator.sync_gradients:
            # before accelerator.clip_grad_norm_; all losses are divided by this
            monitor.update(divided_by=accelerator.gradient_accumulation_steps)
        optimizer.step()
        optimizer.zero_grad()
if accelerator.is_main_process:
    print(monitor.noise())
accelerator.end_training()
