"""The noise of a weighted mean gradient against enumerations of small populations."""

import itertools

import numpy as np
import pytest

from noisescale.statistics.gradient_noise import mean_estimate, noise_scale
from noisescale.statistics.sample import Sample, Weighting, squared_deviations


def population(size, dim=3, seed=0, spread=1.0):
    """Gradients (N, P) and weights (N,) that go together, so that the ratio is biased."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(1, 9, size).astype(float)
    gradients = generator.normal(size=(size, dim)) + np.array([2.0, -1.0, 0.5])
    gradients[:, 0] += spread * (weights - weights.mean()) / 3
    return gradients, weights


def truth(gradients, weights):
    """|G|² and tr Σ of the population by their definitions."""
    mean = weights @ gradients / weights.sum()
    deviations = (weights / weights.mean())[:, None] * (gradients - mean)
    return float(mean @ mean), float((deviations**2).sum(1).mean()), mean


def measured(gradients, weights, population_size, population="dataset", names=None):
    """The noise scale of a sample, from what the engines give of it."""
    relative = weights / weights.mean()
    scaled = relative[:, None] * gradients  # ĝ (n, P)
    mean = scaled.mean(0)
    doubled = (relative[:, None] * scaled).mean(0)  # q
    return noise_scale(
        scaled**2,
        scaled * mean,
        mean**2,
        population=population,
        population_size=population_size,
        weighting=Weighting(relative, doubled * mean, scaled * doubled),
        names=names,
    )


def test_of_the_whole_it_is_the_definition():
    gradients, weights = population(40)
    noise = measured(gradients, weights, 40, names=["a", "b", "c"])
    norm, trace, _ = truth(gradients, weights)
    assert noise.squared_gradient_norm.value == pytest.approx(norm, rel=1e-12)
    assert noise.gradient_variance.value == pytest.approx(trace, rel=1e-12)
    assert noise.simple.value == pytest.approx(trace / norm, rel=1e-12)
    assert noise.simple.low == noise.simple.high
    assert noise.per_layer["gradient_variance"].sum() == pytest.approx(trace)
    assert noise.effective_examples > 1
    _, _, mean = truth(gradients, weights)
    relative = (weights / weights.mean())[:, None]
    squared = ((relative * (gradients - mean)) ** 2).sum(1)
    norms = np.linalg.norm(relative * gradients, axis=1)
    for row in noise.gradient_norms.iloc[1:-1].to_dict("records"):
        inside = (norms >= row["low"]) & (norms < row["high"])
        assert row["examples"] == inside.sum()
        assert row["variance_share"] == pytest.approx(squared[inside].sum() / squared.sum())


def test_equal_weights_are_no_weights():
    gradients, _ = population(30)
    mean = gradients.mean(0)
    plain = noise_scale(
        gradients**2, gradients * mean, mean**2, population="distribution", population_size=90
    )
    weighted = measured(gradients, np.full(30, 7.0), 90, "distribution")
    for name in ("squared_gradient_norm", "gradient_variance", "simple"):
        one, other = getattr(plain, name), getattr(weighted, name)
        assert other.value == pytest.approx(one.value, rel=1e-12)
        assert other.stderr == pytest.approx(one.stderr, rel=0.1)  # of order 1/n apart


def test_a_batch_errs_by_the_covariance_of_the_influences():
    """E|G_B − G|² = tr Σ·(1/B − 1/N)·N/(N − 1), up to 1/B: of all batches that leave one out."""
    gradients, weights = population(300, spread=0.3)
    _, trace, mean = truth(gradients, weights)

    def error(rows):
        of_batch = weights[rows] @ gradients[rows] / weights[rows].sum()
        return float(((of_batch - mean) ** 2).sum())

    all_but_one = [error(np.delete(np.arange(300), row)) for row in range(300)]
    assert np.mean(all_but_one) == pytest.approx(trace / 299**2, rel=0.01)
    generator = np.random.default_rng(0)
    batches = [error(generator.choice(300, 30, replace=False)) for _ in range(3000)]
    expected = trace * (1 / 30 - 1 / 300) * 300 / 299
    # 3,000 errors of three numbers: 1.5 %; and 1/B
    assert np.mean(batches) == pytest.approx(expected, rel=4 * 0.015 + 1 / 30)


@pytest.mark.parametrize("size", [7, 9])
def test_the_bias_of_the_squared_norm_is_of_second_order(size):
    """Over all samples of 12: without the term of the ratio's bias it would be off by far more."""
    gradients, weights = population(12, spread=2.0)
    norm, trace, _ = truth(gradients, weights)
    norms, without, traces = [], [], []
    for rows in map(list, itertools.combinations(range(12), size)):
        noise = measured(gradients[rows], weights[rows], 12)
        norms.append(noise.squared_gradient_norm.value)
        traces.append(noise.gradient_variance.value)
        relative = weights[rows] / weights[rows].mean()
        scaled = relative[:, None] * gradients[rows]
        square = float((scaled.mean(0) ** 2).sum())
        plain = squared_deviations(
            (scaled**2).sum(1), scaled @ scaled.mean(0), square, Weighting(relative, np.zeros(1))
        )
        without.append(square - plain.sum() / (size - 1) * (1 / size - 1 / 12))
    assert abs(np.mean(norms) - norm) < abs(np.mean(without) - norm) / 3
    assert np.mean(traces) == pytest.approx(trace, rel=1.5 / size)


@pytest.mark.parametrize("population_size", [400, 10**6])
def test_standard_errors_are_those_of_many_samples(population_size):
    """Samples of 200 of one population, or of fresh examples: 300 samples."""
    gradients, weights = population(min(population_size, 4000), spread=1.0, seed=3)
    generator = np.random.default_rng(1)
    values = {name: [] for name in ("squared_gradient_norm", "gradient_variance", "simple")}
    errors = {name: [] for name in values}
    for _ in range(300):
        rows = generator.choice(len(weights), 200, replace=population_size > 4000)
        noise = measured(gradients[rows], weights[rows], population_size)
        for name in values:
            values[name].append(getattr(noise, name).value)
            errors[name].append(getattr(noise, name).stderr)
    for name in values:
        ratio = np.mean(errors[name]) / np.std(values[name])
        assert ratio == pytest.approx(1, abs=0.16)  # four errors


def test_the_mean_loss_errs_by_its_influences():
    generator = np.random.default_rng(0)
    weights = generator.integers(1, 9, 300) * 1.0
    losses = 1 + 0.01 * generator.normal(size=300)  # nearly alike: weights alone move nothing
    relative = weights / weights.mean()
    sample = Sample(num_examples=300, population_size=3000, population="dataset")
    estimate = mean_estimate(relative * losses, sample, Weighting(relative, np.zeros(1)))
    assert estimate.value == pytest.approx(weights @ losses / weights.sum())
    assert estimate.stderr < 0.01 * 1.5 / 300**0.5 * 1.5


def test_without_projections_there_are_numbers_without_errors():
    gradients, weights = population(40)
    relative = weights / weights.mean()
    scaled = relative[:, None] * gradients
    doubled = (relative[:, None] * scaled).mean(0)
    noise = noise_scale(
        scaled**2,
        None,
        scaled.mean(0) ** 2,
        population="distribution",
        population_size=40,
        weighting=Weighting(relative, doubled * scaled.mean(0)),
    )
    _, trace, _ = truth(gradients, weights)
    assert noise.gradient_variance.value == pytest.approx(trace * 40 / 39)
    assert np.isnan(noise.gradient_variance.stderr)
