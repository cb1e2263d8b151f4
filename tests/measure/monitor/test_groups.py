"""Noise scales of groups of layers: each as by a monitor of its own, all adding up to the whole."""

import json

import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.monitor.noise_monitor import NoiseScaleMonitor

ESTIMATES = ("squared_gradient_norm", "gradient_variance", "simple")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.attn(self.norm(x))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 1, bias=False)
        self.tied = self.blocks[0].attn  # counts once, in the group of its first name

    def forward(self, x):
        return self.head(self.blocks(x))


def train(model, *monitors, updates=3):
    generator = torch.Generator().manual_seed(1)
    for _ in range(updates):
        model.zero_grad()
        for _ in range(2):
            x = torch.randn(4, 4, dtype=torch.float64, generator=generator)
            (model(x).square().mean() / 2).backward()
            for monitor in monitors:
                monitor.micro_batch(4)
        for monitor in monitors:
            monitor.update()


def model_of(seed=0):
    torch.manual_seed(seed)
    return Model().double()


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ("type", {"LayerNorm": ["*.norm.*"], "Linear": ["*.attn.*", "head.*"]}),
        (
            "layer",
            {
                **{f"blocks.{number}.norm": [f"blocks.{number}.norm.*"] for number in range(2)},
                **{f"blocks.{number}.attn": [f"blocks.{number}.attn.*"] for number in range(2)},
                "head": ["head.*"],
            },
        ),
        (
            {"attention": "*.attn.*", "scales": ["*.norm.weight", "nothing.*"]},
            {"attention": ["*.attn.*"], "scales": ["*.norm.weight"], "other": ["*.bias", "head.*"]},
        ),
    ],
    ids=["type", "layer", "patterns"],
)
def test_every_group_is_measured_as_if_by_a_monitor_of_its_own(groups, expected):
    from fnmatch import fnmatch

    model = model_of()
    named = dict(model.named_parameters())
    chosen, taken = {}, set()
    for group, patterns in expected.items():
        names = [n for n in named if any(fnmatch(n, p) for p in patterns) and n not in taken]
        chosen[group] = [named[name] for name in names]
        taken |= set(names)
    assert taken == set(named)
    whole, grouped = NoiseScaleMonitor(model), NoiseScaleMonitor(model, groups=groups)
    alone = {name: NoiseScaleMonitor(parameters) for name, parameters in chosen.items()}
    train(model, whole, grouped, *alone.values())
    found = grouped.noise_by_group()
    assert found.keys() == expected.keys()
    for name, monitor in alone.items():
        for quantity in ESTIMATES:
            one, other = getattr(found[name], quantity), getattr(monitor.noise(), quantity)
            assert (one.value, one.stderr) == pytest.approx(
                (other.value, other.stderr), rel=1e-9, nan_ok=True
            )
    for quantity in ESTIMATES[:2]:
        total = sum(getattr(noise, quantity).value for noise in found.values())
        assert total == pytest.approx(getattr(whole.noise(), quantity).value, rel=1e-9)
        assert total == pytest.approx(getattr(grouped.noise(), quantity).value, rel=1e-9)


def test_the_state_holds_the_groups_and_one_without_them_begins_them_anew():
    model = model_of()
    half, whole, plain = (
        NoiseScaleMonitor(model, groups="type"),
        NoiseScaleMonitor(model, groups="type"),
        NoiseScaleMonitor(model),
    )
    train(model, half, whole, plain)
    again = NoiseScaleMonitor(model, groups="type")
    again.load_state_dict(json.loads(json.dumps(half.state_dict())))
    train(model, again, whole)
    assert again.state_dict() == whole.state_dict()
    later = NoiseScaleMonitor(model, groups="type")
    later.load_state_dict(plain.state_dict())
    assert later.noise_by_group() == {}
    assert later.num_updates == 3
    train(model, later, updates=1)
    assert later.noise_by_group()["Linear"].simple.num_samples == 1
    plain.load_state_dict(half.state_dict())  # and the other way about
    with pytest.raises(SettingError, match=r"groups LayerNorm, Linear, the monitor of blocks"):
        NoiseScaleMonitor(model, groups="layer").load_state_dict(half.state_dict())


def test_scalars_name_the_groups():
    model = model_of()
    monitor = NoiseScaleMonitor(model, groups={"attention": "*.attn.*"})
    train(model, monitor)
    scalars = monitor.scalars()
    groups = monitor.noise_by_group()
    for name in ("attention", "other"):
        found = scalars[f"{name}/gradient_variance"]
        assert found == groups[name].gradient_variance.value
    assert repr(monitor).startswith("NoiseScaleMonitor(9 parameter tensors, 2 groups")


def test_wrong_groups_are_refused():
    model = model_of()
    with pytest.raises(SettingError, match="give the model itself"):
        NoiseScaleMonitor(model.parameters(), groups="type")
    with pytest.raises(SettingError, match="groups 'kind': give"):
        NoiseScaleMonitor(model, groups="kind")
    with pytest.raises(SettingError, match="is in 2 groups, a and b"):
        NoiseScaleMonitor(model, groups={"a": "*.attn.*", "b": "blocks.0.*"})
    with pytest.raises(SettingError, match="no parameter matches the patterns of mlp"):
        NoiseScaleMonitor(model, groups={"attention": "*.attn.*", "mlp": "*.mlp.*"})
    with pytest.raises(SettingError, match="no groups: give them"):
        NoiseScaleMonitor(model).noise_by_group()
    with pytest.raises(MeasurementError, match="no noise scale yet"):
        NoiseScaleMonitor(model, groups="type").noise_by_group()
