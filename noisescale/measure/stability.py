"""What predicts the stability of SGD at one parameter vector, as one record."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from noisescale.errors import MeasurementError
from noisescale.measure.curvature.eigenpairs import EigenPairs, top_eigenpairs
from noisescale.measure.curvature.example_curvature import ExampleCurvature
from noisescale.measure.curvature.linear_sgd import LinearisedSGD, lyapunov_rate
from noisescale.measure.curvature.products import ggn_matvec
from noisescale.measure.noise import measure_noise
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Params, Problem, as_examples
from noisescale.problems.sampling import select
from noisescale.statistics.estimate import Estimate
from noisescale.statistics.stability_curves import StabilityConstants

NUM_EXAMPLES = 1000  # whose own Gauss–Newton matrices are looked at
SIMULATED = 30_000  # examples that a replica of linearised SGD sees, within the limits below
FEWEST_STEPS, MOST_STEPS = 60, 500
FEWEST_REPLICAS, MOST_REPLICAS = 2, 4


def measure_stability(
    problem: Problem,
    params: Params | None = None,
    *,
    num_examples: int | None = NUM_EXAMPLES,
    descent: bool = True,
    generator: torch.Generator | None = None,
    report: Callable[[str], None] = lambda activity: None,
) -> StabilityConstants:
    """λ, κ, β, tr H and s² of the Gauss–Newton matrix, and ε_max and B_noise, at `params`.

    params: None: the model's own. num_examples: a random subset of so many training examples, all of which
    are looked at one by one; None, or more than there are: all. β, the largest of their λ_max(H_i), can only
    grow with more of them. descent: ε_max and B_noise as well, with the Hessian on examples of their own.
    generator: None: seed 0.

    MeasurementError where λ cannot be found or is zero, or the model gives more than 128 numbers an example.
    """
    generator = generator or torch.Generator().manual_seed(0)
    population = as_examples(problem.train).num_examples
    wanted = None if num_examples is None else min(num_examples, population)
    examples = select(problem, num_examples=wanted, generator=generator).examples
    objective = Objective(problem, params, examples=examples)
    report("curvature of single examples")
    each = ExampleCurvature(objective)
    report("largest eigenvalue")
    pairs = _top(each.matvec, objective, generator)
    sharpness = float(pairs.values[0])
    if not sharpness > 0:
        raise MeasurementError(
            f"{objective.name}: its Gauss–Newton matrix is zero here, so nothing is unstable"
        )
    squares, product = each.squares_matvec, each.matvec
    deviation = _top(
        lambda vector: squares(vector) - product(product(vector)), objective, generator
    )
    best_rate = noise_batch_size = math.nan
    if descent:
        report("noise scale")
        found = measure_noise(
            problem, params, num_examples=wanted, hessian=True, generator=generator
        )
        if found.full is not None and found.curvature is not None and found.full.value > 0:
            noise_batch_size = found.full.value
            best_rate = found.curvature.max_learning_rate.value
    return StabilityConstants(
        sharpness=sharpness,
        concentration=float(each.forms(pairs.vectors[0]).square().mean()) / sharpness**2,
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
    """The almost-sure threshold of SGD at this batch size, see `lyapunov_rate`, by 2 to 4 replicas.

    They draw from all training examples and start from the top eigenvector of their Gauss–Newton matrix; the
    threshold is sought from the lower curve to 16 times 2/λ.
    """
    generator = generator or torch.Generator().manual_seed(batch_size)
    population = as_examples(problem.train).num_examples
    objective = Objective(problem, params)
    subset = select(problem, num_examples=min(4 * NUM_EXAMPLES, population)).examples
    start = _top(ggn_matvec(problem, params, examples=subset), objective, generator).vectors[0]
    low = constants.curves["lower"].rate(batch_size, population_size=population)
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


def _top(
    matvec: Callable[[torch.Tensor], torch.Tensor], objective: Objective, generator: torch.Generator
) -> EigenPairs:
    """The largest eigenpair; MeasurementError where it does not converge."""
    pairs = top_eigenpairs(
        matvec,
        dim=objective.dim,
        dtype=objective.dtype,
        device=objective.device,
        generator=generator,
    )
    if not pairs.converged:
        raise MeasurementError(
            f"{objective.name}: the largest eigenvalue has not converged in {pairs.num_matvecs} products"
        )
    return pairs
