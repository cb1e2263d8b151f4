"""The curvature of a problem's loss at one parameter vector, as one record."""

from noisescale.measure.sharpness.critical import CriticalSharpness, critical_sharpness
from noisescale.measure.sharpness.eigenvalue import Eigenvalue
from noisescale.measure.sharpness.measurement import measure_sharpness
from noisescale.measure.sharpness.options import SharpnessOptions
from noisescale.measure.sharpness.preconditioned import PreconditionedSharpness
from noisescale.measure.sharpness.result import (
    Sharpness,
    estimate_labels,
    preconditioned_columns,
)

__all__ = [
    "CriticalSharpness",
    "Eigenvalue",
    "PreconditionedSharpness",
    "Sharpness",
    "SharpnessOptions",
    "critical_sharpness",
    "estimate_labels",
    "measure_sharpness",
    "preconditioned_columns",
]
