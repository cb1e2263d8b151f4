"""The curvature of a problem's loss at one parameter vector, as one record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.batch_sharpness import (
    KeskarSharpness,
    batch_sharpness,
    gradient_noise_interaction,
    keskar_sharpness,
)
from noisescale.measure.curvature.eigenpairs import EigenPairs, Method, top_eigenpairs
from noisescale.measure.curvature.products import CurvatureProduct, record_ggn, record_hessian
from noisescale.measure.curvature.spectrum import (
    SpectralDensity,
    SpectralMoments,
    spectral_density,
    spectral_moments,
)
from noisescale.measure.objective import Objective
from noisescale.problems.problem import MatVec, Params, Problem
from noisescale.problems.sampling import select
from noisescale.statistics.estimate import Estimate, exact, from_stderr
from noisescale.statistics.sample import Sample

End = Literal["largest", "smallest"]
GROUPS = 16  # of a subset's examples, whose spread gives an eigenvalue its sampling error
BATCHED_EXAMPLES = 8192  # in all the batches of batch sharpness together
KESKAR_EPSILONS = (1e-3, 5e-4)


@dataclass(frozen=True, kw_only=True)
class SharpnessOptions:
    """What to measure, of which examples.

    split, num_examples: a random subset of so many of the split's examples, drawn under `seed`; None: all.
    top, bottom: how many of the largest and of the smallest eigenvalues.
    ggn: eigenvalues, trace and density of the Gauss–Newton matrix instead of the Hessian.
    method, rtol, max_matvecs: of `top_eigenpairs`.
    trace, density, phi: whether to measure tr H and |H|_F², the spectral density, Keskar's φ (four of it).
    trace_matvecs: products for the trace.
    batch_size: of batch sharpness and gradient–noise interaction; None: neither.
    num_batches: for batch sharpness; None: 16 to 256, about 8,192 examples in all where that is between.
    interaction_batches: for the interaction, a whole product each; 0 leaves it out.
    dtype: None: the parameters' own; φ is always computed in float64.
    seed: of the subset and of every random start and probe.
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
    batch_size: int | None = None
    num_batches: int | None = None
    interaction_batches: int = 16
    dtype: torch.dtype | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """One eigenvalue with both of its errors.

    value: λ with the sampling error of its subset of examples; stderr 0 where that was the whole split.
    residual: |Hv − λv|, the numerical error; converged: whether that is within the tolerance.
    """

    which: End
    value: Estimate
    residual: float
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "which": self.which,
            **self.value.to_dict(),
            "residual": self.residual,
            "converged": self.converged,
        }


@dataclass(frozen=True, kw_only=True)
class Sharpness:
    """What `measure_sharpness` found; what was not asked for is None or empty.

    loss, gradient_norm: L and |G| over the same examples.
    num_examples, population_size: measured on, out of how many of the split.
    pairs: the eigenpairs of each end, to start the next checkpoint's search from.
    """

    split: str
    num_examples: int
    population_size: int
    matrix: Literal["hessian", "ggn"]
    loss: float
    gradient_norm: float
    eigenvalues: tuple[Eigenvalue, ...]
    moments: SpectralMoments | None = None
    density: SpectralDensity | None = None
    phi: tuple[KeskarSharpness, ...] = ()
    batch_size: int | None = None
    batch_sharpness: Estimate | None = None
    gradient_noise_interaction: Estimate | None = None
    num_matvecs: int
    pairs: dict[End, EigenPairs] = field(default_factory=dict, repr=False)

    @property
    def largest(self) -> Eigenvalue | None:
        """λ_max, where it was measured."""
        return next(
            (eigenvalue for eigenvalue in self.eigenvalues if eigenvalue.which == "largest"), None
        )

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: the file format of `noisescale sharpness --json`, without the checkpoint."""
        moments = self.moments
        return {
            "split": self.split,
            "num_examples": self.num_examples,
            "population_size": self.population_size,
            "matrix": self.matrix,
            "loss": self.loss,
            "gradient_norm": self.gradient_norm,
            "eigenvalues": [eigenvalue.to_dict() for eigenvalue in self.eigenvalues],
            "trace": moments and moments.trace.to_dict(),
            "frobenius": moments and moments.squared_frobenius_norm.to_dict(),
            "batch_size": self.batch_size,
            "batch_sharpness": self.batch_sharpness and self.batch_sharpness.to_dict(),
            "gradient_noise_interaction": self.gradient_noise_interaction
            and self.gradient_noise_interaction.to_dict(),
            "phi": [phi.to_dict() for phi in self.phi],
            "density": self.density and self.density.to_dict(),
            "num_matvecs": self.num_matvecs,
        }


def measure_sharpness(
    problem: Problem,
    params: Params | None = None,
    options: SharpnessOptions | None = None,
    *,
    start: Sharpness | None = None,
    report: Callable[[str], None] = lambda activity: None,
) -> Sharpness:
    """Curvature of the mean loss at `params` (None: the model's own), in evaluation mode.

    start: an earlier checkpoint's measurement, whose eigenvectors are started from.
    report: is told what is being computed, at every product.

    Raises SettingError for an unknown split, too many examples and k larger than P, MeasurementError for
    parameters that are not finite and losses without a second derivative.
    """
    options = options or SharpnessOptions()
    examples, _, population = select(
        problem,
        split=options.split,
        num_examples=options.num_examples,
        generator=_generator(options),
    )
    objective = Objective(problem, params, examples=examples, dtype=options.dtype)
    record = record_ggn if options.ggn else record_hessian
    matvec = CurvatureProduct(objective, record)
    for name in ("top", "bottom"):
        if not 0 <= getattr(options, name) <= objective.dim:
            raise SettingError(
                f"{name} {getattr(options, name)}: the model has P = {objective.dim:,} parameters; "
                f"give 0 to {objective.dim}"
            )
    num_matvecs = 0

    def reporting(activity: str, product: MatVec = matvec) -> MatVec:
        def counted(vector: Tensor) -> Tensor:
            nonlocal num_matvecs
            num_matvecs += 1
            report(f"{activity} (product {num_matvecs})")
            return product(vector)

        return counted

    report("loss and gradient")
    loss, gradient = objective.value_and_gradient()
    if not (math.isfinite(loss) and gradient.isfinite().all()):
        raise MeasurementError(f"{objective.name} is not finite at these parameters: it is {loss}")
    space: Any = {"dim": objective.dim, "dtype": objective.dtype, "device": objective.device}
    pairs: dict[End, EigenPairs] = {}
    ends: tuple[tuple[End, int], ...] = (("largest", options.top), ("smallest", options.bottom))
    for which, k in ends:
        if k:
            pairs[which] = top_eigenpairs(
                reporting(f"{which} eigenvalue"),
                k=k,
                which=which,
                method=options.method,
                rtol=options.rtol,
                max_matvecs=options.max_matvecs,
                start=start.pairs[which].warm_start
                if start is not None and which in start.pairs
                else None,
                generator=_generator(options),
                **space,
            )
    moments = density = batch = interaction = None
    if options.trace:
        moments = spectral_moments(
            reporting("trace"),
            num_matvecs=options.trace_matvecs,
            generator=_generator(options),
            **space,
        )
    if options.density:
        density = spectral_density(reporting("density"), generator=_generator(options), **space)
    if options.batch_size is not None:
        report("batch sharpness")
        num_batches = options.num_batches
        if num_batches is None:
            num_batches = min(max(BATCHED_EXAMPLES // options.batch_size, 16), 256)
        batches: Any = {"batch_size": options.batch_size, "generator": _generator(options)}
        batch = batch_sharpness(objective, num_batches=num_batches, **batches)
        if options.interaction_batches:
            hessian = CurvatureProduct(objective, record_hessian) if options.ggn else matvec
            product = reporting("gradient-noise interaction", hessian)
            interaction = gradient_noise_interaction(
                objective, product, num_batches=options.interaction_batches, **batches
            )
    eigenvalues = tuple(
        Eigenvalue(which=which, value=value, residual=float(residual), converged=bool(converged))
        for which, found in pairs.items()
        for value, residual, converged in zip(
            _with_sampling_error(found, objective, record, population, report),
            found.residuals,
            found.converged_each,
            strict=True,
        )
    )
    return Sharpness(
        split=options.split,
        num_examples=objective.num_examples,
        population_size=population,
        matrix="ggn" if options.ggn else "hessian",
        loss=loss,
        gradient_norm=float(gradient.double().norm()),
        eigenvalues=eigenvalues,
        moments=moments,
        density=density,
        phi=_keskar(problem, params, objective, options, report) if options.phi else (),
        batch_size=options.batch_size,
        batch_sharpness=batch,
        gradient_noise_interaction=interaction,
        num_matvecs=num_matvecs,
        pairs=pairs,
    )


def _generator(options: SharpnessOptions) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)


def _with_sampling_error(
    pairs: EigenPairs,
    objective: Objective,
    record: Any,
    population: int,
    report: Callable[[str], None],
) -> list[Estimate]:
    """Each eigenvalue with the error of having been measured on n of the population's examples.

    To first order λ = vᵀHv is a mean over examples at fixed v: its standard error is that of the means over
    random groups, times √(1 − n/N) for draws without replacement; t interval of 15 degrees of freedom.
    """
    sample = Sample(
        num_examples=objective.num_examples, population_size=population, population="dataset"
    )
    num_groups = min(GROUPS, objective.num_examples)
    if sample.remaining == 0:
        return [exact(float(value), num_samples=objective.num_examples) for value in pairs.values]
    if num_groups < 2:
        return [from_stderr(float(value), math.nan, num_samples=1) for value in pairs.values]
    report("sampling error")
    curvatures = torch.zeros(num_groups, len(pairs.values), dtype=torch.float64)
    for group, chosen in enumerate(torch.arange(objective.num_examples).tensor_split(num_groups)):
        rows = slice(int(chosen[0]), int(chosen[-1]) + 1)
        product = CurvatureProduct(objective.on(objective.examples.part(rows)), record)
        for index, vector in enumerate(pairs.vectors):
            curvatures[group, index] = float(vector.double() @ product(vector).double())
    stderrs = curvatures.std(0) * (sample.remaining / num_groups) ** 0.5
    return [
        from_stderr(float(value), float(stderr), num_samples=num_groups)
        for value, stderr in zip(pairs.values, stderrs, strict=True)
    ]


def _keskar(
    problem: Problem,
    params: Params | None,
    objective: Objective,
    options: SharpnessOptions,
    report: Callable[[str], None],
) -> tuple[KeskarSharpness, ...]:
    """φ in both spaces and for both ε of the paper."""
    precise = Objective(problem, params, examples=objective.examples, dtype=torch.float64)
    found = []
    for space in ("full", "random"):
        for epsilon in KESKAR_EPSILONS:
            report(f"φ, {space} space, ε = {epsilon:g}")
            found.append(keskar_sharpness(precise, space=space, epsilon=epsilon, seed=options.seed))
    return tuple(found)
