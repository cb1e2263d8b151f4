"""Noise where a run passes given losses, so that runs of any kind are compared at equal loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from noisescale import NoiseScale, Problem, measure_noise
from noisescale.problems.problem import num_examples_of
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.trainer import Training

NEAR = 0.1  # of a goal, up or down: looks within it count as at this loss
LOOKS = 16  # while the number of updates doubles: some five within ± 10 % of a loss


def sparse_looks(
    training: Training, curve: LossCurve, *, besides: Collection[int] = ()
) -> Iterator[tuple[int, float]]:
    """Trains, and gives step and loss of looks that grow apart with the number of updates.

    From step 0 on each, later one after each sixteenth of the updates made, at the end, and after
    the updates `besides`.
    """
    yield 0, curve.look(0, training.model)
    due = 1
    for step in training:
        if step >= due or step in besides or training.finished:
            if step >= due:
                due = step + max(1, step // LOOKS)
            yield step, curve.look(step, training.model)


def looks_at(
    training: Training, curve: LossCurve, goals: Sequence[float]
) -> Iterator[tuple[int, float, float]]:
    """Trains until it is below all goals, and gives each look near one of them.

    A look is its step, its loss and the goal.
    """
    for step, loss in sparse_looks(training, curve):
        for goal in goals:
            if abs(loss / goal - 1) <= NEAR:
                yield step, loss, goal
        if loss < (1 - NEAR) * min(goals):
            return


def current(training: Training) -> Problem:
    """The problem with the model as it is."""
    return replace(training.problem, model=training.model)


def noise_at(training: Training, *, num_examples: int, hessian_examples: int = 0) -> dict[str, Any]:
    """|G|² and tr Σ of the model as it is, on random training examples.

    The subset is drawn from the run's seed and the step: looks of a run have subsets of their own,
    and runs of one seed at one step the same. With examples for the Hessian, GᵀHG and tr(HΣ) too.

    Args:
        training: as far as it has come.
        num_examples: measured on, or all where there are fewer.
        hessian_examples: for the Hessian; 0: it is not measured.
    """
    problem = current(training)
    noise = measure_noise(
        problem,
        num_examples=min(num_examples, num_examples_of(problem.train)),
        hessian=hessian_examples > 0,
        hessian_examples=hessian_examples or None,
        num_probes=8,  # their spread is below that of the looks
        seed=independent_seed("noise", training.config.seed, training.step),
    )
    return values_of(noise)


def values_of(noise: NoiseScale) -> dict[str, Any]:
    """What a look keeps: |G|², tr Σ and, where they were measured, GᵀHG and tr(HΣ)."""
    found = {
        "squared_gradient_norm": noise.squared_gradient_norm.value,
        "gradient_variance": noise.gradient_variance.value,
    }
    if noise.curvature is not None:
        found["gradient_curvature"] = noise.curvature.gradient_curvature.value
        found["hessian_covariance_trace"] = noise.curvature.covariance_trace.value
    return found
