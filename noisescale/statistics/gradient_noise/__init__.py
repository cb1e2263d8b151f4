"""|G|², tr Σ and B_simple of a set of examples: estimators, and the result they give."""

from noisescale.statistics.gradient_noise.anatomy import NoiseAnatomy, noise_anatomy
from noisescale.statistics.gradient_noise.estimators import (
    gradient_noise,
    mean_estimate,
    noise_scale,
    table,
)
from noisescale.statistics.gradient_noise.norm_test import NormTest, norm_test
from noisescale.statistics.gradient_noise.result import (
    CURVATURE_NOISE,
    GRADIENT_NOISE,
    PRECONDITIONED,
    QUANTITIES,
    UNDER_PRECONDITIONER,
    GradientNoise,
    NoiseScale,
    of_sign,
    under_preconditioner,
)
from noisescale.statistics.gradient_noise.sign import (
    SIGN_QUANTITIES,
    FoldWeights,
    SignNoise,
    sign_noise,
)

__all__ = [
    "CURVATURE_NOISE",
    "GRADIENT_NOISE",
    "PRECONDITIONED",
    "QUANTITIES",
    "SIGN_QUANTITIES",
    "UNDER_PRECONDITIONER",
    "FoldWeights",
    "GradientNoise",
    "NoiseAnatomy",
    "NoiseScale",
    "NormTest",
    "SignNoise",
    "gradient_noise",
    "mean_estimate",
    "noise_anatomy",
    "noise_scale",
    "norm_test",
    "of_sign",
    "sign_noise",
    "table",
    "under_preconditioner",
]
