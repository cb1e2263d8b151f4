"""Curvature along the gradients of batches: of a batch's own loss, and of the whole loss."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.products import CurvatureProduct, record_hessian
from noisescale.measure.objective import Objective
from noisescale.problems.problem import MatVec, Source
from noisescale.statistics.estimate import Estimate, exact, from_samples


def batch_sharpness(
    objective: Objective,
    *,
    batch_size: int,
    num_batches: int = 64,
    generator: torch.Generator | None = None,
) -> Estimate:
    """E_B[g_Bᵀ H_B g_B / |g_B|²], the curvature of a batch's own loss along its own gradient.

    What settles at 2/η in training by SGD with rate η (Andreyev and Beneventano 2024, arXiv
    2412.20553). Batches whose gradient is exactly zero make no step and are left out; `num_samples`
    counts the others.

    Args:
        objective: the loss, its examples and the point.
        batch_size: B, the examples of each batch, drawn without replacement.
        num_batches: how many independent batches, 2 or more.
        generator: of the batches, on the CPU; None: seed 0.

    Returns:
        The mean over batches with the standard error of that mean; exact at batch_size = N.

    Raises:
        SettingError: a batch larger than the data, or fewer than 2 batches.
        MeasurementError: the gradient of every batch is exactly zero, or a product is not finite.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, Objective, batch_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> batch_sharpness(Objective(problem), batch_size=16)
        Estimate(0.137 ± 0.025 (0.086–0.188))
    """
    objective.check_any_company()
    ratios = []
    for batch in _batches(objective, batch_size, num_batches, generator):
        if not objective.has_weight(batch):  # whose gradient is zero
            continue
        of_batch = objective.on(batch)
        gradient = of_batch.value_and_gradient()[1]
        if gradient.any():
            ratios.append(_curvature_along(CurvatureProduct(of_batch, record_hessian), gradient))
    return _mean(ratios, objective, batch_size)


def gradient_noise_interaction(
    objective: Objective,
    matvec: MatVec,
    *,
    batch_size: int,
    num_batches: int = 16,
    generator: torch.Generator | None = None,
) -> Estimate:
    """E_B[g_Bᵀ H g_B]/|G|², the curvature of the whole loss along batch gradients.

    SGD at rate η lowers the loss on average, to second order, iff this is below 2/η. H and G are
    those of all the objective's examples, so that the batches are the only source of error.

    Args:
        objective: the loss, its examples and the point.
        matvec: the product with H at that point over all these examples, see `hessian_matvec`.
        batch_size: B, the examples of each batch, drawn without replacement.
        num_batches: how many independent batches, 2 or more.
        generator: of the batches, on the CPU; None: seed 0.

    Returns:
        The mean over batches with the standard error of that mean; exact at batch_size = N.

    Raises:
        SettingError: a batch larger than the data, or fewer than 2 batches.
        MeasurementError: the gradient over all examples is zero, or a product is not finite.

    Examples:
        >>> from noisescale import Objective, gradient_noise_interaction, hessian_matvec
        >>> from noisescale import ProblemConfig, build_problem
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> gradient_noise_interaction(Objective(problem), hessian_matvec(problem), batch_size=16)
        Estimate(0.89 ± 0.13 (0.61–1.17))
    """
    squared_norm = float(objective.value_and_gradient()[1].double().square().sum())
    if squared_norm == 0:
        raise MeasurementError(
            "the gradient over all examples is zero: its interaction with noise is undefined"
        )
    quadratics = []
    for batch in _batches(objective, batch_size, num_batches, generator):
        if not objective.has_weight(batch):
            quadratics.append(0.0)
            continue
        gradient = objective.on(batch).value_and_gradient()[1]
        quadratics.append(float(gradient.double() @ matvec(gradient).double()) / squared_norm)
    return _mean(quadratics, objective, batch_size)


def _batches(
    objective: Objective, batch_size: int, num_batches: int, generator: torch.Generator | None
) -> Iterator[Source]:
    """Independent batches, each without replacement; the one there is at batch_size = N."""
    num_examples = objective.num_examples
    if not 1 <= batch_size <= num_examples:
        raise SettingError(
            f"batch size {batch_size}: there are {num_examples} examples; give 1 to {num_examples}"
        )
    if num_batches < 2:
        raise SettingError(f"num batches {num_batches}: an error takes at least 2")
    if batch_size == num_examples:
        yield objective.examples
        return
    generator = generator or torch.Generator().manual_seed(0)
    for _ in range(num_batches):
        rows = torch.randperm(num_examples, generator=generator)[:batch_size]
        yield objective.examples.subset(rows)


def _curvature_along(matvec: MatVec, vector: Tensor) -> float:
    """vᵀHv/|v|², without underflow for the tiny gradients of examples that are fitted."""
    unit = vector / vector.abs().max()
    unit = unit / unit.norm()
    return float(unit.double() @ matvec(unit).double())


def _mean(values: list[float], objective: Objective, batch_size: int) -> Estimate:
    """The mean over batches with its error; exact where a batch is the whole."""
    if not values:
        raise MeasurementError(f"every batch of {batch_size} has a gradient of exactly zero")
    return exact(values[0]) if batch_size == objective.num_examples else from_samples(values)
