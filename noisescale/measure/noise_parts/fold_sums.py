"""Sums of per-example gradients and of their squares, coordinate by coordinate, over folds."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.distributed import Share
from noisescale.measure.gradients.choice import EngineChoice
from noisescale.measure.gradients.engine import Engine, EngineName
from noisescale.measure.objective import Objective, flatten
from noisescale.problems.problem import Examples
from noisescale.statistics.gradient_noise.sign import FOLDS, FoldWeights, SignNoise, sign_noise
from noisescale.statistics.sample import Sample

FEWEST = 2 * FOLDS  # examples, two in each fold
AGREE = 1e-3  # of the norm: what two passes in float32 may differ by


def check_enough(objective: Objective) -> None:
    """SettingError where the noise of the sign takes more examples.

    Args:
        objective: of the examples.
    """
    weights = objective.relative_weights()
    number = objective.num_examples if weights is None else int((weights > 0).sum())
    if number < FEWEST:
        what = "examples" if weights is None else "examples whose weight is above zero"
        raise SettingError(f"{number} {what}: the noise of the sign takes {FEWEST} or more")


def measure_sign(
    objective: Objective,
    *,
    mean: Tensor,
    engine: EngineName,
    sample: Sample,
    generator: torch.Generator,
) -> SignNoise:
    """The noise in the geometry of sign descent, in a pass of its own over the examples.

    Its memory is that of 16 gradients in float64, with weights of 24, however many examples there
    are.

    Args:
        objective: the point and the examples, as many as `check_enough` wants.
        mean: ḡ (P,), which the sums must have.
        engine: that fits the model.
        sample: what the examples are a sample of.
        generator: of which example is in which fold.

    Raises:
        MeasurementError: sums that are not those of the mean gradient.
    """
    n = objective.num_examples
    fold_of = torch.randperm(n, generator=generator) % FOLDS  # (n,)
    share = Share(n)
    own = fold_of[share.rows]
    of_share = objective.differentiated_once().part(objective.examples.subset(share.rows))
    chosen = EngineChoice(engine, of_share).make(of_share)
    # of r g, of r² g² and, where examples have weights r, of r² g
    sums = torch.zeros(2 + objective.is_weighted, FOLDS, objective.dim, dtype=torch.float64)
    for fold in range(FOLDS):
        rows = (own == fold).nonzero().squeeze(1)
        if len(rows):
            part = of_share.part(of_share.examples.subset(rows))
            sums[:2, fold] = _sums(part, chosen)
            if (relative := part.relative_weights()) is not None:
                _, gradients = part.weighted_gradients(relative[None].to(part.point))
                sums[2, fold] = gradients[0].double().cpu()
    sums = share.sum(sums)
    total = sums[0].sum(0)
    agree = max(AGREE, torch.finfo(objective.coarsest_dtype).eps)
    size = mean.norm().cpu() + sums[1].sum().sqrt() / n  # of the mean, and of its noise
    if (total / n - mean.cpu()).norm() > agree * size:
        raise MeasurementError(
            f"{objective.name}: sums of its gradients are not those of the pass before, as where a "
            "forward pass is random"
        )
    weights = objective.relative_weights()
    return sign_noise(
        sums[0].numpy(),
        sums[1].numpy(),
        _by_fold(fold_of, torch.ones(n, dtype=torch.int64)),
        sample=sample,
        weights=None
        if weights is None
        else FoldWeights(
            relative=_by_fold(fold_of, weights),
            squares=_by_fold(fold_of, weights.square()),
            twice=sums[2].numpy(),
        ),
    )


def _by_fold(fold_of: Tensor, values: Tensor) -> np.ndarray:
    """The sums (K,) of values (n,) over folds."""
    return torch.zeros(FOLDS, dtype=values.dtype).index_add_(0, fold_of, values).numpy()


def _sums(objective: Objective, chosen: Engine) -> Tensor:
    """Σ g_i and Σ g_i² of the objective's examples, (2, P), float64."""
    sums = torch.zeros(2, objective.dim, dtype=torch.float64)

    def add(chunk: Examples, start: int) -> None:
        of_chunk = chosen.coordinate_sums(chunk)
        for total, parts in zip(sums, of_chunk, strict=True):
            total += flatten(list(parts)).double().cpu()

    objective.for_each_chunk(add)
    return sums
