"""The curvature of a problem's loss at one parameter vector, as one record."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from noisescale.errors import MeasurementError, SettingError, StoppedEarly
from noisescale.measure.curvature.batch_sharpness import (
    batch_sharpness,
    gradient_noise_interaction,
)
from noisescale.measure.curvature.eigenpairs import EigenPairs, Method, top_eigenpairs
from noisescale.measure.curvature.keskar import KeskarSharpness, Space, keskar_sharpness
from noisescale.measure.curvature.products import CurvatureProduct, record_ggn, record_hessian
from noisescale.measure.curvature.spectrum import (
    SpectralDensity,
    SpectralMoments,
    spectral_density,
    spectral_moments,
)
from noisescale.measure.objective import Objective
from noisescale.measure.objective.gradient_field import check_one_function
from noisescale.problems.problem import Examples, Params, Problem, held
from noisescale.problems.sampling import select
from noisescale.statistics.display import Settings, Shown, Summary, share
from noisescale.statistics.estimate import Estimate, between, estimate_row, exact, from_stderr
from noisescale.statistics.sample import Sample

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

End = Literal["largest", "smallest"]
Report = Callable[[str], None]

NAMES: dict[End, str] = {"largest": "λ_max", "smallest": "λ_min"}
# Groups of a subset's examples, whose spread gives an eigenvalue its sampling error: as few as
# leave Student's t (15 degrees of freedom, 2.13) near the normal's 1.96, since each costs products
# of its own
GROUPS = 16
# In all the batches of batch sharpness together: a gradient and a product of each are about half
# the work of one gradient over MNIST's 60,000
BATCHED_EXAMPLES = 8192
COMPARED = 4  # examples whose gradient's derivative is compared with its differences
FEWEST_BATCHES = 16  # below which their spread would say little of their mean's error
MOST_BATCHES = 256  # beyond which small batches, each a pass of its own, take too long
KESKAR_EPSILONS = (1e-3, 5e-4)  # the two of the paper
# Of each filter's norm: where φ of a trained network is about what the paper's boxes give, and a
# few times beyond, where it still is a neighbourhood
FILTER_EPSILONS = (0.01, 0.05)
# about, for what they cost: of the density 4 probes of 30 steps; of an iteration of
# φ 1.5 gradients in float64, each half as long as a product and twice as long as one in float32
DENSITY_MATVECS = 120
ITERATION_MATVECS = 1.5


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
        dtype: None: the parameters' own, at least float32. φ is always computed in float64.
        seed: of the subset and of every random start, batch and probe.
        param_filter: names of parameters, or patterns as "head.*", whose curvature it is; the
            others are constants. None: all.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, SharpnessOptions, measure_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> options = SharpnessOptions(batch_size=32, num_examples=500)
        >>> measure_sharpness(problem, options=options).batch_sharpness
        Estimate(0.215 ± 0.011 (0.194–0.235))
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
    dtype: torch.dtype | None = None
    seed: int = 0
    param_filter: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """One eigenvalue with both of its errors.

    Attributes:
        which: the end of the spectrum it was sought at.
        value: λ of the whole split: exact where all of it is measured on. From a subset, half-way
            between the subset's own eigenvalue, which errs outwards, and the curvature of either
            half along the other's eigenvectors, which errs inwards; the interval holds both and
            the sampling error of each.
        residual: |Hv − λv| of the subset's own eigenvalue, the numerical error.
        converged: whether the residual is within the tolerance.
    """

    which: End
    value: Estimate
    residual: float
    converged: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for strict JSON."""
        return {
            "which": self.which,
            **self.value.to_dict(),
            "residual": self.residual,
            "converged": self.converged,
        }


@dataclass(frozen=True, kw_only=True, repr=False)
class Sharpness(Shown):
    """What `measure_sharpness` measured; what was not wanted is None or empty.

    Attributes:
        split: the split that was measured on.
        num_examples: n, how many of its examples were used.
        population_size: N, how many it has.
        matrix: whose eigenvalues, trace and density these are: "hessian" or "ggn".
        loss: L, the mean over the n examples.
        gradient_norm: |G|, of the mean gradient over the same examples.
        eigenvalues: the largest, descending, then the smallest, ascending.
        moments: tr H and |H|_F².
        density: the spectral density.
        phi: Keskar's φ in both spaces, for both ε of the paper, and by filters for two.
        batch_size: of the two quantities below.
        batch_sharpness: E_B[g_Bᵀ H_B g_B / |g_B|²].
        gradient_noise_interaction: E_B[g_Bᵀ H g_B]/|G|².
        num_matvecs: products with the matrix over all n examples, and with the Hessian for the
            interaction.
        pairs: the eigenpairs of each end, to start the next checkpoint's search from.
        notes: what a reader should know.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, measure_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> sharpness = measure_sharpness(problem, seed=1)
        >>> sharpness.largest.converged, round(float(sharpness.largest.value), 1)
        (True, 0.5)
        >>> sharpness.to_frame()[["loss", "largest_eigenvalue", "converged"]].round(1)
           loss  largest_eigenvalue  converged
        0   2.3                 0.5       True
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
    notes: tuple[str, ...] = ()

    @property
    def starts(self) -> dict[str, Tensor]:
        """What the next checkpoint's search for the eigenpairs of each end starts from, (K, P)."""
        return {which: pairs.warm_start for which, pairs in self.pairs.items()}

    @property
    def largest(self) -> Eigenvalue | None:
        """λ_max, None where it was not measured."""
        return next(
            (eigenvalue for eigenvalue in self.eigenvalues if eigenvalue.which == "largest"), None
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the eigenvalues with their 95 % intervals, and the batch sharpness beside them.

        Where neither was measured, the spectral density or the course of Keskar's φ.

        Args:
            ax: drawn on; None: new ones, in a figure of pyplot's.

        Returns:
            The Axes.
        """
        from noisescale.plots.sharpness import draw_sharpness  # matplotlib takes 0.8 s to load

        return draw_sharpness(self.to_dict(), ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for strict JSON: the format of `noisescale sharpness --json`."""
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
            "notes": list(self.notes),
        }

    @property
    def estimates(self) -> dict[str, Estimate]:
        """What was measured beside eigenvalues, density and φ, by name."""
        measured = {}
        if self.moments is not None:
            measured["trace"] = self.moments.trace
            measured["frobenius"] = self.moments.squared_frobenius_norm
        if self.batch_sharpness is not None:
            measured["batch_sharpness"] = self.batch_sharpness
        if self.gradient_noise_interaction is not None:
            measured["gradient_noise_interaction"] = self.gradient_noise_interaction
        return measured

    def labelled(self) -> list[tuple[str, Eigenvalue]]:
        """The eigenvalues with what they are called: λ_max, λ_max (2), …, λ_min and so on."""
        ranks = dict.fromkeys(NAMES, 0)
        named = []
        for eigenvalue in self.eigenvalues:
            ranks[eigenvalue.which] += 1
            rank = ranks[eigenvalue.which]
            name = NAMES[eigenvalue.which] + (f" ({rank})" if rank > 1 else "")
            named.append((name, eigenvalue))
        return named

    def to_frame(self) -> pd.DataFrame:
        """One row, with the columns of sharpness.csv that a measurement fills, and what is beside.

        loss, gradient_norm, largest_eigenvalue with its residual and whether it has converged,
        batch_sharpness and num_matvecs are those of sharpness.csv; further eigenvalues are
        largest_eigenvalue_2 and so on. Estimates have a standard error (_stderr) and a 95 %
        interval (_low, _high). The rows of several checkpoints make one table by `pandas.concat`.
        """
        import pandas as pd

        row: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("num_examples", "population_size", "loss", "gradient_norm")
        }
        ranks = dict.fromkeys(NAMES, 0)
        for eigenvalue in self.eigenvalues:
            ranks[eigenvalue.which] += 1
            rank = ranks[eigenvalue.which]
            name = f"{eigenvalue.which}_eigenvalue" + (f"_{rank}" if rank > 1 else "")
            row |= estimate_row(name, eigenvalue.value)
            prefix = "" if name == "largest_eigenvalue" else f"{name}_"
            row[f"{prefix}residual"] = eigenvalue.residual
            row[f"{prefix}converged"] = eigenvalue.converged
        for name, estimate in self.estimates.items():
            row |= estimate_row(name, estimate)
        return pd.DataFrame([row | {"num_matvecs": self.num_matvecs}])

    def _summary(self) -> Summary:
        count = share(self.num_examples, self.population_size)
        matrix = "Gauss–Newton matrix" if self.matrix == "ggn" else "Hessian"
        rows = [
            (name, f"{eigenvalue.value}" + ("" if eigenvalue.converged else " NOT CONVERGED"))
            for name, eigenvalue in self.labelled()
        ]
        labels = estimate_labels(self.batch_size)
        rows += [(labels[name], str(estimate)) for name, estimate in self.estimates.items()]
        beside = ["Keskar's φ in .phi"] if self.phi else []
        beside += [] if self.density is None else ["the spectral density in .density"]
        return Summary(
            title=f"{matrix} of the mean loss over {count} {self.split} examples, "
            f"loss {self.loss:.4g}",
            rows=rows,
            notes=(*self.notes, *([f"also measured: {' and '.join(beside)}"] if beside else [])),
        )


def estimate_labels(batch_size: int | None) -> dict[str, str]:
    """What the estimates of a `Sharpness` are called.

    Args:
        batch_size: of the two quantities of batches.
    """
    return {
        "trace": "trace",
        "frobenius": "squared Frobenius norm",
        "batch_sharpness": f"batch sharpness, B = {batch_size}",
        "gradient_noise_interaction": f"gradient-noise interaction, B = {batch_size}",
    }


def measure_sharpness(
    problem: Problem,
    params: Params | None = None,
    options: SharpnessOptions | None = None,
    *,
    seed: int | None = None,
    start: Sharpness | Mapping[str, Tensor] | None = None,
    report: Report | None = None,
) -> Sharpness:
    """The curvature of the mean loss at `params`, the model in evaluation mode, as one record.

    Args:
        problem: the model, its loss and its examples.
        params: θ by name; None: the model's own.
        options: what to measure, of which examples; None: the largest eigenvalue of the Hessian
            over the training examples.
        seed: of the subset and of every random start, batch and probe. None: that of the options,
            which is 0 by default.
        start: an earlier checkpoint's measurement, whose eigenvectors the searches start from; or
            its `starts` alone.
        report: is told what is being computed, at every product.

    Returns:
        The quantities that the options name.

    Raises:
        SettingError: an unknown split, more examples than it has, more eigenvalues than there are
            parameters, or another bad option; a seed that is not the one the options give.
        MeasurementError: parameters, loss or gradient that are not finite, or a loss without a
            second derivative.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, SharpnessOptions, measure_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> measure_sharpness(problem)
        Hessian of the mean loss over all 1,297 train examples, loss 2.311
          λ_max  0.50099 (exact)
        >>> options = SharpnessOptions(top=2, trace=True, num_examples=500)
        >>> measure_sharpness(problem, options=options)
        Hessian of the mean loss over 500 of 1,297 train examples, loss 2.31
          λ_max                   0.534 ± 0.050 (0.437–0.652)
          λ_max (2)               0.463 ± 0.047 (0.372–0.572)
          trace                   2.94 ± 0.74 (1.27–4.62)
          squared Frobenius norm  5.51 ± 0.21 (5.04–5.97)
    """
    options = _with_seed(options or SharpnessOptions(), seed)
    report = report or (lambda activity: None)
    examples, indices, population_size = select(
        problem,
        split=options.split,
        num_examples=options.num_examples,
        generator=_generator(options),
    )
    objective = Objective(
        problem,
        params,
        examples=held(examples),
        dtype=options.dtype,
        param_filter=options.param_filter,
    )
    _check_ends(options, objective)
    operator = CurvatureProduct(objective, record_ggn if options.ggn else record_hessian)
    tally = _Tally(report)

    report("loss and gradient")
    loss, gradient = objective.value_and_gradient()
    if not (math.isfinite(loss) and gradient.isfinite().all()):
        raise MeasurementError(_say_not_finite(objective, loss, indices))
    if not options.ggn:
        _check_one_function(problem, params, objective, options)
    pairs = _eigenpairs(operator, options, start, tally)
    sharpness = Sharpness(
        split=options.split,
        num_examples=objective.num_examples,
        population_size=population_size,
        matrix="ggn" if options.ggn else "hessian",
        loss=loss,
        gradient_norm=float(gradient.double().norm()),
        eigenvalues=_eigenvalues(pairs, operator, population_size, options, report),
        moments=None,
        density=None,
        phi=(),
        batch_size=options.batch_size,
        batch_sharpness=None,
        gradient_noise_interaction=None,
        num_matvecs=tally.num_matvecs,
        pairs=pairs,
        notes=objective.notes,
    )
    try:
        batch, interaction = _batch_quantities(operator, options, tally)
        sharpness = replace(
            sharpness, batch_sharpness=batch, gradient_noise_interaction=interaction
        )
        _announce(options, tally)
        moments, density = _spectrum(operator, options, tally)
        sharpness = replace(sharpness, moments=moments, density=density)
        if options.phi or options.filter_normalised:
            sharpness = replace(sharpness, phi=_keskar(problem, params, objective, options, report))
    except KeyboardInterrupt as interrupt:
        note = "stopped by Ctrl-C: what was still to be measured is missing"
        raise StoppedEarly(replace(sharpness, notes=(*sharpness.notes, note))) from interrupt
    return replace(sharpness, num_matvecs=tally.num_matvecs)


def _announce(options: SharpnessOptions, tally: _Tally) -> None:
    """Says what the spectrum and φ will cost, by what the products so far have taken."""
    products = {
        "the trace": options.trace * options.trace_matvecs,
        "the density": options.density * DENSITY_MATVECS,
        "φ": _phi_searches(options) * options.phi_iterations * ITERATION_MATVECS,
    }
    wanted = [name for name, number in products.items() if number]
    if not (wanted and tally.num_matvecs):
        return
    spent = time.perf_counter() - tally.begun
    to_come = spent / tally.num_matvecs * sum(products.values())
    tally.report(
        f"Optional, {' and '.join(wanted)}: about {to_come:.0f} s, "
        f"{to_come / (to_come + spent):.0%} of the whole. Ctrl-C prints the result without the "
        "rest of it."
    )


def _say_not_finite(objective: Objective, loss: float, indices: Tensor) -> str:
    """What is not finite, and of which example of the split, in a sentence."""

    def is_broken(part: Examples) -> bool:
        value, gradient = objective.on(part).value_and_gradient()
        return not (math.isfinite(value) and bool(gradient.isfinite().all()))

    index = int(indices[objective.first_broken(is_broken)])
    if not math.isfinite(loss):
        return f"{objective.name} is {loss} at these parameters (first at index {index})"
    return (
        f"{objective.name} has a gradient that is not finite at these parameters (first at index "
        f"{index}), as where a square root is taken of zero"
    )


def _check_one_function(
    problem: Problem, params: Params | None, objective: Objective, options: SharpnessOptions
) -> None:
    """MeasurementError where the gradient is not that of one function, by a few examples."""
    precise = Objective(
        problem,
        params,
        examples=objective.examples.part(slice(COMPARED)),
        dtype=torch.float64,
        param_filter=options.param_filter,
    )
    try:
        precise.check_separate()
    except MeasurementError:  # a model that fixes its dtypes takes no float64
        return
    check_one_function(precise, CurvatureProduct(precise, record_hessian))


def _with_seed(options: SharpnessOptions, seed: int | None) -> SharpnessOptions:
    """The options under this seed; SettingError where they have another than the default."""
    if seed is None:
        return options
    if options.seed not in (SharpnessOptions.seed, seed):
        raise SettingError(
            f"seed {seed}: the options have seed {options.seed}; give it in one place"
        )
    return replace(options, seed=seed)


def _generator(options: SharpnessOptions) -> torch.Generator:
    """A fresh generator: each quantity draws its own numbers, whichever others are measured."""
    return torch.Generator().manual_seed(options.seed)


def _check_ends(options: SharpnessOptions, objective: Objective) -> None:
    """SettingError for more eigenvalues than the matrix has."""
    for name in ("top", "bottom"):
        if not 0 <= getattr(options, name) <= objective.dim:
            raise SettingError(
                f"{name} {getattr(options, name)}: the model has P = {objective.dim:,} parameters; "
                f"give 0 to {objective.dim}"
            )


class _Tally:
    """How many products a measurement has taken; each is reported under what it is for."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.num_matvecs = 0
        self.begun = time.perf_counter()

    def add(self, activity: str) -> None:
        self.num_matvecs += 1
        self.report(f"{activity} (product {self.num_matvecs})")


@dataclass(frozen=True)
class _Counted:
    """An operator whose products are counted, and reported as part of an activity."""

    operator: CurvatureProduct
    activity: str
    tally: _Tally

    @property
    def dim(self) -> int:
        return self.operator.dim

    @property
    def dtype(self) -> torch.dtype:
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        return self.operator.device

    @property
    def coarsest_dtype(self) -> torch.dtype:
        return self.operator.coarsest_dtype

    def __call__(self, vector: Tensor) -> Tensor:
        self.tally.add(self.activity)
        return self.operator(vector)


def _eigenpairs(
    operator: CurvatureProduct,
    options: SharpnessOptions,
    start: Sharpness | Mapping[str, Tensor] | None,
    tally: _Tally,
) -> dict[End, EigenPairs]:
    """The eigenpairs of each end that the options want, from those of `start` where it has them."""
    ends: tuple[tuple[End, int], ...] = (("largest", options.top), ("smallest", options.bottom))
    earlier = start.starts if isinstance(start, Sharpness) else start or {}
    return {
        which: top_eigenpairs(
            _Counted(operator, f"{which} eigenvalue", tally),
            k=k,
            which=which,
            method=options.method,
            rtol=options.rtol,
            max_matvecs=options.max_matvecs,
            start=earlier.get(which),
            generator=_generator(options),
        )
        for which, k in ends
        if k
    }


def _spectrum(
    operator: CurvatureProduct, options: SharpnessOptions, tally: _Tally
) -> tuple[SpectralMoments | None, SpectralDensity | None]:
    """Trace with Frobenius norm, and density, where the options want them."""
    moments = density = None
    if options.trace:
        moments = spectral_moments(
            _Counted(operator, "trace", tally),
            num_matvecs=options.trace_matvecs,
            generator=_generator(options),
        )
    if options.density:
        density = spectral_density(
            _Counted(operator, "density", tally), generator=_generator(options)
        )
    return moments, density


def _batch_quantities(
    operator: CurvatureProduct, options: SharpnessOptions, tally: _Tally
) -> tuple[Estimate | None, Estimate | None]:
    """Batch sharpness and gradient–noise interaction, where the options want them.

    They draw their batches from one generator, one after the other.
    """
    if options.batch_size is None:
        return None, None
    tally.report("batch sharpness")
    objective = operator.objective
    generator = _generator(options)
    num_batches = options.num_batches
    if num_batches is None:
        enough = max(BATCHED_EXAMPLES // options.batch_size, FEWEST_BATCHES)
        num_batches = min(enough, MOST_BATCHES)
    sharpness = batch_sharpness(
        objective, batch_size=options.batch_size, num_batches=num_batches, generator=generator
    )
    if not options.interaction_batches:
        return sharpness, None
    hessian = CurvatureProduct(objective, record_hessian) if options.ggn else operator
    interaction = gradient_noise_interaction(
        objective,
        _Counted(hessian, "gradient-noise interaction", tally),
        batch_size=options.batch_size,
        num_batches=options.interaction_batches,
        generator=generator,
    )
    return sharpness, interaction


def _eigenvalues(
    pairs: dict[End, EigenPairs],
    operator: CurvatureProduct,
    population_size: int,
    options: SharpnessOptions,
    report: Report,
) -> tuple[Eigenvalue, ...]:
    """The eigenvalues of both ends with their sampling and numerical errors."""
    sample = Sample(
        num_examples=operator.objective.num_examples,
        population_size=population_size,
        population="dataset",
    )
    return tuple(
        Eigenvalue(which=which, value=value, residual=float(residual), converged=bool(converged))
        for which, of_end in pairs.items()
        for value, residual, converged in zip(
            _of_the_split(of_end, which, operator, sample, options, report),
            of_end.residuals,
            of_end.converged_each,
            strict=True,
        )
    )


def _of_the_split(
    pairs: EigenPairs,
    which: End,
    operator: CurvatureProduct,
    sample: Sample,
    options: SharpnessOptions,
    report: Report,
) -> list[Estimate]:
    """The whole split's eigenvalues, estimated from those of n of its N examples.

    The subset's own λ_max is too large on average, since its vector has fitted the subset's noise
    (the largest eigenvalue is convex in the matrix); where the top of the spectrum is not isolated,
    by more than its standard error. Along the vector of one half of the subset, the curvature of
    the other half is too small on average, as that of any vector but the eigenvector is. λ_max is
    taken to lie between the two, which come together as n grows to N; λ_min, with the signs
    exchanged, likewise.
    """
    if sample.remaining == 0:
        return [exact(float(value), num_samples=sample.num_examples) for value in pairs.values]
    groups = _groups(sample.num_examples)
    if len(groups) < 2:
        return [from_stderr(float(value), math.nan, num_samples=1) for value in pairs.values]
    report("sampling error")
    curvatures = torch.stack([_curvatures(operator, rows, pairs.vectors) for rows in groups])
    stderrs = curvatures.std(0) * (sample.remaining / len(groups)) ** 0.5
    optimism = pairs.values - _held_out(pairs, which, operator, groups, options, report)
    return [
        between(
            float(value),
            float(value - sample.remaining * excess),
            float(stderr),
            num_samples=len(groups),
            one_sign=bool((of_groups * value > 0).all()),
        )
        for value, excess, stderr, of_groups in zip(
            pairs.values, optimism, stderrs, curvatures.T, strict=True
        )
    ]


def _groups(num_examples: int) -> list[slice]:
    """The rows of random groups of a subset, which is in random order: slices copy no example."""
    parts = torch.arange(num_examples).tensor_split(min(GROUPS, num_examples))
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


def _curvatures(operator: CurvatureProduct, rows: slice, vectors: Tensor) -> Tensor:
    """vᵀHv of these examples' mean loss along each of the vectors (K, P): (K,), float64."""
    product = operator.on(operator.objective.examples.subset(rows))
    along = [float(vector.double() @ product(vector).double()) for vector in vectors]
    return torch.tensor(along, dtype=torch.float64)


def _held_out(
    pairs: EigenPairs,
    which: End,
    operator: CurvatureProduct,
    groups: list[slice],
    options: SharpnessOptions,
    report: Report,
) -> Tensor:
    """The curvature of each half of the examples along the other's eigenvectors, the mean: (K,)."""
    middle = groups[len(groups) // 2].start
    halves = slice(0, middle), slice(middle, operator.objective.num_examples)
    total = torch.zeros(len(pairs.values), dtype=torch.float64)
    for fitted, held_out in (halves, halves[::-1]):
        of_half = top_eigenpairs(
            operator.on(operator.objective.examples.subset(fitted)),
            k=len(pairs.values),
            which=which,
            method=options.method,
            rtol=options.rtol,
            max_matvecs=options.max_matvecs,
            start=pairs.warm_start,
            generator=_generator(options),
        )
        report("sampling error")
        total += _curvatures(operator, held_out, of_half.vectors)
    return total / 2


def _keskar(
    problem: Problem,
    params: Params | None,
    objective: Objective,
    options: SharpnessOptions,
    report: Report,
) -> tuple[KeskarSharpness, ...]:
    """φ in the spaces that the options want, for two ε each."""
    precise = Objective(
        problem,
        params,
        examples=objective.examples,
        dtype=torch.float64,
        param_filter=options.param_filter,
    )
    results = []
    for space, epsilons in _phi_boxes(options).items():
        for epsilon in epsilons:
            report(f"φ, {space} space, ε = {epsilon:g}")
            results.append(
                keskar_sharpness(
                    precise,
                    space=space,
                    epsilon=epsilon,
                    max_iterations=options.phi_iterations,
                    seed=options.seed,
                )
            )
    return tuple(results)


def _phi_boxes(options: SharpnessOptions) -> dict[Space, tuple[float, ...]]:
    """The ε of each space that the options want φ in."""
    boxes: dict[Space, tuple[float, ...]] = {}
    if options.phi:
        boxes |= {"full": KESKAR_EPSILONS, "random": KESKAR_EPSILONS}
    if options.filter_normalised:
        boxes["filter"] = FILTER_EPSILONS
    return boxes


def _phi_searches(options: SharpnessOptions) -> int:
    """How many maximisations that makes."""
    return sum(map(len, _phi_boxes(options).values()))
