"""The monitor on FSDP2: gloo processes against gradients in closed form."""

import copy
import json
import math
from unittest import mock

import numpy as np
import pytest
import torch
from torch import distributed as dist, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.distributed import process_group
from noisescale.measure.monitor import fsdp_norms
from noisescale.measure.monitor.gradients import squared_norms
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.measure.noise import measure_noise
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.statistics.running_noise import two_batch
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import train
from tests.helpers.processes import be_rank, free_port

pytestmark = [pytest.mark.processes, pytest.mark.slow]
if not hasattr(torch.distributed.fsdp.FSDPModule, "set_custom_reduce_scatter"):
    pytestmark.append(pytest.mark.skip(reason="this torch does not show what FSDP reduces"))

ALL = ("squared_gradient_norm", "gradient_variance", "simple")
EPS = 1e-2  # of Adam
PARTS = 2  # micro-batches of a process, of two examples each
SHAPES = {"first": (5, 3), "second": (3, 5), "third": (1, 3)}  # uneven over 2, 3 and 4 processes


class Chain(nn.Module):
    """f(x) = w₃ W₂ W₁ x, whose gradients are products; each layer sharded, and the rest with it."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, (rows, columns) in SHAPES.items():
            layer = nn.Linear(columns, rows, bias=False, dtype=dtype)
            layer.weight.data = torch.randn(rows, columns, generator=generator).to(dtype)
            setattr(self, name, layer)

    def forward(self, x):
        return self.third(self.second(self.first(x)))


class Bare(Chain):
    """The same with W₂ its own, which FSDP reduces after those of its layers."""

    def __init__(self, dtype=torch.float64):
        super().__init__(dtype)
        weight = self.second.weight
        del self.second
        self.second = weight

    def forward(self, x):
        return self.third(self.first(x) @ self.second.T)


def inputs(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, dtype=torch.float64, generator=generator)


def gradients(x):
    """Of f(x)²/2 for each row, in closed form: (n, entries) by layer."""
    weights = [layer.weight.detach().numpy() for layer in (Chain().first, Chain().second)]
    weights.append(Chain().third.weight.detach().numpy())
    first, second, third = weights
    rows = {name: [] for name in SHAPES}
    for row in x.numpy():
        one = first @ row
        two = second @ one
        error = float((third @ two)[0])
        back = error * third[0]
        rows["third"].append(error * two)
        rows["second"].append(np.outer(back, one).ravel())
        rows["first"].append(np.outer(second.T @ back, row).ravel())
    return {name: np.array(found) for name, found in rows.items()}


def expected(size, layers=tuple(SHAPES), *, under_adam=False):
    """|G|² and tr Σ of an update: the processes' mean gradients are the small batches."""
    rows = np.concatenate([gradients(inputs(2 * PARTS * size))[name] for name in layers], axis=1)
    if under_adam:  # after one step v̂ is the squared gradient
        rows = rows / np.sqrt(np.abs(rows.mean(0)) + EPS)
    means = rows.reshape(size, 2 * PARTS, -1).mean(1)
    whole = means.mean(0)
    small = float((means**2).sum(1).mean())
    return two_batch(small, 2 * PARTS, float(whole @ whole), 2 * PARTS * size)


def step(model, monitor, rank, size, *, factor=1.0, sync=True):
    x = inputs(2 * PARTS * size).reshape(size, PARTS, 2, 3)[rank]
    dtype = next(model.parameters()).dtype
    model.zero_grad()
    for number, part in enumerate(x):
        model.set_requires_gradient_sync(sync or number == PARTS - 1)
        loss = 0.5 * model(part.to(dtype)).square().mean() / PARTS
        (factor * loss).backward()
        monitor.micro_batch(len(part), scale=factor)


def values_of(monitor):
    noise = monitor.noise()
    return [noise.squared_gradient_norm.value, noise.gradient_variance.value]


class OwnReduceScatter:
    """A reduction of the user's own, which counts its calls."""

    def __init__(self):
        self.calls = 0

    def allocate(self, size, *, dtype, device):
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor, input_tensor, group, op, async_op=False):
        self.calls += 1
        reduce = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
        return reduce(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


def measured(rank, size, *, groups=None, dtype=torch.float64, prepare=None, mesh=None, **options):
    """A monitor after two updates, which must agree with each other."""
    model = Chain(dtype)
    policy = MixedPrecisionPolicy(reduce_dtype=options.pop("reduce_dtype", None))
    layers = [model.first, model.third]  # the second by the root
    for module in [*layers, model]:
        fully_shard(module, mp_policy=policy, mesh=mesh)
    for module in [*layers, model] if prepare else []:
        prepare(module)
    adam = None
    if options.pop("under_adam", False):
        adam = torch.optim.Adam(model.parameters(), lr=0.0, eps=EPS)
    monitor = NoiseScaleMonitor(model, groups=groups, preconditioner=adam)
    monitor.attach(model, reduce_scatter=options.pop("reduce_scatter", None))
    if adam is not None:
        step(model, monitor, rank, size, sync=False, **options)
        assert not monitor.update()
        adam.step()
    for _ in range(2):
        step(model, monitor, rank, size, sync=False, **options)
        assert monitor.update()
    return model, monitor


def by_layer(rank, size, *together):
    """Of W₁, W₂ and W₃ by themselves, where some are sharded together and the rest by the root."""
    model = Bare()
    fully_shard([getattr(model, name) for name in together])
    fully_shard(model)
    monitor = NoiseScaleMonitor(model, groups={name: f"{name}*" for name in SHAPES})
    monitor.attach(model)
    step(model, monitor, rank, size, sync=False)
    assert monitor.update()
    return {
        name: [noise.squared_gradient_norm.value, noise.gradient_variance.value]
        for name, noise in monitor.noise_by_group().items()
    }


def as_rank(rank, port, path, size):
    be_rank(rank, port=port, size=size)
    found = {}
    with process_group(device="cpu"):
        model, monitor = measured(rank, size)
        found["float64"] = values_of(monitor)
        step(model, monitor, rank, size, sync=True)
        with pytest.raises(MeasurementError, match=f"{PARTS} reductions in this update"):
            monitor.update()
        step(model, monitor, rank, size, sync=False, factor=64.0)
        monitor.update()
        found["scaled"] = values_of(monitor)
        with pytest.raises(SettingError, match="reduces by _Part already"):
            NoiseScaleMonitor(model).attach(model)

        found["float32"] = values_of(measured(rank, size, dtype=torch.float32)[1])
        found["reduced in half"] = values_of(
            measured(rank, size, dtype=torch.float32, reduce_dtype=torch.float16)[1]
        )
        found["sum"] = values_of(
            measured(
                rank,
                size,
                dtype=torch.float32,
                prepare=lambda module: module.set_force_sum_reduction_for_comms(True),
            )[1]
        )
        # the user divides the sum by less; the gradient is as many times larger
        _, monitor = measured(
            rank, size, prepare=lambda module: module.set_gradient_divide_factor(size / 5)
        )
        found["factor"] = [value / 25 for value in values_of(monitor)]
        with mock.patch.object(fsdp_norms, "squared_norms", wraps=squared_norms) as norms:
            measured(rank, size)
        # of each module in each of two updates: of the input, its sum and the gradient, once
        assert norms.call_count == 2 * 3 * 3
        _, monitor = measured(rank, size, under_adam=True)
        found["under Adam"] = values_of(monitor)
        _, monitor = measured(rank, size, under_adam=True, groups="layer", dtype=torch.float32)
        for name, noise in monitor.noise_by_group().items():
            values = [noise.squared_gradient_norm.value, noise.gradient_variance.value]
            found[f"{name} (under Adam) float32"] = values
        own = OwnReduceScatter()
        found["own"] = values_of(measured(rank, size, reduce_scatter=own)[1])
        assert own.calls == 2 * 3
        _, monitor = measured(rank, size, groups="layer")
        for name, noise in monitor.noise_by_group().items():
            found[name] = [noise.squared_gradient_norm.value, noise.gradient_variance.value]
        for together in (("first",), ("third", "first")):
            for name, values in by_layer(rank, size, *together).items():
                found[f"{name} {together}"] = values
        if size == 4:
            mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
            for dtype in (torch.float64, torch.float32):
                found[f"replicas {dtype}"] = values_of(
                    measured(rank, size, mesh=mesh, dtype=dtype)[1]
                )
            _, monitor = measured(rank, size, mesh=mesh, under_adam=True)
            found["replicas under Adam"] = values_of(monitor)
            _, monitor = measured(
                rank,
                size,
                mesh=mesh,
                groups="layer",
                prepare=lambda module: module.set_gradient_divide_factor(2.0),
            )
            found["replicas factor"] = [value / 4 for value in values_of(monitor)]
        if size == 2:
            refusals()
    (path / f"{rank}.json").write_text(json.dumps(found))


def refusals():
    model = Chain()
    ignored = {model.second.weight}
    fully_shard(model, ignored_params=ignored)
    with pytest.raises(SettingError, match="1 parameter of the monitor that the model does not"):
        NoiseScaleMonitor(model).attach(model)
    model = Chain()
    fully_shard(model)
    model.set_custom_reduce_scatter(OwnReduceScatter())
    with pytest.raises(SettingError, match="reduces by OwnReduceScatter already: give attach"):
        NoiseScaleMonitor(model).attach(model)


def as_tensor_parallel_rank(rank, port, path):
    """Layers sharded by columns and by rows, one replicated, and one that is a plain tensor."""
    be_rank(rank, port=port, size=2)
    with process_group(device="cpu"):
        mesh = init_device_mesh("cpu", (2,))
        model = nn.Sequential(Chain(), nn.Linear(1, 1, dtype=torch.float64))
        nn.init.ones_(model[1].weight)
        nn.init.zeros_(model[1].bias)
        model[1].requires_grad_(False)
        chain = model[0]
        chain.first = nn.Linear(3, 4, bias=False, dtype=torch.float64)
        chain.second = nn.Linear(4, 5, bias=False, dtype=torch.float64)
        chain.third = nn.Linear(5, 1, bias=False, dtype=torch.float64)
        plain = copy.deepcopy(chain)
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(chain, mesh, plan)
        x = inputs(6)
        found = []
        for one in (plain, chain):
            monitor = NoiseScaleMonitor(one)
            sums = []
            for part in x.split(2):
                (0.5 * one(part).square().mean() / 3).backward()
                if one is plain:
                    sums.append(sum(float(p.grad.square().sum()) for p in one.parameters()))
                else:
                    monitor.micro_batch(2)
            if one is plain:
                found.append(two_batch(9 * sums[0], 2, sums[-1], 6))
            else:
                assert monitor.update()
                found.append(values_of(monitor))
        with pytest.raises(SettingError, match="tensor parallelism give the model itself"):
            NoiseScaleMonitor(chain.parameters()).micro_batch(2)
        sharded = Chain()
        fully_shard(sharded)
        sharded(x).mean().backward()
        with pytest.raises(SettingError, match="call attach"):
            NoiseScaleMonitor(sharded).micro_batch(2)
    (path / f"{rank}.json").write_text(json.dumps(found))


def test_a_tensor_parallel_model_counts_each_element_once(tmp_path):
    multiprocessing.spawn(as_tensor_parallel_rank, (free_port(), tmp_path), nprocs=2)
    for rank in range(2):
        plain, parallel = json.loads((tmp_path / f"{rank}.json").read_text())
        assert parallel == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_sharded_processes_are_the_small_batches(size, tmp_path):
    multiprocessing.spawn(as_rank, (free_port(), tmp_path, size), nprocs=size)
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size))
    tolerances = {"float32": 1e-4, "sum": 1e-4, "reduced in half": 2e-2}
    for name, values in first.items():
        layer = name.split(" (")[0]
        layers = (layer,) if layer in SHAPES else tuple(SHAPES)
        rel = 1e-4 if name.endswith("float32") else tolerances.get(name, 1e-9)
        wanted = expected(size, layers, under_adam="under Adam" in name)
        assert values == pytest.approx(wanted, rel=rel), name
    for other in others:
        for name, values in other.items():
            assert values == pytest.approx(first[name], rel=1e-12)


def on_mnist_as_rank(rank, port, path, data_dir):
    be_rank(rank, port=port, size=2)
    with process_group(device="cpu"):
        problem = build_problem(ProblemConfig(dataset="mnist", width=128), data_dir=data_dir)
        model, examples = problem.model, problem.train
        model.load_state_dict(torch.load(path / "params.pt", weights_only=True))
        fully_shard(model)
        monitor = NoiseScaleMonitor(model, memory=1e9)
        monitor.attach(model)
        order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))
        for batch in order[:59_904].split(64):
            part = batch.split(32)[rank]
            model.zero_grad()
            problem.loss(model(examples.inputs[part]), examples.targets[part]).mean().backward()
            monitor.micro_batch(32)
            monitor.update()
    noise = monitor.noise()
    (path / f"{rank}.json").write_text(
        json.dumps(
            {name: [getattr(noise, name).value, getattr(noise, name).stderr] for name in ALL}
        )
    )


def test_it_agrees_with_the_exact_measurement_on_mnist(tmp_path, mnist_dir):
    problem = build_problem(ProblemConfig(dataset="mnist", width=128), data_dir=mnist_dir)
    *_, last = train(problem, TrainConfig(batch_size=128, learning_rate=0.1, max_steps=100))
    problem.model.load_state_dict(last.params)
    torch.save(problem.model.state_dict(), tmp_path / "params.pt")
    truth = measure_noise(problem, population="distribution")
    multiprocessing.spawn(on_mnist_as_rank, (free_port(), tmp_path, mnist_dir), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    value, stderr = first["simple"]
    assert stderr < 0.1 * value
    for name, (value, stderr) in first.items():
        exact = getattr(truth, name)
        assert abs(value - exact.value) < 3 * math.hypot(stderr, exact.stderr), name
