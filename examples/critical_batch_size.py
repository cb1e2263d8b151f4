"""The critical batch size of a model of one's own, by training it at several batch sizes."""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from noisescale import CriticalBatchConfig, Examples, Problem, run_critical_batch
from noisescale.problems.factory import factory_config


def make() -> Problem:
    """A regression, whose noise is that of its targets."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2000, 10, generator=generator)
    noise = torch.randn(2000, 1, generator=generator)
    return Problem(
        model=nn.Linear(10, 1),
        loss=lambda outputs, targets: (outputs - targets).square().sum(dim=1),
        train=Examples(inputs, inputs.sum(1, keepdim=True) + noise),
    )


if __name__ == "__main__":  # its processes import this file
    config = CriticalBatchConfig(
        problem=factory_config(f"{__file__}:make"),
        batch_sizes=(2, 8, 32, 128),
        goals=(2.0,),
        num_seeds=2,
    )
    with TemporaryDirectory() as folder:
        for goal, fit in run_critical_batch(config, Path(folder) / "front").fits.items():
            print(f"to a loss of {goal:g}:", fit.critical_batch_size)
