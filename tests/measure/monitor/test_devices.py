"""The monitors on the CPU and, where there is one, on a GPU, DDP by NCCL among them."""

import copy

import pytest
import torch
from torch import distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel

from noisescale.errors import SettingError
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.measure.monitor.norm_layers.monitor import NormLayerMonitor
from tests.helpers.devices import EVERYWHERE
from tests.helpers.processes import free_port

UPDATES = 70  # more than a GPU's norms wait to be read


def layers():
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))


def updates(model, monitor, device, *, wrapped=None, accumulates=True):
    """Micro-batches of four and four examples, the same ones on every device."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(UPDATES):
        inputs = torch.randn(8, 6, generator=generator).to(device)
        model.zero_grad()
        for part in inputs.split(4):
            losses = (wrapped or model)(part).square().sum(1)
            (losses.mean() / 2).backward()
            if accumulates:
                monitor.micro_batch(4)
        monitor.update()


@pytest.mark.parametrize("device", EVERYWHERE)
def test_the_monitor_does_not_depend_on_the_device(device):
    torch.manual_seed(0)
    on_cpu = layers()
    model = copy.deepcopy(on_cpu).to(device)
    found, expected = NoiseScaleMonitor(model), NoiseScaleMonitor(on_cpu)
    updates(model, found, device)
    updates(on_cpu, expected, "cpu")
    for mine, theirs in zip(found.noise()[:2], expected.noise()[:2], strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-4)
    assert found.num_updates == expected.num_updates == UPDATES


@pytest.mark.parametrize("device", EVERYWHERE)
def test_the_norm_layers_monitor_does_not_depend_on_the_device(device):
    torch.manual_seed(0)
    on_cpu = layers()
    results = []
    for place in (device, "cpu"):
        model = copy.deepcopy(on_cpu).to(place)
        monitor = NormLayerMonitor(model)
        generator = torch.Generator().manual_seed(0)
        for _ in range(UPDATES):
            inputs = torch.randn(8, 6, generator=generator).to(place)
            model.zero_grad()
            monitor.backward(model(inputs).square().sum(1), every=10)
            monitor.update()
        results.append(monitor.norm_layer_noise())
    for mine, theirs in zip(results[0][:2], results[1][:2], strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_look_on_a_gpu_waits_for_nothing(memory_format):
    """Reading a number off the device would be an error here."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)).cuda()
    inputs = torch.randn(4, 3, 8, 8, device="cuda").to(memory_format=memory_format)
    model(inputs)
    model.to(memory_format=memory_format)
    monitor = NoiseScaleMonitor(model)
    for quiet in (False, True):  # the first look sets up what the others find
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")
        try:
            for part in inputs.split(2):
                (model(part).square().sum(1).mean() / 2).backward()
                monitor.micro_batch(2)
            monitor.update()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        model.zero_grad()
    assert monitor.num_updates == 2


@pytest.fixture
def nccl(monkeypatch):
    """A group of one process, as torchrun --nproc-per-node 1 makes on one GPU."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "RANK": 0, "WORLD_SIZE": 1}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    dist.init_process_group("nccl", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.gpu
def test_micro_batches_under_ddp_and_nccl_are_those_of_the_bare_model(nccl):
    torch.manual_seed(0)
    bare = layers().cuda()
    model = copy.deepcopy(bare)
    wrapped = DistributedDataParallel(model, device_ids=[0])
    found, expected = NoiseScaleMonitor(model), NoiseScaleMonitor(bare)
    updates(model, found, "cuda", wrapped=wrapped)
    updates(bare, expected, "cuda")
    for mine, theirs in zip(found.noise()[:2], expected.noise()[:2], strict=True):
        assert mine.value == pytest.approx(theirs.value, rel=1e-5)


@pytest.mark.gpu
def test_a_group_of_one_process_has_nothing_to_compare_under_nccl_either(nccl):
    model = DistributedDataParallel(layers().cuda(), device_ids=[0])
    with pytest.raises(SettingError, match="a process group of one"):
        NoiseScaleMonitor(model.parameters()).attach(model)
