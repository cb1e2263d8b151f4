import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from noisescale.errors import RunFolderError, SettingError
from noisescale.problems.config import ProblemConfig
from noisescale.problems.models import gpt, mlp
from noisescale.problems.problem import Examples, Problem
from noisescale.studies.jobs.folder import claim
from noisescale.training.config import AdaptiveConfig, TrainConfig, stable_sharpness
from noisescale.training.records.tables import read_noise, read_sharpness
from noisescale.training.run import RunOptions, run_training
from noisescale.training.tracking.noise import NoiseTracking
from noisescale.training.trainer import train
from noisescale.training.updates.muon import muon_names
from noisescale.training.updates.rates import num_updates, rate_at
from tests.helpers.problems import classification

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has no Muon")
OPTIMIZERS = {
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
    "adam": {"optimizer": "adam", "beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3},
    "adamw": {"optimizer": "adamw", "beta2": 0.95, "weight_decay": 0.1},
    "rmsprop": {"optimizer": "rmsprop", "weight_decay": 0.05},
    "rmsprop with options": {"optimizer": "rmsprop", "beta2": 0.9, "epsilon": 1e-2},
    "muon": {"optimizer": "muon", "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95},
}
SETTINGS = [pytest.param(kind, marks=[needs_muon] if kind == "muon" else []) for kind in OPTIMIZERS]
SCHEDULES = {
    "warm-up": {"warmup": 3},
    "cosine": {"lr_schedule": "cosine", "warmup": 0.2},
    "wsd": {"lr_schedule": "wsd", "decay_share": 0.3},
}


def deep():
    """Two hidden layers, of which Muon has a matrix beside the first one's."""
    torch.manual_seed(1)
    return classification(mlp((6,), 3, width=5, depth=2))


def torch_optimizers(model, kind):
    """The optimizers of torch that a setting means, written out once more."""
    params, rate = list(model.parameters()), 0.02
    if kind == "nesterov":
        return [torch.optim.SGD(params, rate, momentum=0.8, nesterov=True, weight_decay=0.05)]
    if kind == "adam":
        return [torch.optim.Adam(params, rate, betas=(0.8, 0.9), eps=1e-3)]
    if kind == "adamw":
        return [torch.optim.AdamW(params, rate, betas=(0.9, 0.95), weight_decay=0.1)]
    if kind == "rmsprop":
        return [torch.optim.RMSprop(params, rate, alpha=0.99, eps=1e-8, weight_decay=0.05)]
    if kind == "rmsprop with options":
        return [torch.optim.RMSprop(params, rate, alpha=0.9, eps=1e-2)]
    first, first_bias, second, second_bias, last, last_bias = params
    rest = [first_bias, second_bias, last, last_bias]
    return [
        torch.optim.Muon(
            [first, second], rate, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, rate, betas=(0.9, 0.95), weight_decay=0.1),
    ]


def by_torch(problem, kind, *, rates, batch_size=8, seed=0):
    """The parameters after updates at these rates, by a plain loop."""
    model = copy.deepcopy(problem.model)
    optimizers = torch_optimizers(model, kind)
    order, count = torch.Generator().manual_seed(seed), problem.train.num_examples
    batches = []
    while len(batches) < len(rates):
        batches += torch.randperm(count, generator=order).split(batch_size)
    for batch, rate in zip(batches, rates, strict=False):
        model.zero_grad()
        outputs = model(problem.train.inputs[batch])
        nn.functional.cross_entropy(outputs, problem.train.targets[batch]).backward()
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    return dict(model.named_parameters())


def assert_same(actual, expected):
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_optimizer_is_that_of_torch(kind):
    problem = deep()
    config = TrainConfig(batch_size=8, learning_rate=0.02, max_steps=20, **OPTIMIZERS[kind])
    *_, end = train(problem, config)
    assert_same(end.params, by_torch(problem, kind, rates=20 * [0.02]))


def test_the_rates_of_ten_updates():
    def rates(**settings):
        config = TrainConfig(learning_rate=1.0, **settings)
        return [rate_at(config, step, num_steps=10) for step in range(11)]

    assert rates(warmup=4) == [0.25, 0.5, 0.75] + 8 * [1.0]
    assert rates(warmup=0.4) == rates(warmup=4)
    halves = pytest.approx([1, 0.975528, 0.904508, 0.793893, 0.654508, 0.5], abs=1e-6)
    assert rates(lr_schedule="cosine")[:6] == halves
    eight = rates(lr_schedule="cosine", warmup=2)
    assert eight[:3] == [0.5, 1, 1]
    assert eight[6] == pytest.approx(0.5)  # half of the eight after the warm-up lie behind
    assert eight[9] == eight[10] == pytest.approx((1 - 0.9238795) / 2)  # cos(7π/8)
    wsd = pytest.approx([*(8 * [1.0]), 2 / 3, 1 / 3, 1 / 3])
    assert rates(lr_schedule="wsd", decay_share=0.3) == wsd
    assert rates(lr_schedule="wsd", decay_share=1)[5] == 0.5


def test_the_updates_of_a_run_are_counted_with_its_short_batches():
    config = TrainConfig(epochs=3)
    assert num_updates(config, batch_size=8, num_examples=50) == 21
    assert num_updates(replace(config, max_steps=9), batch_size=8, num_examples=50) == 9


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", ["plain", *SETTINGS])
def test_updates_have_the_rate_of_the_schedule(kind, schedule):
    problem = deep()
    settings = {"batch_size": 8, "learning_rate": 0.3 if kind == "plain" else 0.02}
    config = TrainConfig(**settings, epochs=2, **OPTIMIZERS.get(kind, {}), **SCHEDULES[schedule])
    *_, end = train(problem, config)
    assert end.step == 14  # 7 an epoch
    rates = [rate_at(config, step, num_steps=14) for step in range(14)]
    assert len(set(rates)) >= 3
    if kind == "plain":
        model = copy.deepcopy(problem.model)
        order = torch.Generator().manual_seed(0)
        batches = [b for _ in range(2) for b in torch.randperm(50, generator=order).split(8)]
        for batch, rate in zip(batches, rates, strict=True):
            outputs = model(problem.train.inputs[batch])
            loss = nn.functional.cross_entropy(outputs, problem.train.targets[batch])
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            with torch.no_grad():
                for param, gradient in zip(model.parameters(), gradients, strict=True):
                    param -= rate * gradient
        assert_same(end.params, dict(model.named_parameters()))
    else:
        assert_same(end.params, by_torch(problem, kind, rates=rates))


@pytest.mark.parametrize("kind", ["plain", "adamw", pytest.param("muon", marks=needs_muon)])
def test_a_run_goes_on_bit_for_bit_from_anywhere_in_its_schedule(kind):
    problem = deep()
    config = TrainConfig(
        batch_size=20,
        learning_rate=0.02,
        epochs=3,
        warmup=2,
        lr_schedule="cosine",
        **OPTIMIZERS.get(kind, {}),
    )
    *earlier, end = train(problem, config, checkpoint_steps=range(9))
    for start in earlier:
        assert start.learning_rate == rate_at(config, start.step, num_steps=9)
        *_, resumed = train(problem, config, start=start)
        assert resumed.learning_rate == end.learning_rate
        for name, value in end.params.items():
            assert torch.equal(resumed.params[name], value)


def test_tables_hold_the_rate_in_force_and_limits_go_by_it(tmp_path):
    problem = ProblemConfig(dataset="digits", width=4, num_train=64)
    config = TrainConfig(batch_size=8, learning_rate=0.1, epochs=1, warmup=4, lr_schedule="cosine")
    noise = NoiseTracking(every=2, num_examples=16)
    options = RunOptions(noise=noise, measure_sharpness_every=2, sharpness_examples=16)
    run_training(problem, config, tmp_path, replace(options, pictures=False))
    expected = [rate_at(config, step, num_steps=8) for step in (0, 2, 4, 6, 8)]
    assert expected[:2] == [0.025, pytest.approx(0.075)]
    assert [row["learning_rate"] for row in read_noise(tmp_path)] == pytest.approx(expected)
    rows = read_sharpness(tmp_path)
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)
    assert [row["stable_sharpness"] for row in rows] == pytest.approx([2 / r for r in expected])


def test_muon_takes_the_hidden_matrices():
    assert muon_names(mlp((6,), 3, width=5, depth=2)) == {"1.weight", "3.weight"}
    of_gpt = muon_names(gpt(7, context=4, width=8, depth=2, heads=2))
    assert of_gpt == {
        f"blocks.{block}.{part}.weight" for block in (0, 1) for part in ("qkv", "out", "up", "down")
    }
    tied = gpt(7, context=4, width=8, depth=1, heads=2, tied=True)
    assert "token.weight" not in muon_names(tied)
    assert muon_names(nn.TransformerEncoderLayer(8, 2, 16)) == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
    }


def test_muon_says_what_it_cannot_do(monkeypatch):
    config = TrainConfig(optimizer="muon")
    shallow = Problem(
        model=nn.Linear(2, 2),
        loss=lambda outputs, targets: outputs.sum(1),
        train=Examples(torch.ones(40, 2), torch.ones(40)),
    )
    if hasattr(torch.optim, "Muon"):
        with pytest.raises(SettingError, match="no linear layer but the last one"):
            list(train(shallow, config))
        monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(SettingError, match=r"has no torch.optim.Muon; install torch 2.9"):
        list(train(deep(), config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nesterov": True}, "give sgd a momentum"),
        ({"beta1": 0.9}, "beta1 0.9 with sgd: only adam, adamw, muon take one"),
        ({"beta1": 0.9, "optimizer": "rmsprop"}, "beta1 0.9 with rmsprop"),
        ({"beta2": 1.0, "optimizer": "adam"}, "from 0 to below 1, such as 0.999"),
        ({"epsilon": -1.0, "optimizer": "adam"}, "epsilon -1.0: give a number from 0"),
        ({"momentum": 0.9, "optimizer": "muon"}, "only sgd takes a momentum"),
        ({"warmup": 1.5}, "whole number of updates"),
        ({"warmup": float("nan")}, "whole number of updates"),
        ({"warmup": 1e300}, "whole number of updates"),
        ({"lr_schedule": "linear"}, "choose one of constant, cosine, wsd"),
        ({"decay_share": 0.5}, "only wsd takes one"),
        ({"decay_share": 0, "lr_schedule": "wsd"}, "above 0, 1 at most"),
        ({"warmup": 5, "batch_size": "adaptive"}, "with an adaptive batch size"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        TrainConfig(**settings)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(SettingError, match="warm-up 7: the run has 7 updates"):
        list(train(deep(), TrainConfig(batch_size=8, epochs=1, warmup=7)))


def test_there_is_no_limit_of_stability_for_a_momentum_of_nesterov():
    config = TrainConfig(momentum=0.9, learning_rate=0.1)
    assert stable_sharpness(config) == pytest.approx(38)
    assert stable_sharpness(replace(config, nesterov=True)) is None


def test_the_rate_at_a_point_takes_the_place_of_the_schedule():
    config = TrainConfig(warmup=5, lr_schedule="wsd", decay_share=0.5, learning_rate=0.1)
    assert config.at_rate(0.05) == TrainConfig(learning_rate=0.05)
    scaled = TrainConfig(batch_size="adaptive", adaptive=AdaptiveConfig(lr_scaling="sqrt"))
    assert scaled.at_rate(0.05).adaptive == AdaptiveConfig()


def test_folders_of_earlier_releases_are_known_again_and_others_refused(tmp_path):
    """Those hold three settings of the optimizer; later ones are stored where they are given."""
    plain = {"optimizer": "adam", "momentum": 0.0, "weight_decay": 0.0}
    assert TrainConfig(optimizer="adam").optimizer_settings() == plain
    other = TrainConfig(optimizer="adam", beta2=0.95).optimizer_settings()
    assert other == plain | {"beta2": 0.95}
    for name, first, second in (("a", plain, other), ("b", other, plain)):
        claim(tmp_path / name, {"training": first}, settings="study.json")
        claim(tmp_path / name, {"training": first}, settings="study.json")
        with pytest.raises(RunFolderError, match=r"training.beta2"):
            claim(tmp_path / name, {"training": second}, settings="study.json")
