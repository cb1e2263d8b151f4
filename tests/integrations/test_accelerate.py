"""A loop of one's own with Accelerate in two processes, DDP and FSDP2, in closed form."""

import numpy as np
import pytest
import torch

from noisescale.statistics.running_noise import RunningNoise, two_batch
from tests.helpers.micro_batches import BATCH, NAMES, mean_gradient
from tests.helpers.processes import torchrun

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.processes, pytest.mark.slow]

from tests.helpers.accelerated_training import STEPS


def expected(ranks):
    """The processes' mean gradients are the small batches, their mean the big one."""
    running = RunningNoise()
    for updates in zip(*(rank["updates"] for rank in ranks), strict=True):
        assert [len(parts) for _, parts in updates] == [STEPS, STEPS]
        assert torch.equal(updates[0][0], updates[1][0])  # one weight
        means = np.array(
            [
                np.mean([mean_gradient(weight, *part) for part in parts], axis=0)
                for weight, parts in updates
            ]
        )
        whole, size = means.mean(0), BATCH * STEPS
        small = (means**2).sum(1).mean()
        running.add(*two_batch(small, size, whole @ whole, 2 * size), num_examples=2 * size)
        running.memory = running.memory or 100 * 2 * size
    assert running.num_updates == 3
    return [getattr(running.noise, name).value for name in NAMES]


def test_accumulation_in_two_processes(tmp_path):
    ranks = torchrun("accelerated_training", tmp_path)
    for name, wrapper in (("ddp", "DistributedDataParallel"), ("fsdp2", "FSDPLinear")):
        both = [rank[name] for rank in ranks]
        assert [one["wrapped"] for one in both] == [wrapper, wrapper]
        assert str(both[0]["scalars"]) == str(both[1]["scalars"])
        found = [both[0]["scalars"][key] for key in NAMES]
        assert found == pytest.approx(expected(both), rel=1e-4), name
