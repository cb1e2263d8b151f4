"""The monitor on DistributedDataParallel: two gloo processes against closed forms."""

import gc
import json
import time

import pytest
import torch
from torch import distributed as dist, multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    allreduce_hook,
    fp16_compress_hook,
)
from torch.nn.parallel import DistributedDataParallel

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.distributed import process_group
from noisescale.measure.monitor.gradients import squared_norm
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.statistics.running_noise import two_batch
from tests.helpers.closed_forms import regression
from tests.helpers.processes import be_rank, free_port

EVEN, UNEVEN = ((2, 1), (2, 1)), ((1, 2), (1, 1))
MORE = ((1, 2, 1), (2, 2))  # micro-batch sizes of either process


def per_example(count):
    *_, gradients = regression(count)
    return torch.from_numpy(gradients)


def expected(sizes, reduction):
    """From per-example gradients: the processes' mean squared norm, and that of their mean."""
    total = sum(map(sum, sizes))
    locals_, weights, start = [], [], 0
    rows = per_example(total)
    for own in sizes:
        parts = [part.mean(0) for part in rows[start : start + sum(own)].split(own)]
        start += sum(own)
        if reduction == "mean":
            weights.append([1 / len(own)] * len(own))
        else:
            weights.append([count / sum(own) for count in own])
        locals_.append(sum(weight * part for weight, part in zip(weights[-1], parts, strict=True)))
    if reduction == "sum":
        shares = [sum(own) / total for own in sizes]
        small_size, big_size = total / len(sizes), total
    else:
        shares = [1 / len(sizes)] * len(sizes)
        inverse = [
            sum(weight**2 / count for weight, count in zip(one, own, strict=True))
            for one, own in zip(weights, sizes, strict=True)
        ]
        small_size = len(sizes) / sum(inverse)
        big_size = len(sizes) * small_size
    whole = sum(share * one for share, one in zip(shares, locals_, strict=True))
    small = sum(share * float(one @ one) for share, one in zip(shares, locals_, strict=True))
    return two_batch(small, small_size, float(whole @ whole), big_size)


def step(model, monitor, inputs, targets, own, start, total, scale=1.0):
    """One update's micro-batches of this process, the last of them with a reduction."""
    rank, world = dist.get_rank(), dist.get_world_size()
    model.zero_grad()
    parts = torch.arange(start, start + sum(own[rank])).split(own[rank])
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with model.no_sync() if not last else torch.enable_grad():
            losses = 0.5 * (model(inputs[part])[:, 0] - targets[part]) ** 2
            share = 1 / len(parts) / len(part) if monitor.reduction == "mean" else world / total
            (scale * losses.sum() * share).backward()
        monitor.micro_batch(len(part), scale=scale)


def as_rank(rank, port, path):
    be_rank(rank, port=port, size=2)
    found = {}
    with process_group(device="cpu"):
        for name, sizes, reduction in (
            ("even", EVEN, "mean"),
            ("uneven", UNEVEN, "mean"),
            ("more", MORE, "mean"),
            ("uneven-sum", UNEVEN, "sum"),
        ):
            total = sum(map(sum, sizes))
            weights, inputs, targets, _ = regression(total)
            # small buckets, so that there are several of them
            model = DistributedDataParallel(weights, bucket_cap_mb=1e-6)
            monitor = NoiseScaleMonitor(model.parameters(), reduction=reduction)
            monitor.attach(model)
            start = 0 if rank == 0 else sum(sizes[0])
            for _ in range(2):
                step(model, monitor, inputs, targets, sizes, start, total)
                assert monitor.update()
            noise = monitor.noise()
            found[name] = [noise.squared_gradient_norm.value, noise.gradient_variance.value]

        # a training that goes on unmeasured, as after a trainer's callback has given up
        model(inputs).sum().backward()
        kept = len(monitor._processes._local)
        for _ in range(3):
            model(inputs).sum().backward()
        assert len(monitor._processes._local) == kept == len(monitor._processes._reduced)
        monitor.discard()

        # an AMP scale, and an update that is not to be made
        weights, inputs, targets, _ = regression(6)
        model = DistributedDataParallel(weights)
        monitor = NoiseScaleMonitor(model.parameters())
        monitor.attach(model)
        step(model, monitor, inputs, targets, EVEN, 3 * rank, 6)
        monitor.discard()
        step(model, monitor, inputs, targets, EVEN, 3 * rank, 6, scale=64.0)
        monitor.update()
        noise = monitor.noise()
        found["scaled"] = [noise.squared_gradient_norm.value, noise.gradient_variance.value]
        alone = NoiseScaleMonitor(weights)
        with model.no_sync():
            for part in (slice(0, 2), slice(2, 4)):
                (model(inputs[part]) ** 2).mean().backward()
                alone.micro_batch(2)
        with pytest.raises(SettingError, match="several processes"):
            alone.update()

        weights, inputs, targets, _ = regression(6)
        model = DistributedDataParallel(weights)
        monitor = NoiseScaleMonitor(model.parameters())
        monitor.attach(model, (None, fp16_compress_hook))
        step(model, monitor, inputs, targets, EVEN, 3 * rank, 6)
        monitor.update()
        found["compressed"] = [
            monitor.noise().squared_gradient_norm.value,
            monitor.noise().gradient_variance.value,
        ]
        found["gradient"] = model.module.weight.grad.tolist()

        for _ in range(2):  # without no_sync the small batch would hold what was reduced before
            (model(inputs[:2]) ** 2).mean().backward()
            monitor.micro_batch(2)
        with pytest.raises(MeasurementError, match=r"2 reductions in this update.*no_sync"):
            monitor.update()
        with pytest.raises(SettingError, match="has a communication hook already"):
            NoiseScaleMonitor(model.parameters()).attach(model)
        with pytest.raises(SettingError, match="call attach"):
            NoiseScaleMonitor(model)
    (path / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.processes
@pytest.mark.slow
def test_two_processes_are_the_small_batches(tmp_path):
    multiprocessing.spawn(as_rank, (free_port(), tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["even"] == pytest.approx(expected(EVEN, "mean"), rel=1e-9)
    assert first["uneven"] == pytest.approx(expected(UNEVEN, "mean"), rel=1e-9)
    assert first["more"] == pytest.approx(expected(MORE, "mean"), rel=1e-9)
    assert first["scaled"] == pytest.approx(expected(EVEN, "mean"), rel=1e-9)
    assert first["uneven-sum"] == pytest.approx(expected(UNEVEN, "sum"), rel=1e-9)
    assert first["compressed"] == pytest.approx(expected(EVEN, "mean"), rel=1e-2)
    weights = (
        torch.tensor([1, 1, 2, 1, 1, 2]) / 8
    )  # micro-batches of 2, 1, 2 and 1 examples count alike
    mean = (weights.double() @ per_example(6)).tolist()
    assert first["gradient"][0] == pytest.approx(mean, rel=1e-2)


class Lingering:
    """A reduction's future whose thread holds each callback for a while after it has run."""

    def __init__(self, future):
        self.future = future

    def then(self, callback):
        following = self.future.then(callback)
        self.future.then(lambda future, held=callback: time.sleep(3))
        return following


def reduced_and_held(state, bucket):
    return Lingering(allreduce_hook(dist.group.WORLD, bucket))


def measured_once(rank, port):
    """Leaves nothing behind but what the thread of the reduction holds."""
    be_rank(rank, port=port, size=2)
    weights, inputs, targets, _ = regression(6)
    with process_group(device="cpu"):
        model = DistributedDataParallel(weights)
        monitor = NoiseScaleMonitor(model.parameters())
        monitor.attach(model, (None, reduced_and_held))
        step(model, monitor, inputs, targets, ((3,), (3,)), 3 * rank, 6)
        del model, monitor
        gc.collect()


def as_rank_that_ends_at_once(rank, port):
    measured_once(rank, port)
    time.sleep(4)  # the thread lets go meanwhile


@pytest.mark.processes
@pytest.mark.slow
def test_a_group_ends_though_its_own_thread_is_the_last_to_let_go_of_a_look():
    """Else the process aborts: the thread would wait for itself, "Resource deadlock avoided"."""
    multiprocessing.spawn(as_rank_that_ends_at_once, (free_port(),), nprocs=2)


def as_only_rank(rank, port):
    be_rank(rank, port=port, size=1)
    dist.init_process_group("gloo", rank=0, world_size=1)
    model = DistributedDataParallel(nn.Linear(2, 2))
    with pytest.raises(SettingError, match="a process group of one"):
        NoiseScaleMonitor(model.parameters()).attach(model)
    dist.destroy_process_group()


@pytest.mark.processes
@pytest.mark.slow
def test_a_group_of_one_is_refused():
    multiprocessing.spawn(as_only_rank, (free_port(),), nprocs=1)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_the_norm_of_a_complex_gradient_counts_its_imaginary_part(dtype):
    gradients = [torch.tensor([3 + 4j, 1j], dtype=dtype), torch.tensor([2.0])]
    assert squared_norm(gradients).item() == pytest.approx(25 + 1 + 4)
    assert squared_norm([gradients[0].conj()]).item() == pytest.approx(26)
