"""How often the interval of `NormLayerMonitor` holds B_simple of all parameters.

    python -m experiments.coverage.norm_layers

A small network with three layer norms, its parameters fixed, on fresh batches: outputs f(x) + 1 and
targets of a noise that sets B_simple. The truth is that of 200,000 examples.
"""

from __future__ import annotations

from typing import Any

import click
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from experiments.coverage.tables import TABLES, write_coverage
from noisescale import NormLayerMonitor

WIDTH, POSITIONS = 6, 3
TRUTH, CHUNK = 200_000, 5000
# standard deviation of the targets, batch size, updates, of which one in so many is split
CASES = ((0.0, 32, 200, 5), (1.0, 32, 200, 5), (2.0, 64, 400, 10), (5.0, 32, 200, 10))


class Net(nn.Module):
    """Positions through three norm layers, to one output for each example."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.mix, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 1)
        for layer in (self.first, self.second, self.last):
            nn.init.uniform_(layer.weight, -1.0, 2.0)
            nn.init.normal_(layer.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs (B,) of inputs (B, 3, 6)."""
        hidden = torch.relu(self.first(self.mix(inputs)))
        hidden = self.second(hidden + torch.tanh(self.mix(hidden)))
        outputs: Tensor = self.head(self.last(hidden).mean(1))[:, 0]
        return outputs


def network() -> Net:
    """The network at a fixed point."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double()


def batch(size: int, spread: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fresh inputs and targets."""
    shape = (size, POSITIONS, WIDTH)
    inputs = torch.randn(shape, dtype=torch.float64, generator=generator)
    return inputs, spread * torch.randn(size, dtype=torch.float64, generator=generator) - 1


def noise_scale_of(model: Net, spread: float, num_examples: int = TRUTH) -> float:
    """B_simple from the gradients of so many examples, written out."""
    params = {name: param.detach() for name, param in model.named_parameters()}

    def loss(values: dict[str, Tensor], inputs: Tensor, target: Tensor) -> Tensor:
        outputs: Tensor = functional_call(model, values, (inputs[None],))[0]
        return (outputs - target).square()

    generator = torch.Generator().manual_seed(1)
    total, squares = torch.zeros((), dtype=torch.float64), 0.0
    for _ in range(num_examples // CHUNK):
        each = vmap(grad(loss), (None, 0, 0))(params, *batch(CHUNK, spread, generator))
        rows = torch.cat([part.flatten(1) for part in each.values()], 1)
        total, squares = total + rows.sum(0), squares + float(rows.square().sum())
    mean = total / num_examples
    trace = (squares / num_examples - float(mean @ mean)) * num_examples / (num_examples - 1)
    return trace / (float(mean @ mean) - trace / num_examples)


def simulate(
    spread: float, batch_size: int, num_updates: int, every: int, num_draws: int
) -> dict[str, Any]:
    """A row: how many trainings resolve B_simple, and how many of their intervals hold it."""
    model = network()
    truth = noise_scale_of(model, spread)
    generator = torch.Generator().manual_seed(2)
    held = []
    for _ in range(num_draws):
        monitor = NormLayerMonitor(model, memory=1e12)
        for _ in range(num_updates):
            inputs, targets = batch(batch_size, spread, generator)
            model.zero_grad()
            monitor.backward((model(inputs) - targets).square(), every=every)
            monitor.update()
        found = monitor.simple()
        monitor.remove()
        if np.isfinite([found.value, found.low]).all():
            held.append(found.low <= truth <= found.high)
    return {
        "spread": spread,
        "batch_size": batch_size,
        "updates": num_updates,
        "every": every,
        "draws": num_draws,
        "simple": truth,
        "resolved": len(held) / num_draws,
        "coverage": float(np.mean(held)) if held else np.nan,
    }


@click.command()
@click.option("--draws", "num_draws", type=click.IntRange(min=1), default=200, show_default=True)
def main(num_draws: int) -> None:
    """Write the table of coverages."""
    torch.set_num_threads(1)
    write_coverage(
        TABLES / "norm_layers.csv",
        [simulate(*case, num_draws) for case in track(CASES)],
        command=f"python -m experiments.coverage.norm_layers --draws {num_draws}",
        seeds="2, of the truth 1",
    )


if __name__ == "__main__":
    main(prog_name="python -m experiments.coverage.norm_layers")
