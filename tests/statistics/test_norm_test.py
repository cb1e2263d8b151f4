"""The norm test: the definition in |G|² and tr Σ, and what is left open."""

import math

import pytest

from noisescale.errors import SettingError
from noisescale.statistics.estimate import Estimate
from noisescale.statistics.gradient_noise import GradientNoise, norm_test


def noise_of(norm, trace, low, high):
    def estimate(value, low, high):
        return Estimate(value=value, stderr=0.1, low=low, high=high, num_samples=9)

    simple = estimate(trace / norm, low, high)
    norm, trace = estimate(norm, norm, norm), estimate(trace, trace, trace)
    return GradientNoise(norm, trace, simple, None, "training")


@pytest.mark.parametrize(
    ("batch_size", "theta", "holds"),
    [(32, 1.0, True), (20, 1.0, None), (10, 1.0, False), (32, 0.5, False), (100, 0.5, True)],
)
def test_it_compares_the_expected_error_with_theta(batch_size, theta, holds):
    norm, trace = 2.0, 40.0  # B_simple = 20, of 16 to 25
    test = norm_test(noise_of(norm, trace, 16, 25), batch_size=batch_size, theta=theta)
    assert test.squared_error.value == pytest.approx(trace / batch_size / norm)
    assert test.signal_to_noise.value == pytest.approx(norm / (trace / batch_size))
    assert test.signal_to_noise.low == pytest.approx(batch_size / 25)
    assert test.signal_to_noise.high == pytest.approx(batch_size / 16)
    assert test.least_batch_size.value == pytest.approx(trace / norm / theta**2)
    assert test.holds is holds


def test_of_what_is_unresolved_a_bound_is_left():
    unresolved = noise_of(math.nan, 1.0, 16, math.inf)
    test = norm_test(unresolved, batch_size=8)
    assert math.isnan(test.squared_error.value)
    assert test.squared_error.low == 2
    assert test.signal_to_noise.low == 0
    assert test.holds is False
    assert norm_test(unresolved, batch_size=64).holds is None
    for wrong in ({"batch_size": 0}, {"batch_size": 8, "theta": -1}):
        with pytest.raises(SettingError, match="give a positive number"):
            norm_test(unresolved, **wrong)
