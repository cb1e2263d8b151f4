"""Who carries the gradient noise of the examples measured."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from noisescale.measure.gradients.moments import GradientMoments
from noisescale.measure.noise_parts.classes import Classes
from noisescale.measure.noise_parts.components import component_noise, first_linear
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples
from noisescale.statistics.gradient_noise import NoiseAnatomy, noise_anatomy
from noisescale.statistics.sample import Sample


def measure_anatomy(
    objective: Objective,
    moments: GradientMoments,
    sample: Sample,
    classes: Classes | None,
    *,
    num_items: int,
) -> NoiseAnatomy:
    """The anatomy of tr Σ.

    Args:
        objective: the examples, and where.
        moments: of their gradients, with standard errors and without weights.
        sample: which part of which population they are.
        classes: of their targets; None: these are no classes.
        num_items: in the split, behind which come their other draws.

    Raises:
        MeasurementError: all gradients are one.
    """
    total = moments.total_projections
    assert total is not None, "measured with standard errors"
    layer, components = first_linear(objective), None
    if layer is not None:
        components = component_noise(
            objective, layer, moments.mean[f"{layer}.weight".lstrip(".")], sample
        )
    return noise_anatomy(
        moments.squared_norms,
        total,
        moments.mean_squares,
        population=sample.population,
        population_size=sample.population_size,
        names=list(moments.mean),
        indices=moments.indices % num_items,
        classes=None if classes is None else classes.targets,
        within=None if classes is None else classes.deviations(),
        class_sizes=None if classes is None else classes.sizes,
        wrong=None if classes is None else _wrong(objective, classes.targets),
        components=components,
    )


@torch.no_grad()
def _wrong(objective: Objective, targets: np.ndarray) -> np.ndarray | None:
    """Which examples the model takes for another class; None where it has no outputs of classes."""
    params = objective.params()
    predicted: list[Tensor] = []

    def add(chunk: Examples, start: int) -> None:
        outputs = objective.outputs(params, chunk.inputs)
        is_table = isinstance(outputs, Tensor) and outputs.ndim == 2
        if is_table and outputs.shape[1] > max(1, targets.max()):
            predicted.append(outputs.argmax(1))

    objective.for_each_chunk(add)
    classes = torch.cat(predicted).cpu().numpy() if predicted else np.empty(0)
    return classes != targets if len(classes) == len(targets) else None
