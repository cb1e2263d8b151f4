"""The curvature of a problem's loss at one parameter vector, as one record."""

from noisescale.measure.sharpness.measurement import measure_sharpness
from noisescale.measure.sharpness.options import SharpnessOptions
from noisescale.measure.sharpness.result import Eigenvalue, Sharpness, estimate_labels

__all__ = [
    "Eigenvalue",
    "Sharpness",
    "SharpnessOptions",
    "estimate_labels",
    "measure_sharpness",
]
