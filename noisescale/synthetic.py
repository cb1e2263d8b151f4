"""The former name of `noisescale.problems.synthetic`, kept for a release."""

from noisescale.problems.synthetic import (
    SyntheticProblem as SyntheticProblem,
    linear_regression as linear_regression,
    noisy_quadratic as noisy_quadratic,
)
