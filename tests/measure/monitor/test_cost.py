"""What a look costs on an accelerator, counted on torch's "meta" device: kernels, and no wait."""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor

WAITS = ("_local_scalar_dense", "equal", "nonzero", "is_nonzero", "_to_copy", "copy_")


class Kernels(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        on_device = [one for one in args if isinstance(one, torch.Tensor | list)]
        if not all(isinstance(one, torch.Tensor) and one.device.type == "cpu" for one in on_device):
            self.counts[operation.overloadpacket.__name__] += 1
        return operation(*args, **(kwargs or {}))


def kernels_of_an_update(depth, groups=None):
    """Of the second update, of a model with so many layers; a sync would be an error by itself."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(depth)]).to("meta")
    monitor = NoiseScaleMonitor(model, groups=groups)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        with Kernels() as kernels:
            for _ in range(2):
                monitor.micro_batch(2)
            assert monitor.update()
    return kernels.counts


@pytest.mark.parametrize("groups", [None, "type", "layer"])
def test_an_update_takes_as_many_kernels_whatever_the_depth_and_reads_nothing(groups, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a copy from the host, which waits for the device")

    monkeypatch.setattr(torch.Tensor, "new_tensor", refuse)
    shallow, deep = (kernels_of_an_update(depth, groups) for depth in (2, 40))
    assert deep == shallow
    assert deep["_foreach_norm"] == 2  # after the first and after the last micro-batch
    assert sum(deep.values()) <= 30
    assert not set(WAITS) & set(deep)
