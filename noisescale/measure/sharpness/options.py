"""What to measure of a problem's curvature."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from noisescale.errors import SettingError
from noisescale.measure.curvature.eigenpairs import Method
from noisescale.measure.objective import Objective
from noisescale.problems.config import Amp
from noisescale.statistics.display import Settings


@dataclass(frozen=True, kw_only=True, repr=False)
class SharpnessOptions(Settings):
    """What to measure, of which examples.

    Attributes:
        split: the split that is measured on.
        num_examples: measure on a random subset of this many of its examples; None: on all.
        top: how many of the largest eigenvalues.
        bottom: how many of the smallest eigenvalues.
        ggn: take eigenvalues, trace and density of the Gauss–Newton matrix instead of the Hessian.
        method: how eigenpairs are found, see `top_eigenpairs`.
        rtol: the relative residual at which an eigenpair has converged, see `top_eigenpairs`.
        max_matvecs: products with the matrix at most, for each end of the spectrum.
        trace: whether to measure tr H and |H|_F².
        trace_matvecs: products for the trace.
        density: whether to measure the spectral density.
        phi: whether to measure Keskar's φ: in both spaces, for both ε of the paper.
        filter_normalised: whether to measure φ in a box by filters, which rescaling ReLU layers
            does not change, see `keskar_sharpness`: at ε = .01 and .05 of each filter's norm.
        phi_iterations: of L-BFGS-B, for both; 10 as in the paper, which often has not converged.
        batch_size: of batch sharpness and gradient–noise interaction; None: neither.
        num_batches: for batch sharpness; None: 16 to 256, about 8,192 examples in all where that
            lies between.
        interaction_batches: for the gradient–noise interaction, each a product over all examples; 0
            leaves it out.
        critical: whether to measure critical sharpness, see `critical_sharpness`: a few forward
            passes along the next update.
        dtype: None: the parameters' own, at least float32. φ is always computed in float64.
        amp: "bf16": the model runs under torch.autocast, its matrix products in bfloat16, but for
            φ. None: it does not.
        seed: of the subset and of every random start, batch and probe.
        param_filter: names of parameters, or patterns as "head.*", whose curvature it is; the
            others are constants. None: all.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, SharpnessOptions, measure_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> options = SharpnessOptions(batch_size=32, num_examples=500)
        >>> measure_sharpness(problem, options=options).batch_sharpness
        Estimate(0.179 ± 0.010 (0.158–0.199))
    """

    split: str = "train"
    num_examples: int | None = None
    top: int = 1
    bottom: int = 0
    ggn: bool = False
    method: Method = "lanczos"
    rtol: float = 1e-3
    max_matvecs: int = 200
    trace: bool = False
    trace_matvecs: int = 30
    density: bool = False
    phi: bool = False
    filter_normalised: bool = False
    phi_iterations: int = 10
    batch_size: int | None = None
    num_batches: int | None = None
    interaction_batches: int = 16
    critical: bool = False
    dtype: torch.dtype | None = None
    amp: Amp | None = None
    seed: int = 0
    param_filter: tuple[str, ...] | None = None


def with_seed(options: SharpnessOptions, seed: int | None) -> SharpnessOptions:
    """The options under this seed; SettingError where they have another than the default."""
    if seed is None:
        return options
    if options.seed not in (SharpnessOptions.seed, seed):
        raise SettingError(
            f"seed {seed}: the options have seed {options.seed}; give it in one place"
        )
    return replace(options, seed=seed)


def fresh_generator(options: SharpnessOptions) -> torch.Generator:
    """A fresh generator: each quantity draws its own numbers, whichever others are measured."""
    return torch.Generator().manual_seed(options.seed)


def check_ends(options: SharpnessOptions, objective: Objective) -> None:
    """SettingError for more eigenvalues than the matrix has."""
    for name in ("top", "bottom"):
        if not 0 <= getattr(options, name) <= objective.dim:
            raise SettingError(
                f"{name} {getattr(options, name)}: the model has P = {objective.dim:,} parameters; "
                f"give 0 to {objective.dim}"
            )
