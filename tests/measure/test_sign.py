"""The noise scale of sign descent, measured of models."""

import numpy as np
import pytest
import torch
from torch import nn

from noisescale import Examples, NoiseOptions, Problem, measure_noise
from noisescale.errors import MeasurementError, SettingError
from tests.helpers.small_networks import gradients_of, network
from tests.helpers.weighted import count, language_problem


@pytest.mark.parametrize("engine", ["hooks", "vmap", "loop"])
@pytest.mark.parametrize("kind", ["mlp", "cnn", "gpt"])
def test_of_all_examples_it_is_that_of_a_plain_loop(kind, engine):
    problem = network(kind)
    rows = gradients_of(problem, range(problem.train.num_examples)).numpy()  # (N, P)
    found = measure_noise(problem, engine=engine, sign=True).sign
    norm, noise = np.abs(rows.mean(0)).sum(), rows.std(0).sum()
    assert found.gradient_norm.value == pytest.approx(norm, rel=1e-9)
    assert found.noise_norm.value == pytest.approx(noise, rel=1e-9)
    assert found.simple.value == pytest.approx((noise / norm) ** 2, rel=1e-9)


@pytest.mark.parametrize("engine", ["hooks", "vmap", "loop"])
def test_of_a_weighted_mean_it_is_that_of_the_examples_influences(engine):
    """d_i = r_i (g_i − G) in a plain loop over sequences whose loss is a mean over all tokens."""
    problem = language_problem()
    counts = count(problem.train.targets).double().numpy()
    relative = (counts / counts.mean())[:, None]
    rows = gradients_of(problem, range(24)).numpy()  # (N, P)
    mean = (relative * rows).mean(0)
    noise = np.sqrt((relative**2 * (rows - mean) ** 2).mean(0)).sum()
    found = measure_noise(problem, engine=engine, sign=True).sign
    assert found.gradient_norm.value == pytest.approx(np.abs(mean).sum(), rel=1e-9)
    assert found.noise_norm.value == pytest.approx(noise, rel=1e-9)
    part = measure_noise(problem, num_examples=20, engine=engine, sign=True)
    assert part.sign.noise_norm.low < noise < part.sign.noise_norm.high


def test_a_subset_has_errors_and_holds_the_whole():
    problem = network("mlp")
    whole = measure_noise(problem, sign=True).sign.simple.value
    part = measure_noise(problem, num_examples=24, sign=True, seed=1)
    assert part.sign.simple.low < whole < part.sign.simple.high
    assert part.sign.noise_norm.stderr > 0
    record = part.to_dict()["sign"]
    assert set(record) == {"gradient_norm", "largest_gradient_norm", "noise_norm", "simple"}
    assert record["simple"]["low"] == part.sign.simple.low
    assert "B_ℓ1" in repr(part)
    assert measure_noise(problem).to_dict()["sign"] is None


def test_the_other_numbers_are_as_without_it():
    problem = network("mlp")
    options = NoiseOptions(num_examples=24)
    plain = measure_noise(problem, options=options, seed=1).to_dict()
    with_sign = measure_noise(problem, options=options, sign=True, seed=1).to_dict()
    assert {**with_sign, "sign": None} == plain


def test_what_has_no_such_scale_is_refused():
    inputs, targets = torch.randn(20, 3), torch.randn(20, 1)

    def loss(outputs, targets):
        return (outputs - targets).square().sum(1)

    model = nn.Linear(3, 1)
    weighted = Problem(
        model=model,
        loss=loss,
        train=Examples(inputs, targets),
        weights=lambda targets: (targets[:, 0] > 0).float(),
    )
    with pytest.raises(SettingError, match="examples whose weight is above zero: the noise of the"):
        measure_noise(weighted, sign=True)
    few = Problem(model=model, loss=loss, train=Examples(inputs[:10], targets[:10]))
    with pytest.raises(SettingError, match="10 examples: the noise of the sign takes 16 or more"):
        measure_noise(few, sign=True)


def test_sums_that_are_not_the_mean_gradients_are_noticed(monkeypatch):
    from noisescale.measure.gradients.hooks import LayerEngine

    sums = LayerEngine.coordinate_sums
    monkeypatch.setattr(
        LayerEngine,
        "coordinate_sums",
        lambda engine, chunk: ([2 * one for one in sums(engine, chunk)[0]], sums(engine, chunk)[1]),
    )
    with pytest.raises(MeasurementError, match="not those of the pass before"):
        measure_noise(network("mlp"), sign=True)
