"""Eigenvalues of a whole split, estimated with their errors from those of a subset."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from noisescale.measure.curvature.eigenpairs import EigenPairs, top_eigenpairs
from noisescale.measure.curvature.products import CurvatureProduct
from noisescale.measure.sharpness.eigenvalue import Eigenvalue, End
from noisescale.measure.sharpness.options import SharpnessOptions, fresh_generator
from noisescale.measure.sharpness.preconditioned import PreconditionedProduct
from noisescale.statistics.estimate import Estimate, between, exact, from_stderr
from noisescale.statistics.sample import Sample

Report = Callable[[str], None]
Product = CurvatureProduct | PreconditionedProduct
# Groups of a subset's examples, whose spread gives an eigenvalue its sampling error: as few as
# leave Student's t (15 degrees of freedom, 2.13) near the normal's 1.96, since each costs products
# of its own
GROUPS = 16


def eigenvalues(
    pairs: dict[End, EigenPairs],
    operator: Product,
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
    operator: Product,
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
    objective = operator.objective
    groups = [
        rows
        for rows in _groups(sample.num_examples)
        if objective.has_weight(objective.examples.subset(rows))
    ]
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


def _curvatures(operator: Product, rows: slice, vectors: Tensor) -> Tensor:
    """vᵀHv of these examples' mean loss along each of the vectors (K, P): (K,), float64."""
    product = operator.on(operator.objective.examples.subset(rows))
    along = [float(vector.double() @ product(vector).double()) for vector in vectors]
    return torch.tensor(along, dtype=torch.float64)


def _held_out(
    pairs: EigenPairs,
    which: End,
    operator: Product,
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
            generator=fresh_generator(options),
        )
        report("sampling error")
        total += _curvatures(operator, held_out, of_half.vectors)
    return total / 2
