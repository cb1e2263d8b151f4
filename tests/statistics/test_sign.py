"""‖G‖₁, ‖σ‖₁ and B_ℓ1 of gradients whose mean and variances are known."""

import math

import numpy as np
import pytest
from scipy import stats

from noisescale.errors import SettingError
from noisescale.statistics.gradient_noise import sign_noise
from noisescale.statistics.gradient_noise.sign import FoldWeights
from noisescale.statistics.sample import Sample


def folds(gradients, num_folds=8):
    """(R, n, P) in folds, summed: sums and sums of squares (R, K, P), counts (K,)."""
    runs, n, size = gradients.shape
    parts = gradients.reshape(runs, num_folds, n // num_folds, size)
    return parts.sum(2), (parts**2).sum(2), np.full(num_folds, n // num_folds)


def of_distribution(n):
    return Sample(num_examples=n, population_size=n, population="distribution")


@pytest.mark.parametrize("z", [0.0, 0.75, 3.0])
def test_biases_are_those_of_the_closed_form(z):
    """Of Gaussian coordinates at |G|√n/σ = z; signs are of 7 of 8 folds, independent of the last.

    E|ḡ| is the folded normal's mean; E[sign(other folds)] is 2Φ(z√(7/8)) − 1.
    """
    n, size, runs = 64, 200, 40
    generator = np.random.default_rng(0)
    gradients = z / math.sqrt(n) + generator.standard_normal((runs, n, size))
    sums, squares, counts = folds(gradients)
    found = [
        sign_noise(*one, counts, sample=of_distribution(n))
        for one in zip(sums, squares, strict=True)
    ]
    scale = size / math.sqrt(n)
    folded = math.sqrt(2 / math.pi) * math.exp(-(z**2) / 2) + z * (2 * stats.norm.cdf(z) - 1)
    crossed = z * (2 * stats.norm.cdf(z * math.sqrt(7 / 8)) - 1)
    for name, expected in (("largest_gradient_norm", folded), ("gradient_norm", crossed)):
        values = np.array([getattr(one, name).value for one in found]) / scale
        assert abs(values.mean() - expected) < 4 * values.std(ddof=1) / math.sqrt(runs), name
    noise = np.array([one.noise_norm.value for one in found]) / size
    assert abs(noise.mean() - 1) < 4 * noise.std(ddof=1) / math.sqrt(runs)
    # the plain one, of the same draws, is short by (κ − 1)/(8n) = 1/(4n)
    plain = np.sqrt(gradients.var(1, ddof=1)).mean(1)
    assert noise.mean() - plain.mean() == pytest.approx(1 / (4 * n), rel=0.2)


def test_all_of_a_data_set_is_exact():
    gradients = np.random.default_rng(1).standard_normal((1, 48, 30)) + 0.3
    (sums,), (squares,), counts = folds(gradients)
    sample = Sample(num_examples=48, population_size=48, population="dataset")
    found = sign_noise(sums, squares, counts, sample=sample)
    norm, noise = np.abs(gradients[0].mean(0)).sum(), gradients[0].std(0).sum()
    assert found.gradient_norm.value == pytest.approx(norm)
    assert found.noise_norm.value == pytest.approx(noise)
    assert found.simple.value == pytest.approx((noise / norm) ** 2)
    assert found.simple.kind == found.gradient_norm.kind == "exact"


def test_pure_noise_is_not_resolved_and_bounded_from_below():
    gradients = np.random.default_rng(2).standard_normal((1, 64, 100))
    (sums,), (squares,), counts = folds(gradients)
    found = sign_noise(sums, squares, counts, sample=of_distribution(64))
    assert math.isnan(found.simple.value)
    assert found.simple.kind == "bound"
    # where noise dominates the one norm is too small, the other too large
    assert found.gradient_norm.high == found.largest_gradient_norm.high
    # even as noise alone it is no smaller than ‖σ‖₁ over the mean absolute value of ḡ
    assert 20 < found.simple.low < 64 / (2 / math.pi)


def test_a_scale_that_all_gradients_share_changes_nothing():
    gradients = 0.5 + np.random.default_rng(3).standard_normal((1, 64, 20))
    (sums,), (squares,), counts = folds(gradients)
    one = sign_noise(sums, squares, counts, sample=of_distribution(64)).simple
    other = sign_noise(8 * sums, 64 * squares, counts, sample=of_distribution(64)).simple
    assert (one.value, one.low, one.high) == pytest.approx((other.value, other.low, other.high))


def test_too_few_are_refused():
    sums = np.ones((2, 3))
    with pytest.raises(SettingError, match="give 3 or more, of 2 or more"):
        sign_noise(sums, sums, np.array([5, 5]), sample=of_distribution(10))


def weighted_folds(gradients, weights, num_folds=8):
    """Of (n, P) and w (n,): sums, sums of squares, counts and what folds weigh."""
    relative = weights / weights.mean()
    parts = (gradients * relative[:, None]).reshape(num_folds, -1, gradients.shape[1])
    by_fold = relative.reshape(num_folds, -1)
    return (
        parts.sum(1),
        (parts**2).sum(1),
        np.full(num_folds, by_fold.shape[1]),
        FoldWeights(
            relative=by_fold.sum(1),
            squares=(by_fold**2).sum(1),
            twice=(parts * by_fold[:, :, None]).sum(1),
        ),
    )


def test_equal_weights_change_nothing():
    gradients = 0.5 + np.random.default_rng(4).standard_normal((1, 64, 20))
    (sums,), (squares,), counts = folds(gradients)
    plain = sign_noise(sums, squares, counts, sample=of_distribution(64))
    *weighted, weights = weighted_folds(gradients[0], np.full(64, 3.0))
    found = sign_noise(*weighted, weights=weights, sample=of_distribution(64))
    for name in ("gradient_norm", "noise_norm", "simple"):
        one, other = getattr(plain, name), getattr(found, name)
        assert (one.value, one.low, one.high) == pytest.approx(
            (other.value, other.low, other.high), rel=1e-10
        )


@pytest.mark.statistical
def test_intervals_of_weighted_means_hold():
    """Of weights 1 to 4, on which the gradients depend, so that it is a ratio of means."""
    generator = np.random.default_rng(5)
    n, size, num_draws = 160, 60, 300
    direction = generator.standard_normal(size)

    def draw(number):
        weights = generator.integers(1, 5, number).astype(float)
        noise = generator.standard_normal((number, size)) / np.sqrt(weights)[:, None]
        return (0.3 + 0.1 * weights[:, None]) * direction + noise, weights

    many, of_many = draw(400_000)
    relative = (of_many / of_many.mean())[:, None]
    mean = (relative * many).mean(0)
    norm = np.abs(mean).sum()
    noise = np.sqrt((relative**2 * (many - mean) ** 2).mean(0)).sum()
    held = np.zeros(2)
    for _ in range(num_draws):
        *sums, weights = weighted_folds(*draw(n))
        found = sign_noise(*sums, weights=weights, sample=of_distribution(n))
        held += [
            found.noise_norm.low <= noise <= found.noise_norm.high,
            found.simple.low <= (noise / norm) ** 2 <= found.simple.high,
        ]
    # 95 %, of 300 draws with four standard errors
    assert (held / num_draws > 0.90).all()


def test_weight_in_one_fold_alone_is_refused():
    gradients = np.ones((64, 2))
    weights = np.zeros(64)
    weights[:8] = 1.0
    *sums, of_folds = weighted_folds(gradients, weights)
    with pytest.raises(SettingError, match="all weight lies in one fold"):
        sign_noise(*sums, weights=of_folds, sample=of_distribution(64))
