"""The gradient of a first linear layer along the principal components of what it is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples
from noisescale.statistics.gradient_noise import noise_scale
from noisescale.statistics.sample import Sample

if TYPE_CHECKING:
    import pandas as pd

AGREE = 1e-3  # of the norm: what two passes in float32 may differ by
WIDEST = 4096  # inputs, of whose covariance the eigenvectors take a minute


def first_linear(objective: Objective) -> str | None:
    """The name of the linear layer that is registered first, where its weight is differentiated.

    None where the first module that has parameters of its own is another.
    """
    for name, module in objective.model.named_modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        is_chosen = f"{name}.weight".lstrip(".") in objective.params()
        return name if isinstance(module, nn.Linear) and is_chosen else None
    return None


def component_noise(
    objective: Objective, layer: str, mean: Tensor, sample: Sample
) -> pd.DataFrame | None:
    """|G|², tr Σ and B_simple of a linear layer's weights along groups of principal components.

    In an orthonormal basis v_k of its inputs x an example's gradient δ xᵀ has the columns
    δ (v_k·x), and |G|² and tr Σ are sums over k. The basis is that of the inputs' covariance, by
    falling variance; its groups are 1, 2, 3 to 4, 5 to 8 and so on.

    Args:
        objective: the examples, and where.
        layer: the name of the layer.
        mean: the mean gradient of its weight (h, d), float64.
        sample: which part of which population the examples are.

    Returns:
        A row for each group: first and last component, their share of the inputs' variance, and
        |G|², tr Σ and B_simple with their errors. None where inputs are no table (B, d), where the
        layer is used several times, or its weight elsewhere too, and where it is wider than 4,096.
    """
    num_inputs = mean.shape[1]
    if num_inputs > WIDEST:
        return None
    total = torch.zeros(num_inputs, dtype=torch.float64, device=mean.device)
    square = torch.zeros(num_inputs, num_inputs, dtype=torch.float64, device=mean.device)

    def add_inputs(chunk: Examples, start: int) -> None:
        with torch.no_grad():
            inputs, _ = _seen(objective, layer, chunk)
            total.add_(inputs.sum(0))
            square.add_(inputs.T @ inputs)

    try:
        objective.for_each_chunk(add_inputs)
    except _NoTable:
        return None
    n = objective.num_examples
    variances, basis = torch.linalg.eigh(square / n - torch.outer(total, total) / n**2)
    variances, basis = variances.flip(0).clamp(min=0), basis.flip(1)  # (d,), (d, d)
    groups = _groups(num_inputs)
    member = torch.zeros(num_inputs, len(groups), dtype=torch.float64, device=mean.device)
    for column, (first, last) in enumerate(groups):
        member[first - 1 : last, column] = 1
    means = mean @ basis  # (h, d)
    squares, projections = [], []
    through_layer = torch.zeros_like(mean)  # (h, d), the sum of the gradients δ xᵀ

    def add_gradients(chunk: Examples, start: int) -> None:
        inputs, signals = _seen(objective, layer, chunk)
        along = inputs @ basis  # (B, d)
        squared = (signals.square().sum(1, keepdim=True) * along.square()) @ member
        projections.append((along * (signals @ means)) @ member)
        squares.append(squared)
        through_layer.add_(signals.T @ inputs)

    objective.for_each_chunk(add_gradients)
    size = mean.norm() + torch.cat(squares).sum().sqrt() / n  # of the mean, and of its noise
    off = (through_layer / n - mean).norm()
    if off > max(AGREE, torch.finfo(objective.coarsest_dtype).eps) * size:
        return None  # the loss has the weight from elsewhere too
    noise = noise_scale(
        torch.cat(squares).cpu().numpy(),
        torch.cat(projections).cpu().numpy(),
        (means.square().sum(0) @ member).cpu().numpy(),
        population=sample.population,
        population_size=sample.population_size,
        names=[f"{first}–{last}" if last > first else str(first) for first, last in groups],
    )
    rows = noise.per_layer
    assert rows is not None, "there are names"
    shares = (variances @ member / variances.sum().clamp(min=torch.finfo(torch.float64).tiny)).cpu()
    rows.insert(0, "input_variance", np.asarray(shares))
    rows.insert(0, "last", [last for _, last in groups])
    rows.insert(0, "first", [first for first, _ in groups])
    return rows.drop(columns=["parameter", "num_examples"])


def _groups(count: int) -> list[tuple[int, int]]:
    """First and last component, from 1, of groups that double: 1, 2, 3–4, 5–8 and so on."""
    groups, first, size = [], 1, 1
    while first <= count:
        groups.append((first, min(first + size - 1, count)))
        first += size
        size = max(first - 1, 1)
    return groups


class _NoTable(Exception):
    """A layer is not used once, or on other than a table (B, d)."""


def _seen(objective: Objective, layer: str, chunk: Examples) -> tuple[Tensor, Tensor]:
    """A layer's inputs (B, d) and the loss's gradient by its outputs (B, h), float64.

    The gradient is zero where gradients are not enabled.
    """
    uses: list[tuple[Tensor, Tensor]] = []
    params = objective.params()
    model = objective.instance(params)

    def note(module: nn.Module, arguments: tuple[Tensor, ...], returned: Tensor) -> Tensor:
        uses.append((arguments[0], returned))
        return returned.clone()  # which what follows may change in place

    handle = model.get_submodule(layer).register_forward_hook(note)
    try:
        outputs = objective.call(model, chunk.inputs)
    finally:
        handle.remove()
    if len(uses) != 1 or uses[0][0].ndim != 2 or len(uses[0][0]) != chunk.num_examples:
        raise _NoTable
    ((inputs, returned),) = uses
    signals = torch.zeros_like(returned)
    if returned.requires_grad:
        losses = objective.losses(outputs, chunk.targets, params)
        (signals,) = torch.autograd.grad(losses.sum(), returned)
    return inputs.detach().double(), signals.double()
