"""Sums of per-example gradients and of their squares, coordinate by coordinate, over folds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import MeasurementError
from noisescale.measure.distributed import Share
from noisescale.measure.gradients.choice import EngineChoice
from noisescale.measure.gradients.engine import Engine, EngineName
from noisescale.measure.objective import Objective, flatten
from noisescale.problems.problem import Examples
from noisescale.statistics.gradient_noise.sign import FOLDS, SignNoise, sign_noise
from noisescale.statistics.sample import Sample

FEWEST = 2 * FOLDS  # examples, two in each fold
AGREE = 1e-3  # of the norm: what two passes in float32 may differ by


def measure_sign(
    objective: Objective,
    *,
    mean: Tensor,
    engine: EngineName,
    sample: Sample,
    generator: torch.Generator,
) -> SignNoise:
    """The noise in the geometry of sign descent, in a pass of its own over the examples.

    Its memory is that of 16 gradients in float64, however many examples there are.

    Args:
        objective: the point and the examples, 16 or more without weights.
        mean: ḡ (P,), which the sums must have.
        engine: that fits the model.
        sample: what the examples are a sample of.
        generator: of which example is in which fold.

    Raises:
        MeasurementError: sums that are not those of the mean gradient.
    """
    n = objective.num_examples
    assert not objective.is_weighted, "refused before"
    fold_of = torch.randperm(n, generator=generator) % FOLDS  # (n,)
    share = Share(n)
    own = fold_of[share.rows]
    of_share = objective.differentiated_once().part(objective.examples.subset(share.rows))
    chosen = EngineChoice(engine, of_share).make(of_share)
    sums = torch.zeros(2, FOLDS, objective.dim, dtype=torch.float64)  # of g, of g²
    for fold in range(FOLDS):
        rows = (own == fold).nonzero().squeeze(1)
        if len(rows):
            sums[:, fold] = _sums(of_share.part(of_share.examples.subset(rows)), chosen)
    sums = share.sum(sums)
    total = sums[0].sum(0)
    agree = max(AGREE, torch.finfo(objective.coarsest_dtype).eps)
    size = mean.norm().cpu() + sums[1].sum().sqrt() / n  # of the mean, and of its noise
    if (total / n - mean.cpu()).norm() > agree * size:
        raise MeasurementError(
            f"{objective.name}: sums of its gradients are not those of the pass before, as where a "
            "forward pass is random"
        )
    counts = np.bincount(fold_of.numpy(), minlength=FOLDS)
    return sign_noise(sums[0].numpy(), sums[1].numpy(), counts, sample=sample)


def _sums(objective: Objective, chosen: Engine) -> Tensor:
    """Σ g_i and Σ g_i² of the objective's examples, (2, P), float64."""
    sums = torch.zeros(2, objective.dim, dtype=torch.float64)

    def add(chunk: Examples, start: int) -> None:
        of_chunk = chosen.coordinate_sums(chunk)
        for total, parts in zip(sums, of_chunk, strict=True):
            total += flatten(list(parts)).double().cpu()

    objective.for_each_chunk(add)
    return sums
