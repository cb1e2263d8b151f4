"""Two-batch estimates against enumeration, and their running averages against explicit sums."""

import itertools
import json
import math

import numpy as np
import pytest

from noisescale.errors import SettingError
from noisescale.statistics.running_noise import RunningNoise, two_batch
from tests.helpers.closed_forms import exact


@pytest.mark.parametrize("small", [1, 2, 3])
def test_the_estimates_are_unbiased_over_all_orders_of_the_examples(small):
    gradients = np.random.default_rng(0).normal(0.3, 1, (5, 3))
    found = []
    for order in itertools.permutations(range(5)):
        part, whole = gradients[list(order[:small])].mean(0), gradients[list(order[:4])].mean(0)
        found.append(two_batch(part @ part, small, whole @ whole, 4))
    np.testing.assert_allclose(np.mean(found, 0), exact(gradients), rtol=1e-12)


def test_examples_used_again_are_a_population_of_their_own():
    """Over all batches of N examples, |G_N|² − tr Σ/N: below the data set's by as much."""
    gradients = np.random.default_rng(0).normal(0.3, 1, (5, 3))
    running = RunningNoise()
    for order in itertools.permutations(range(5), 3):
        part, whole = gradients[order[0]], gradients[list(order)].mean(0)
        running.add(*two_batch(part @ part, 1, whole @ whole, 3), num_examples=3)
    mean = gradients.mean(0)
    variance = ((gradients - mean) ** 2).sum() / 4
    noise = running.noise
    assert noise.population == "training"
    assert noise.gradient_variance.value == pytest.approx(variance)
    assert noise.squared_gradient_norm.value == pytest.approx(mean @ mean - variance / 5)


@pytest.mark.parametrize(("small", "big"), [(4, 4), (5, 4), (0, 4)])
def test_the_batches_must_differ(small, big):
    with pytest.raises(SettingError, match="smaller one first"):
        two_batch(1.0, small, 1.0, big)


def averaged(updates, memory):
    running = RunningNoise(memory=memory)
    for norm, variance, count in updates:
        running.add(norm, variance, num_examples=count)
    return running


def test_the_averages_are_weighted_sums_over_the_examples_seen():
    generator = np.random.default_rng(1)
    updates = [(*generator.normal((1, 50), (0.1, 5)), count) for count in (32, 32, 64, 16, 128, 8)]
    found = averaged(updates, 100.0).noise
    counts = np.array([count for *_, count in updates])
    weights = counts * np.exp(-(counts.sum() - counts.cumsum()) / 100)
    values = np.array([(variance, norm) for norm, variance, _ in updates])
    mean = weights @ values / weights.sum()
    spread = (values - mean) * weights[:, None]
    updates_worth = weights.sum() ** 2 / (weights**2).sum()
    covariance = spread.T @ spread / weights.sum() ** 2 * updates_worth / (updates_worth - 1)
    assert found.gradient_variance.value == pytest.approx(mean[0], rel=1e-12)
    assert found.squared_gradient_norm.value == pytest.approx(mean[1], rel=1e-12)
    assert found.gradient_variance.stderr == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-9)
    assert found.squared_gradient_norm.stderr == pytest.approx(
        math.sqrt(covariance[1, 1]), rel=1e-9
    )
    assert found.simple.value == pytest.approx(mean[0] / mean[1], rel=1e-12)
    direction = np.array([1, -mean[0] / mean[1]]) / mean[1]
    assert found.simple.stderr == pytest.approx(
        math.sqrt(direction @ covariance @ direction), rel=1e-9
    )


def draws(generator, *, updates, small=16, big=64, dim=40, mean=0.25):
    """Norms of Gaussian gradients about `mean` in each coordinate, variance 1: B = 1/mean²."""
    shape = (updates, dim)
    part = mean + generator.normal(size=shape) / math.sqrt(small)
    rest = mean + generator.normal(size=shape) / math.sqrt(big - small)
    whole = (small * part + (big - small) * rest) / big
    return [
        two_batch(one, small, other, big)
        for one, other in zip((part**2).sum(1), (whole**2).sum(1), strict=True)
    ]


@pytest.mark.parametrize("memory", [None, 1000.0])
def test_the_intervals_cover_the_truth(memory):
    generator = np.random.default_rng(2)
    truth = {"squared_gradient_norm": 40 * 0.0625, "gradient_variance": 40.0, "simple": 16.0}
    covered = dict.fromkeys(truth, 0)
    for _ in range(400):
        noise = averaged([(*one, 64) for one in draws(generator, updates=60)], memory).noise
        for name, value in truth.items():
            estimate = getattr(noise, name)
            covered[name] += estimate.low <= value <= estimate.high
    assert all(0.92 <= count / 400 <= 0.98 for count in covered.values()), covered


def test_a_mean_of_ratios_would_be_something_else():
    estimates = draws(np.random.default_rng(3), updates=2000, mean=0.05)
    noise = averaged([(*one, 64) for one in estimates], None).noise
    assert noise.simple.low < 400 < noise.simple.high
    assert (
        abs(np.mean([variance / norm for norm, variance in estimates]) - 400)
        > 10 * noise.simple.stderr
    )


def test_halving_the_batch_does_not_change_what_is_remembered():
    whole = averaged([(1.0, 10.0, 64)] * 20 + [(2.0, 30.0, 64)] * 5, 640.0)
    halves = averaged([(1.0, 10.0, 32)] * 40 + [(2.0, 30.0, 32)] * 10, 640.0)
    one, other = whole.noise.simple.value, halves.noise.simple.value
    assert one == pytest.approx(other, rel=0.01)
    assert one == pytest.approx(
        halves.noise.gradient_variance.value / halves.noise.squared_gradient_norm.value
    )


def test_what_is_not_resolved_is_a_bound_and_says_what_it_takes():
    noise = averaged(
        [(*one, 64) for one in draws(np.random.default_rng(4), updates=20, mean=0.01)], None
    )
    noise = noise.noise
    assert not noise.resolved
    assert math.isnan(noise.simple.value)
    assert 0 < noise.simple.low < 10_000
    assert noise.examples_to_resolve > 20 * 64
    enough = noise.examples_to_resolve / 64
    spread = noise.squared_gradient_norm.stderr * math.sqrt(20)
    likely = max(noise.squared_gradient_norm.value, noise.squared_gradient_norm.stderr)
    assert likely / (spread / math.sqrt(enough)) == pytest.approx(
        2.093, rel=1e-2
    )  # t of 19 degrees of freedom


def test_one_update_has_no_error():
    noise = averaged([(1.0, 10.0, 64)], None).noise
    assert noise.simple.value == 10
    assert math.isnan(noise.simple.stderr)
    assert not noise.resolved


def test_the_state_goes_through_json_bit_for_bit():
    updates = [(*one, 64) for one in draws(np.random.default_rng(5), updates=30)]
    whole, first = averaged(updates, 500.0), averaged(updates[:11], 500.0)
    second = RunningNoise()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for norm, variance, count in updates[11:]:
        second.add(norm, variance, num_examples=count)
    assert second.state_dict() == whole.state_dict()
    assert second.noise == whole.noise


def test_wrong_values_are_refused():
    with pytest.raises(SettingError, match="leave this update out"):
        RunningNoise().add(math.nan, 1.0, num_examples=3)
    with pytest.raises(SettingError, match="memory 0"):
        RunningNoise(memory=0)
    with pytest.raises(SettingError, match="no update yet"):
        _ = RunningNoise().noise


@pytest.mark.parametrize("num_examples", [0, -5, float("nan"), True])
def test_an_update_of_no_examples_is_refused(num_examples):
    with pytest.raises(SettingError, match="give a number above 0"):
        RunningNoise().add(1.0, 2.0, num_examples=num_examples)
