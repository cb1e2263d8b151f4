"""Norm layers' per-example gradients in a running step, against a loop over the examples."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor
from noisescale.measure.monitor.norm_layers.monitor import NormLayerMonitor


class LlamaRMSNorm(nn.Module):
    """As in transformers: no base class that could be known by."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)
        self.variance_epsilon = eps

    def forward(self, x):
        return (
            self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )


class Net(nn.Module):
    """Positions, a norm layer used twice, one followed by an activation in place."""

    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.first, self.twice, self.last = norm(6), norm(6), norm(6)
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 1)
        for layer in (self.first, self.twice, self.last):
            nn.init.uniform_(layer.weight, -1.0, 2.0)  # some of them near zero
            if getattr(layer, "bias", None) is not None:
                nn.init.normal_(layer.bias)

    def forward(self, x):  # (B, T, 6)
        x = torch.relu_(self.first(self.mix(x)))
        x = self.twice(x + self.twice(torch.tanh(self.mix(x))))
        return self.head(self.last(x).mean(1))[:, 0]  # (B,)


def per_example(model, x, parameters, shift=0.0):
    """Gradients of each example's own loss (B, P), by a loop."""
    rows = []
    for one in x.split(1):
        loss = (model(one) + shift).square().sum()
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows).detach().numpy()


def unbiased(gradients):
    """|G|² and tr Σ of fresh examples from n gradients."""
    n, mean = len(gradients), gradients.mean(0)
    trace = ((gradients - mean) ** 2).sum() / (n - 1)
    return mean @ mean - trace / n, trace


def of_norms(model):
    return [p for name, p in model.named_parameters() if name[:5] in ("first", "twice", "last.")]


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm, LlamaRMSNorm])
@pytest.mark.parametrize("scale", [1.0, 128.0])
def test_one_backward_pass_gives_what_a_loop_over_examples_does(norm, scale):
    torch.manual_seed(0)
    model, x = Net(norm).double(), torch.randn(7, 3, 6, dtype=torch.float64)
    monitor = NormLayerMonitor(model)
    assert monitor.layers == ("first", "twice", "last")
    (scale * model(x).square().mean()).backward()
    monitor.micro_batch(7, scale=scale)
    assert monitor.update()
    noise = monitor.norm_layer_noise()
    expected = unbiased(per_example(model, x, of_norms(model)))
    found = noise.squared_gradient_norm.value, noise.gradient_variance.value
    assert found == pytest.approx(expected, rel=1e-9)


def test_accumulated_batches_are_one():
    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(6, 3, 6, dtype=torch.float64)
    monitor = NormLayerMonitor(model)
    for part in x.split(2):
        (model(part).square().mean() / 3).backward()
        monitor.micro_batch(2)
    monitor.update()
    noise = monitor.norm_layer_noise()
    expected = unbiased(per_example(model, x, of_norms(model)))
    found = noise.squared_gradient_norm.value, noise.gradient_variance.value
    assert found == pytest.approx(expected, rel=1e-9)


def test_the_multiple_of_all_parameters_is_that_of_sums_over_split_updates():
    """Fewer parameters than updates, and each of the two by a NoiseScaleMonitor of its own."""
    torch.manual_seed(0)
    model = Net().double()
    generator = torch.Generator().manual_seed(1)
    monitor = NormLayerMonitor(model, memory=1e12)
    whole = NoiseScaleMonitor(model, memory=1e12)
    sums = np.zeros(4)
    for step in range(12):
        x = torch.randn(32, 3, 6, dtype=torch.float64, generator=generator)
        model.zero_grad()
        monitor.backward((model(x) + 5).square(), every=3)
        gradient = [p.grad.clone() for p in model.parameters()]
        assert monitor.update()
        model.zero_grad()
        (model(x) + 5).square().mean().backward()
        for found, parameter in zip(gradient, model.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-12, atol=1e-13)
        if step % 3 == 0:
            model.zero_grad()
            whole.backward((model(x) + 5).square())
            whole.update()
            sums[:2] += unbiased(per_example(model, x, of_norms(model), 5))
    of_all = whole.noise()
    norms = sums[0] / 4, sums[1] / 4
    expected = (of_all.gradient_variance.value / norms[1]) / (
        of_all.squared_gradient_norm.value / norms[0]
    )
    assert monitor.factor().num_samples == 4
    assert monitor.factor().value == pytest.approx(expected, rel=1e-9)
    simple, of_layers = monitor.simple(), monitor.norm_layer_noise().simple
    assert simple.value == pytest.approx(expected * of_layers.value, rel=1e-9)
    assert simple.low < simple.value < simple.high
    again = NormLayerMonitor(model)
    again.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert again.simple() == simple
    assert monitor.scalars()["simple"] == simple.value


@pytest.mark.statistical
@pytest.mark.slow
def test_it_finds_the_noise_scale_of_all_parameters():
    """Truth: of 1,000 per-example gradients at one point; within 4 standard errors."""
    torch.manual_seed(0)
    model = Net().double()
    x = torch.randn(1000, 3, 6, dtype=torch.float64)
    y = 2 + 16 * torch.randn(1000, dtype=torch.float64)
    gradients = torch.stack(
        [
            torch.cat(
                [
                    gradient.flatten()
                    for gradient in torch.autograd.grad(
                        (model(x[i : i + 1])[0] - y[i]).square(), list(model.parameters())
                    )
                ]
            )
            for i in range(1000)
        ]
    )
    norm, trace = unbiased(gradients.numpy())
    monitor = NormLayerMonitor(model, memory=1e12)
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        rows = torch.randperm(1000, generator=generator)[:32]
        model.zero_grad()
        monitor.backward((model(x[rows]) - y[rows]).square(), every=2)
        monitor.update()
    simple = monitor.simple()
    assert abs(simple.value - trace / norm) < 4 * simple.stderr
    assert simple.stderr < 0.5 * simple.value


def test_a_backward_pass_of_which_nobody_took_note_does_not_count():
    """As of a batch that was given up and is tried again."""
    torch.manual_seed(0)
    model, x = Net().double(), torch.randn(7, 3, 6, dtype=torch.float64)
    monitor = NormLayerMonitor(model)
    model(torch.flip(x, [0]) + 1).square().mean().backward()
    model.zero_grad()
    model(x).square().mean().backward()
    monitor.micro_batch(7)
    monitor.update()
    expected = unbiased(per_example(model, x, of_norms(model)))
    noise = monitor.norm_layer_noise()
    found = noise.squared_gradient_norm.value, noise.gradient_variance.value
    assert found == pytest.approx(expected, rel=1e-9)


def test_without_split_updates_the_norm_layers_alone_are_known():
    torch.manual_seed(0)
    model = Net().double()
    monitor = NormLayerMonitor(model)
    for _ in range(5):
        model.zero_grad()
        model(torch.randn(8, 3, 6, dtype=torch.float64)).square().mean().backward()
        monitor.micro_batch(8)
        monitor.update()
    assert math.isnan(monitor.simple().value)
    assert math.isfinite(monitor.norm_layer_noise().gradient_variance.stderr)


class Renamed(nn.Module):
    """What is called so and does something else."""

    def __init__(self):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(6)), 1e-6

    def forward(self, x):
        return self.weight * x


def test_what_it_cannot_measure_is_refused():
    with pytest.raises(SettingError, match=r"no nn.LayerNorm or RMSNorm"):
        NormLayerMonitor(nn.Linear(2, 2))
    torch.manual_seed(0)
    model = Net()
    monitor = NormLayerMonitor(model)
    with pytest.raises(MeasurementError, match="before a backward pass"):
        monitor.update()
    with pytest.raises(MeasurementError, match="no norm layer has taken part"):
        monitor.micro_batch(3)
    with pytest.raises(MeasurementError, match="no noise scale yet"):
        monitor.norm_layer_noise()
    model(torch.randn(4, 3, 6)).mean().backward()
    with pytest.raises(SettingError, match="first saw 4 where the batch has 3 examples"):
        monitor.micro_batch(3)
    with pytest.raises(SettingError, match="give one loss per example"):
        monitor.backward(torch.ones(()))
    model.zero_grad()
    trained = NormLayerMonitor(model)
    trained.backward(model(torch.randn(4, 3, 6)))
    with pytest.raises(SettingError, match=r"a second backward\(\) before update"):
        trained.backward(model(torch.randn(4, 3, 6)))
    assert trained.update()
    state = trained.state_dict()
    for other in ({"running": {}}, state | {"pairs": [["x", 1, 2, 3]]}):
        with pytest.raises(SettingError, match="a state of something else"):
            monitor.load_state_dict(other)
    with pytest.raises(MeasurementError, match="no noise scale yet"):
        monitor.norm_layer_noise()  # it stays as it was
    fake = type("MyRMSNorm", (Renamed,), {})()
    model = nn.Sequential(nn.Linear(6, 6), fake, nn.Linear(6, 1))
    monitor = NormLayerMonitor(model)
    model(torch.randn(4, 6)).mean().backward()
    with pytest.raises(SettingError, match=r"1: the gradients of its examples do not add up"):
        monitor.micro_batch(4)


def test_one_example_is_left_out():
    torch.manual_seed(0)
    model = Net()
    monitor = NormLayerMonitor(model)
    model(torch.randn(1, 3, 6)).mean().backward()
    monitor.micro_batch(1)
    assert not monitor.update()
    assert monitor.num_skipped == 1


def test_it_leaves_no_hook_behind_once_it_is_removed():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    monitor = NormLayerMonitor(model)
    monitor.backward(model(torch.randn(8, 3))[:, 0].square())
    monitor.update()
    norm = model[1]
    assert norm._forward_hooks
    assert model._forward_pre_hooks
    monitor.remove()
    assert not norm._forward_hooks
    assert not model._forward_pre_hooks
    assert monitor.norm_layer_noise().gradient_variance.value > 0
    with pytest.raises(SettingError, match=r"after remove\(\): make another one"):
        monitor.backward(model(torch.randn(8, 3))[:, 0].square())
    other = NormLayerMonitor(model)
    other.load_state_dict(monitor.state_dict())
    assert other.state_dict() == monitor.state_dict()


def test_a_scaler_scales_and_steps():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 3, 6)
    expected = torch.autograd.grad(model(x).square().mean(), model.mix.weight)[0]
    scaler = torch.amp.GradScaler("cpu")
    monitor = NormLayerMonitor(model)
    monitor.backward(model(x).square(), scaler=scaler)
    torch.testing.assert_close(model.mix.weight.grad / scaler.get_scale(), expected)
    assert monitor.update()
    before = model.mix.weight.detach().clone()
    scaler.step(torch.optim.SGD(model.parameters(), lr=0.1))
    torch.testing.assert_close(model.mix.weight.detach(), before - 0.1 * expected)


def test_an_overflow_of_other_layers_is_left_out():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(4, 3, 6)
    monitor = NormLayerMonitor(model)
    hook = model.head.weight.register_hook(lambda grad: grad * math.inf)
    monitor.backward(model(x).square())
    assert not monitor.update()
    hook.remove()
    for _ in range(3):
        model.zero_grad()
        monitor.backward(model(torch.randn(4, 3, 6)).square())
        assert monitor.update()
    assert monitor.num_skipped == 1
    assert "nan" not in str(monitor.state_dict())
