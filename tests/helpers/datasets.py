"""Data sets of all kinds, and what a plain loop over single items gives."""

import random

import torch
from numpy.random import mtrand


class Items(torch.utils.data.Dataset):
    """A map-style data set whose items a function gives; notes which were read."""

    def __init__(self, item, size=12):
        self.item, self.size = item, size
        self.read = []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if not 0 <= index < self.size:
            raise IndexError(index)
        self.read.append(index)
        return self.item(index)


def single_gradients(model, losses):
    """The gradients of the losses (n), each by a backward pass of its own: (n, P), float64."""
    params = list(model.parameters())
    rows = [torch.autograd.grad(loss, params, allow_unused=True) for loss in losses]
    return torch.stack(
        [
            torch.cat(
                [
                    (torch.zeros_like(param) if part is None else part).flatten()
                    for part, param in zip(row, params, strict=True)
                ]
            )
            for row in rows
        ]
    ).double()


def scales(gradients):
    """|G|² and tr Σ, with 1/N, of a data set whose gradients (N, P) all are there."""
    mean = gradients.mean(0)
    return float(mean.square().sum()), float((gradients - mean).square().sum(1).mean())


DRAWS = {  # numbers from each of the global random states
    "torch": lambda size: torch.randn(size, dtype=torch.float64),
    "numpy": lambda size: torch.as_tensor(mtrand.normal(size=size)),
    "python": lambda size: torch.tensor([random.gauss(0, 1) for _ in range(size)]).double(),
}


def global_states():
    """The global random states of torch, numpy and Python, to be compared."""
    return torch.get_rng_state().tolist(), str(mtrand.get_state()), random.getstate()
