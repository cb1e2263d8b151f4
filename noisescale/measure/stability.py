"""What predicts the stability of SGD at one parameter vector, as one record."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noisescale.errors import MeasurementError
from noisescale.measure.curvature.eigenpairs import EigenPairs, top_eigenpairs
from noisescale.measure.curvature.example_curvature import ExampleCurvature
from noisescale.measure.curvature.linear_sgd import LinearisedSGD, lyapunov_rate
from noisescale.measure.curvature.products import ggn_matvec
from noisescale.measure.noise import measure_noise, with_settings
from noisescale.measure.objective import Objective
from noisescale.problems.problem import MatVec, Params, Problem, held, num_examples_of
from noisescale.problems.sampling import select
from noisescale.statistics.estimate import Estimate
from noisescale.statistics.stability_curves import StabilityConstants

# Whose own Gauss–Newton matrices are looked at, each at the price of a backward pass per output
NUM_EXAMPLES = 1000
# Examples that a replica of linearised SGD sees, within the limits below: half a pass over MNIST
SIMULATED = 30_000
# Steps: enough for an exponent, whose bias falls as 1/steps; small batches would otherwise take
# thousands
FEWEST_STEPS, MOST_STEPS = 60, 500
# Replicas: two are the fewest that have a spread; large batches, which differ less, cost more
FEWEST_REPLICAS, MOST_REPLICAS = 2, 4


@dataclass(frozen=True, kw_only=True)
class StabilityOptions:
    """What `measure_stability` measures, of which examples.

    Attributes:
        num_examples: look at a random subset of this many training examples, one by one; None, or
            more than there are: at all. β, the largest of their λ_max(H_i), can only grow with more
            of them.
        descent: whether to measure ε_max and B_noise as well, with the Hessian on examples of their
            own.
    """

    num_examples: int | None = NUM_EXAMPLES
    descent: bool = True


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
        options: what to measure, of which examples; None: everything, of 1,000.
        seed: of the subset and of every random start and probe.
        report: is told what is being computed.
        generator: draws the random numbers instead of a new one under `seed`; on the CPU.
        **settings: fields of `StabilityOptions` one by one, such as `descent=False`. A field that
            `options` sets to other than its default cannot be given here again.

    Returns:
        The constants, of which `StabilityConstants.curves` makes the curves; ε_max and B_noise are
        nan without `descent`, and where B_noise is not positive.

    Raises:
        SettingError: an option is given twice.
        MeasurementError: λ cannot be found or is zero, or the model gives more than 128 numbers for
            an example.
    """
    options = with_settings(options or StabilityOptions(), settings)
    report = report or (lambda activity: None)
    generator = generator or torch.Generator().manual_seed(seed)
    population_size = num_examples_of(problem.train)
    num_examples = options.num_examples
    if num_examples is not None:
        num_examples = min(num_examples, population_size)
    examples = held(select(problem, num_examples=num_examples, generator=generator).examples)
    objective = Objective(problem, params, examples=examples)

    report("curvature of single examples")
    each = ExampleCurvature(objective)
    for note in (*each.notes, *objective.notes):
        report(note)
    report("largest eigenvalue")
    top = _top(each.matvec, objective, generator)
    sharpness = float(top.values[0])
    if not sharpness > 0:
        raise MeasurementError(
            f"{objective.name}: its Gauss–Newton matrix is zero here, so nothing is unstable"
        )
    mean_of_squares, mean = each.squares_matvec, each.matvec
    deviation = _top(
        lambda vector: mean_of_squares(vector) - mean(mean(vector)), objective, generator
    )
    best_rate = noise_batch_size = math.nan
    if options.descent:
        report("noise scale")
        noise = measure_noise(
            problem, params, num_examples=num_examples, hessian=True, generator=generator
        )
        if noise.full is not None and noise.curvature is not None and noise.full.value > 0:
            noise_batch_size = noise.full.value
            best_rate = noise.curvature.max_learning_rate.value
    return StabilityConstants(
        sharpness=sharpness,
        concentration=float(each.forms(top.vectors[0]).square().mean()) / sharpness**2,
        largest_example=float(each.largest_each().max()),
        trace=float(each.traces().mean()),
        square_deviation=max(float(deviation.values[0]), 0.0),
        best_rate=best_rate,
        noise_batch_size=noise_batch_size,
        num_examples=examples.num_examples,
    )


def simulate_threshold(
    problem: Problem,
    params: Params | None = None,
    *,
    batch_size: int,
    constants: StabilityConstants,
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
    objective = Objective(problem, params)
    subset = held(select(problem, num_examples=min(4 * NUM_EXAMPLES, population_size)).examples)
    start = _top(ggn_matvec(problem, params, examples=subset), objective, generator).vectors[0]
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
