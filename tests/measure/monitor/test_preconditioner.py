"""The monitor under Adam's preconditioner: closed forms of tr(PΣ) and GᵀPG, live and in DDP."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.distributed import process_group
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.statistics.running_noise import RunningNoise, two_batch
from tests.helpers.closed_forms import exact, regression
from tests.helpers.processes import be_rank, free_port

MOMENTS = torch.tensor([[4.0, 0.25, 1e-4]], dtype=torch.float64)  # v of the three weights
EPS, BETA = 1e-3, 0.9


def adam_of(model, *, steps=3):
    """Adam with these second moments after so many steps."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.5, BETA), eps=EPS)
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(steps)),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": MOMENTS.clone(),
        }
    return optimizer


def by_hand(moments, *, steps):
    """P = 1/(√(v/(1 − βᵗ)) + ε)."""
    return 1 / (np.sqrt(np.asarray(moments) / (1 - BETA**steps)) + EPS)


def feed(monitor, model, inputs, targets, order, sizes, *, scale=1.0):
    model.zero_grad()
    for part in torch.tensor(order[: sum(sizes)]).split(sizes):
        losses = 0.5 * (model(inputs[part])[:, 0] - targets[part]) ** 2
        (scale * losses.mean() / len(sizes)).backward()
        monitor.micro_batch(len(part), scale=scale)


@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_it_is_unbiased_over_all_orders_of_the_examples(scale):
    model, inputs, targets, gradients = regression()
    monitor = NoiseScaleMonitor(model, preconditioner=adam_of(model), memory=1e12)
    for order in itertools.permutations(range(5)):
        feed(monitor, model, inputs, targets, order, [2, 2], scale=scale)
        assert monitor.update()
    noise = monitor.noise()
    expected = exact(gradients * np.sqrt(by_hand(MOMENTS[0], steps=3)))
    found = (noise.squared_gradient_norm.value, noise.gradient_variance.value)
    assert found == pytest.approx(expected, rel=1e-9)
    plain = NoiseScaleMonitor(model)
    feed(plain, model, inputs, targets, range(5), [2, 2])
    plain.update()
    assert plain.noise().gradient_variance.value != pytest.approx(found[1], rel=0.1)


def test_it_follows_an_optimizer_that_trains():
    """v, its correction and the gradients by hand, of the weights that Adam really had."""
    model, inputs, targets, _ = regression(8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.5, BETA), eps=EPS)
    monitor = NoiseScaleMonitor(model, preconditioner=optimizer, memory=1e6)
    running, moments = RunningNoise(memory=1e6), np.zeros(3)
    for step in range(6):
        weight = model.weight.detach().numpy()[0].copy()
        rows = inputs.numpy() * (inputs.numpy() @ weight - targets.numpy())[:, None]
        small, big = rows[:4].mean(0), rows.mean(0)
        feed(monitor, model, inputs, targets, range(8), [4, 4])
        assert monitor.update() == (step > 0)  # before it there is no v
        if step:
            metric = by_hand(moments, steps=step)
            found = two_batch(metric @ small**2, 4, metric @ big**2, 8)
            running.add(*found, num_examples=8)
        optimizer.step()
        moments = BETA * moments + (1 - BETA) * big**2
    assert monitor.num_skipped == 1
    for name in ("squared_gradient_norm", "gradient_variance"):
        found, expected = getattr(monitor.noise(), name), getattr(running.noise, name)
        assert (found.value, found.stderr) == pytest.approx((expected.value, expected.stderr))


def test_before_the_first_step_there_is_nothing_and_it_says_so():
    model, inputs, targets, _ = regression()
    optimizer = torch.optim.AdamW(model.parameters())
    monitor = NoiseScaleMonitor(model, preconditioner=optimizer)
    feed(monitor, model, inputs, targets, range(5), [2, 2])
    assert not monitor.update()
    with pytest.raises(MeasurementError, match="after a first step of AdamW; 1 were left out"):
        monitor.noise()
    optimizer.step()
    feed(monitor, model, inputs, targets, range(5), [2, 2])
    assert monitor.update()
    assert math.isfinite(monitor.noise().gradient_variance.value)


def test_losses_handed_over_are_split_under_it_too():
    model, inputs, targets, gradients = regression(4)
    monitor = NoiseScaleMonitor(model, preconditioner=adam_of(model))
    model.zero_grad()
    monitor.backward(0.5 * (model(inputs)[:, 0] - targets) ** 2)
    monitor.update()
    metric = by_hand(MOMENTS[0], steps=3)
    small, big = gradients[:2].mean(0), gradients.mean(0)
    noise = monitor.noise()
    expected = two_batch(metric @ small**2, 2, metric @ big**2, 4)
    assert noise.gradient_variance.value == pytest.approx(expected[1])
    assert noise.squared_gradient_norm.value == pytest.approx(expected[0])


def test_groups_add_up_and_scalars_say_what_they_are_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    whole = NoiseScaleMonitor(model, preconditioner=optimizer)
    layers = NoiseScaleMonitor(model, preconditioner=optimizer, groups="layer")
    for _ in range(3):
        for _ in range(2):
            (model(torch.randn(8, 3)).square().mean() / 2).backward()
            for monitor in (whole, layers):
                monitor.micro_batch(8)
        for monitor in (whole, layers):
            monitor.update()
        optimizer.step()
        optimizer.zero_grad()
    scalars = layers.scalars()
    assert set(whole.scalars()) == {
        "preconditioned_squared_gradient_norm",
        "preconditioned_gradient_variance",
        "preconditioned_simple",
        "preconditioned_simple_low",
        "preconditioned_simple_high",
    }
    parts = [scalars[f"{name}/preconditioned_gradient_variance"] for name in ("0", "2")]
    total = whole.scalars()["preconditioned_gradient_variance"]
    assert sum(parts) == pytest.approx(total, rel=1e-6)
    assert "under RMSprop" in repr(whole)


def test_a_state_is_not_taken_for_one_of_the_other_geometry():
    model, inputs, targets, _ = regression()
    under, plain = NoiseScaleMonitor(model, preconditioner=adam_of(model)), NoiseScaleMonitor(model)
    for monitor in (under, plain):
        feed(monitor, model, inputs, targets, range(5), [2, 2])
        monitor.update()
    again = NoiseScaleMonitor(model, preconditioner=adam_of(model))
    again.load_state_dict(under.state_dict())
    assert again.state_dict() == under.state_dict()
    with pytest.raises(SettingError, match="a monitor without a preconditioner, this one is with"):
        again.load_state_dict(plain.state_dict())
    with pytest.raises(SettingError, match="a monitor with a preconditioner, this one is without"):
        plain.load_state_dict(under.state_dict())
    assert again.state_dict() == under.state_dict()


def test_what_is_no_preconditioner_is_refused():
    model, *_ = regression()
    adam = torch.optim.Adam(model.parameters())
    for wrong, message in (
        (torch.optim.SGD(model.parameters(), lr=0.1), "of SGD.*leave the preconditioner out"),
        (torch.optim.Adam(nn.Linear(3, 1).parameters()), "no parameter of shape"),
        (adam.state_dict(), "give the optimizer itself"),
        ("adam", "give the optimizer itself"),
    ):
        with pytest.raises(SettingError, match=message):
            NoiseScaleMonitor(model, preconditioner=wrong)
    momentum = torch.optim.Rprop(model.parameters())
    (model(torch.ones(1, 3, dtype=torch.float64))).sum().backward()
    momentum.step()
    with pytest.raises(SettingError, match="no second moments"):
        NoiseScaleMonitor(model, preconditioner=momentum)
    monitor = NoiseScaleMonitor(model, preconditioner=adam_of(model))
    monitor.micro_batch(2)
    with pytest.raises(SettingError, match="leave last out"):
        monitor.update(last=torch.ones(()))


def channels_last():
    """A convolution whose weights, and Adam's moments of them, lie in another order in memory."""
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 3, 2, bias=False, dtype=torch.float64).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(conv.parameters(), eps=EPS)
    moments = torch.rand(3, 2, 2, 2, dtype=torch.float64) ** 4
    return conv, optimizer, moments


def as_rank(rank, port, path):
    be_rank(rank, port=port, size=2)
    found = {}
    with process_group(device="cpu"):
        weights, inputs, targets, _ = regression(4)
        model = DistributedDataParallel(weights)
        optimizer = torch.optim.Adam(model.parameters(), betas=(0.5, BETA), eps=EPS)
        monitor = NoiseScaleMonitor(model.parameters(), preconditioner=optimizer)
        monitor.attach(model)
        own = slice(2 * rank, 2 * rank + 2)
        for made in (False, True):
            model.zero_grad()
            (0.5 * (model(inputs[own])[:, 0] - targets[own]) ** 2).mean().backward()
            monitor.micro_batch(2)
            assert monitor.update() == made
            optimizer.state.update(adam_of(weights).state)
        noise = monitor.noise()
        found["regression"] = [noise.squared_gradient_norm.value, noise.gradient_variance.value]

        conv, optimizer, moments = channels_last()
        model = DistributedDataParallel(conv)
        zeros = torch.zeros_like(conv.weight)
        optimizer.state[conv.weight] = {
            "step": torch.tensor(1.0),
            "exp_avg": zeros,
            "exp_avg_sq": zeros.clone().copy_(moments * 1e-3),
        }
        monitor = NoiseScaleMonitor(model.parameters(), preconditioner=optimizer)
        monitor.attach(model)
        images = torch.randn(4, 2, 2, 2, dtype=torch.float64)[2 * rank : 2 * rank + 2]
        model(images).sum((1, 2, 3)).square().mean().backward()
        monitor.micro_batch(2)
        monitor.update()
        noise = monitor.noise()
        found["channels last"] = [noise.squared_gradient_norm.value, noise.gradient_variance.value]
    (path / f"{rank}.json").write_text(json.dumps(found))


@pytest.mark.processes
@pytest.mark.slow
def test_two_processes_are_the_small_batches(tmp_path):
    multiprocessing.spawn(as_rank, (free_port(), tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    *_, gradients = regression(4)
    metric = by_hand(MOMENTS[0], steps=3)
    expected = two_batch(*_squares(gradients, metric))
    assert first["regression"] == pytest.approx(expected, rel=1e-9)

    conv, _, moments = channels_last()
    images = torch.randn(4, 2, 2, 2, dtype=torch.float64)
    summed = images.flatten(1).numpy()  # of one output pixel, whose channels add up
    outputs = conv(images).sum((1, 2, 3)).detach().numpy()
    rows = np.tile((2 * outputs[:, None] * summed)[:, None], (1, 3, 1)).reshape(4, -1)
    metric = 1 / (np.sqrt(moments.flatten().numpy()) + EPS)  # v/(1 − .999) is these
    assert first["channels last"] == pytest.approx(two_batch(*_squares(rows, metric)), rel=1e-9)


def _squares(rows, metric):
    """|g|² under P of two processes of two examples, on average, and of all, with their sizes."""
    halves = [rows[:2].mean(0), rows[2:].mean(0)]
    small = float(np.mean([metric @ half**2 for half in halves]))
    return small, 2, float(metric @ rows.mean(0) ** 2), 4


def test_gradients_of_half_precision_keep_their_norms():
    model = nn.Linear(3, 1, bias=False).to(torch.bfloat16)
    optimizer = torch.optim.Adam(model.parameters())
    model.weight.grad = torch.full((1, 3), 2.0, dtype=torch.bfloat16)
    optimizer.state[model.weight] = {
        "step": torch.tensor(1.0),
        "exp_avg_sq": torch.full((1, 3), 1e-15, dtype=torch.bfloat16),
    }
    monitor = NoiseScaleMonitor(model, preconditioner=optimizer)
    monitor.micro_batch(1)
    second = float(torch.tensor(1e-15, dtype=torch.bfloat16)) / (1 - 0.999)
    expected = 3 * 4.0 / (math.sqrt(second) + 1e-8)
    assert float(monitor._first) == pytest.approx(expected, rel=1e-5)
