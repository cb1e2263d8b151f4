"""What predicts the stability of SGD at one parameter vector, as one record."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from noisescale.errors import MeasurementError
from noisescale.measure.curvature.eigenpairs import EigenPairs, top_eigenpairs
from noisescale.measure.curvature.example_curvature import ExampleCurvature
from noisescale.measure.curvature.linear_sgd import LinearisedSGD, lyapunov_rate
from noisescale.measure.curvature.products import ggn_matvec
from noisescale.measure.noise import measure_noise
from noisescale.measure.noise_parts.options import with_settings
from noisescale.measure.objective import Objective
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.problems.problem import MatVec, Params, Problem, held, num_examples_of
from noisescale.problems.sampling import select
from noisescale.statistics.display import Settings
from noisescale.statistics.estimate import Estimate, between, exact, undefined
from noisescale.statistics.sample import Sample
from noisescale.statistics.stability.curves import MADE_OF, StabilityConstants

# Whose own Gauss–Newton matrices are looked at, each at the price of a backward pass per output
NUM_EXAMPLES = 1000
# For λ and κ, which take products with the mean matrix alone: at raw MNIST pixels λ of 1,000 is
# uncertain by 10 %, of 10,000 by 3 %
SHARPNESS_EXAMPLES = 10_000
# Examples that a replica of linearised SGD sees, within the limits below: half a pass over MNIST
SIMULATED = 30_000
# Steps: enough for an exponent, whose bias falls as 1/steps; small batches would otherwise take
# thousands
FEWEST_STEPS, MOST_STEPS = 60, 500
# Replicas: two are the fewest that have a spread; large batches, which differ less, cost more
FEWEST_REPLICAS, MOST_REPLICAS = 2, 4


@dataclass(frozen=True, kw_only=True, repr=False)
class StabilityOptions(Settings):
    """What `measure_stability` measures, of which examples.

    Attributes:
        num_examples: look at a random subset of this many training examples, one by one; None, or
            more than there are: at all. β, the largest of their λ_max(H_i), can only grow with more
            of them.
        sharpness_examples: measure λ and κ on a random subset of this many, or of `num_examples`
            where that is more; None, or more than there are: on all.
        descent: whether to measure ε_max and B_noise as well, with the Hessian on examples of their
            own.
        param_filter: names of parameters, or patterns as "head.*", whose stability it is; the
            others are constants. None: all.
    """

    num_examples: int | None = NUM_EXAMPLES
    sharpness_examples: int | None = SHARPNESS_EXAMPLES
    descent: bool = True
    param_filter: tuple[str, ...] | None = None


def measure_stability(
    problem: Problem,
    params: Params | None = None,
    options: StabilityOptions | None = None,
    *,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
    generator: torch.Generator | None = None,
    **settings: Any,
) -> StabilityConstants:
    """λ, κ, β, tr H and s² of the Gauss–Newton matrix, and ε_max and B_noise, at `params`.

    Args:
        problem: the model, its loss and its training examples.
        params: θ by name; None: the model's own.
        options: what to measure, of which examples; None: everything, of 1,000, λ and κ of 10,000.
        seed: of the subset and of every random start and probe.
        report: is told what is being computed.
        generator: draws the random numbers instead of a new one under `seed`; on the CPU.
        **settings: fields of `StabilityOptions` one by one, such as `descent=False`. A field that
            `options` sets to other than its default cannot be given here again.

    Returns:
        The constants, of which `StabilityConstants.curves` makes the curves and `rate_estimates`
        their bands; ε_max and B_noise are nan without `descent`, and where B_noise is not positive.

    Raises:
        SettingError: an option is given twice.
        MeasurementError: λ cannot be found or is zero; NotMeasurable, one of these: the model gives
            more than 128 numbers for an example, of whose square single examples' matrices are.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, StabilityOptions, measure_stability
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> options = StabilityOptions(num_examples=100, descent=False)
        >>> constants = measure_stability(problem, options=options)
        >>> round(constants.rates(32, population_size=1297)["gaussian"], 1)
        4.4
    """
    options = with_settings(options or StabilityOptions(), settings)
    report = report or (lambda activity: None)
    generator = generator or torch.Generator().manual_seed(seed)
    population_size = num_examples_of(problem.train)
    num_examples = min(options.num_examples or population_size, population_size)
    estimates = _of_single_examples(problem, params, options, num_examples, generator, report)
    report("largest eigenvalue")
    wanted = max(options.sharpness_examples or population_size, num_examples)
    estimates |= _along_the_top(
        problem, params, options, min(wanted, population_size), generator=generator
    )
    if options.descent:
        report("noise scale")
        estimates |= _descent(problem, params, options, num_examples, generator)
    unmeasured = undefined(num_samples=0)
    values = {
        name: estimates.get(name, unmeasured).value
        for name in dict.fromkeys(itertools.chain(*MADE_OF.values()))
    }
    return StabilityConstants(
        **values,
        num_examples=num_examples,
        population_size=population_size,
        estimates=estimates,
    )


def _of_single_examples(
    problem: Problem,
    params: Params | None,
    options: StabilityOptions,
    num_examples: int,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> dict[str, Estimate]:
    """β, tr H and s², from the Gauss–Newton matrices of single examples."""
    objective, sample = _of_subset(problem, params, options, num_examples, generator)
    report("curvature of single examples")
    each = ExampleCurvature(objective)
    for note in (*each.notes, *objective.notes):
        report(note)
    mean_of_squares, mean = each.squares_matvec, each.matvec
    deviation = _top(
        lambda vector: mean_of_squares(vector) - mean(mean(vector)), objective, generator
    )
    largest, traces = float(each.largest_each().max()), each.traces()
    return {
        "largest_example": exact(largest)
        if sample.remaining == 0
        else Estimate(
            value=largest, stderr=math.nan, low=largest, high=math.inf, num_samples=num_examples
        ),
        "trace": _with_error(float(traces.mean()), traces, sample),
        "square_deviation": _with_error(
            max(float(deviation.values[0]), 0.0),
            each.deviation_forms(deviation.vectors[0]),
            sample,
        ),
    }


def _along_the_top(
    problem: Problem,
    params: Params | None,
    options: StabilityOptions,
    num_examples: int,
    *,
    generator: torch.Generator,
) -> dict[str, Estimate]:
    """λ and κ, from more examples: they take products with the mean matrix alone."""
    seed = int(torch.randint(2**31, (), generator=generator))
    measured = measure_sharpness(
        problem,
        params,
        SharpnessOptions(num_examples=num_examples, ggn=True, param_filter=options.param_filter),
        seed=seed,
    )
    top = measured.largest
    assert top is not None
    name = type(problem.model).__name__
    if not top.converged:
        raise MeasurementError(
            f"{name}: the largest eigenvalue has not converged in {measured.num_matvecs} products"
        )
    if not top.value.value > 0:
        raise MeasurementError(
            f"{name}: its Gauss–Newton matrix is zero here, so nothing is unstable"
        )
    # the examples that λ was measured on
    same = torch.Generator().manual_seed(seed)
    objective, sample = _of_subset(problem, params, options, num_examples, same)
    forms = ExampleCurvature(objective).forms(measured.pairs["largest"].vectors[0])
    return {"sharpness": top.value, "concentration": _concentration(forms, sample)}


def _concentration(forms: Tensor, sample: Sample) -> Estimate:
    """κ = mean (vᵀH_i v)²/λ² of the examples' vᵀH_i v (n,)."""
    value = float(forms.square().mean() / forms.mean() ** 2)
    # to first order, what each example adds to κ
    scaled = forms / forms.mean()
    estimate = _with_error(value, scaled.square() - 2 * value * scaled, sample)
    return replace(estimate, low=max(estimate.low, 1.0))  # which κ cannot be below


def _with_error(value: float, parts: Tensor, sample: Sample) -> Estimate:
    """A positive number with the sampling error that its examples' parts (n,) give it.

    parts: what each adds, so that the mean of all moves with the number to first order.
    """
    if sample.remaining == 0:
        return exact(value, num_samples=sample.num_examples)
    stderr = float(parts.std()) * sample.mean_factor**0.5
    return between(value, value, stderr, num_samples=sample.num_examples, one_sign=True)


def _of_subset(
    problem: Problem,
    params: Params | None,
    options: StabilityOptions,
    num_examples: int,
    generator: torch.Generator,
) -> tuple[Objective, Sample]:
    """The mean loss of a random subset of the training examples, and what it is a sample of."""
    selected = select(problem, num_examples=num_examples, generator=generator)
    objective = Objective(
        problem, params, examples=held(selected.examples), param_filter=options.param_filter
    )
    sample = Sample(
        num_examples=num_examples,
        population_size=selected.population_size,
        population="dataset",
    )
    return objective, sample


def _descent(
    problem: Problem,
    params: Params | None,
    options: StabilityOptions,
    num_examples: int,
    generator: torch.Generator,
) -> dict[str, Estimate]:
    """ε_max and B_noise, nothing where B_noise is not positive."""
    noise = measure_noise(
        problem,
        params,
        num_examples=num_examples,
        hessian=True,
        param_filter=options.param_filter,
        generator=generator,
    )
    if noise.full is None or noise.curvature is None or not noise.full.value > 0:
        return {}
    return {"best_rate": noise.curvature.max_learning_rate, "noise_batch_size": noise.full}


def simulate_threshold(
    problem: Problem,
    params: Params | None = None,
    *,
    batch_size: int,
    constants: StabilityConstants,
    param_filter: tuple[str, ...] | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    """The learning rate above which SGD diverges almost surely at this batch size, by simulation.

    See `noisescale.measure.curvature.linear_sgd.lyapunov_rate`. Two to four replicas draw from all
    training examples and start from the top eigenvector of their Gauss–Newton matrix; the threshold
    is sought from half the lower curve to 16 times 2/λ.

    Args:
        problem: the model, its loss and its training examples.
        params: θ by name, at which SGD is linearised; None: the model's own.
        batch_size: B, the examples of a step.
        constants: `measure_stability` at the same parameters, for the range that is searched.
        param_filter: as in `StabilityOptions`.
        generator: of the batches and the start, on the CPU; None: seeded with the batch size.

    Returns:
        The threshold with the interval that the chance of the batches leaves it; nan with bounds
        where it lies beyond the range.

    Raises:
        MeasurementError: the top eigenvector cannot be found, or the model gives more than 128
            numbers for an example.
    """
    generator = generator or torch.Generator().manual_seed(batch_size)
    population_size = num_examples_of(problem.train)
    objective = Objective(problem, params, param_filter=param_filter)
    subset = held(select(problem, num_examples=min(4 * NUM_EXAMPLES, population_size)).examples)
    matvec = ggn_matvec(problem, params, examples=subset, param_filter=param_filter)
    start = _top(matvec, objective, generator).vectors[0]
    low = constants.curves["lower"].rate(batch_size, population_size=population_size)
    return lyapunov_rate(
        LinearisedSGD(objective),
        start,
        batch_size=batch_size,
        low=0.5 * low,
        high=32 / constants.sharpness,
        num_replicas=max(FEWEST_REPLICAS, min(MOST_REPLICAS, 64 // batch_size)),
        num_steps=max(FEWEST_STEPS, min(MOST_STEPS, SIMULATED // batch_size)),
        generator=generator,
    )


@dataclass(frozen=True)
class _OnObjective:
    """A product with vectors in an objective's parameters, as an operator that knows its space."""

    matvec: MatVec
    objective: Objective

    @property
    def dim(self) -> int:
        return self.objective.dim

    @property
    def dtype(self) -> torch.dtype:
        return self.objective.dtype

    @property
    def device(self) -> torch.device:
        return self.objective.device

    @property
    def coarsest_dtype(self) -> torch.dtype:
        return self.objective.coarsest_dtype

    def __call__(self, vector: Tensor) -> Tensor:
        return self.matvec(vector)


def _top(matvec: MatVec, objective: Objective, generator: torch.Generator) -> EigenPairs:
    """The largest eigenpair; MeasurementError where it does not converge."""
    pairs = top_eigenpairs(_OnObjective(matvec, objective), generator=generator)
    if not pairs.converged:
        raise MeasurementError(
            f"{objective.name}: the largest eigenvalue has not converged in "
            f"{pairs.num_matvecs} products"
        )
    return pairs
