"""The noise scale inside a training loop of one's own, at no further backward pass."""

import torch
from torch import nn

from noisescale import NoiseScaleMonitor

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
monitor = NoiseScaleMonitor(model.parameters())

for step in range(200):
    for _ in range(4):  # an update is of four micro-batches of 16 examples
        inputs = torch.randn(16, 20)
        targets = inputs.sum(1, keepdim=True) + torch.randn(16, 1)
        loss = nn.functional.mse_loss(model(inputs), targets)
        (loss / 4).backward()
        monitor.micro_batch(len(inputs))
    monitor.update()  # before the gradient is clipped or zeroed
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 50 == 49:
        simple = monitor.noise().simple
        print(
            f"step {step + 1}: B_simple {simple.value:.0f} ({simple.low:.0f} to {simple.high:.0f})"
        )
