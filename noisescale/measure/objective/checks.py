"""Whether each example has a loss of its own, and how precisely it is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.problems.problem import Examples, Source

# Examples among which one is sought that uses the parameters, before it is said that none does
DEPENDENT = 256
# Examples whose losses are compared with those they have alone: few, since each takes a pass of its
# own
ALONE = 4

Losses = Callable[[Examples], Tensor]  # (B,) of B examples


def check_separate(losses: Losses, examples: Source, *, name: str, model: nn.Module) -> torch.dtype:
    """The coarsest dtype that the losses are computed in, once they are known to be separate.

    Args:
        losses: of any examples, at fixed parameters.
        examples: of which the first few are tried.
        name: of the model and its loss, for messages.
        model: as it was given, whose own tensors the losses do not depend on.

    Raises:
        SettingError: gradients are switched off.
        MeasurementError: an example's loss is not the same every time and in every company, does
            not depend on the parameters or beside these on the model's own, or cannot be computed.
    """
    if not torch.is_grad_enabled():
        raise SettingError(
            "gradients are switched off here, by torch.no_grad or torch.inference_mode: measure "
            "outside of it"
        )
    probe = examples.part(slice(ALONE))
    again = losses(probe).detach()  # one graph at a time
    together = losses(probe)
    more = losses(examples.part(slice(DEPENDENT))) if not together.requires_grad else together
    if not more.requires_grad:
        raise MeasurementError(f"{name} does not depend on the parameters that are to be trained")
    if not torch.equal(together, again) and together.isfinite().all():
        raise MeasurementError(f"{name} is random at fixed parameters: turn its randomness off")
    _check_ends([more], model, name)
    dtype = coarsest_dtype([more])
    together = together.detach()
    del more
    rows = range(probe.num_examples)
    alone = torch.cat([losses(probe.part(slice(row, row + 1))).detach() for row in rows])
    _check_equal(together, alone, dtype, name)
    return dtype


def check_any_company(losses: Losses, chunk: Examples, dtype: torch.dtype, *, name: str) -> None:
    """MeasurementError unless the losses of a whole chunk are those of its two halves.

    Args:
        losses: of any examples, at fixed parameters.
        chunk: as many examples as are taken in one pass.
        dtype: the coarsest that the losses are computed in.
        name: of the model and its loss, for messages.
    """
    middle = chunk.num_examples // 2
    if middle < 1:
        return
    halves = [chunk.part(slice(middle)), chunk.part(slice(middle, None))]
    apart = torch.cat([losses(half).detach() for half in halves])
    _check_equal(losses(chunk).detach(), apart, dtype, name)


def coarsest_dtype(roots: Iterable[Tensor]) -> torch.dtype:
    """The least precise floating-point dtype in the tensors' graph.

    Args:
        roots: the graph's ends, one of which at least is a floating-point tensor.
    """
    dtypes = {root.dtype for root in roots if root.is_floating_point()}
    for node in graph_nodes(roots):
        dtypes |= {entry.dtype for entry in getattr(node, "_input_metadata", ())}
    floating = [dtype for dtype in dtypes if dtype.is_floating_point]
    return max(floating, key=lambda dtype: torch.finfo(dtype).eps)


def graph_nodes(roots: Iterable[Tensor]) -> set[Any]:
    """All the backward nodes that the tensors hang on.

    Args:
        roots: the graph's ends.
    """
    pending = [root.grad_fn for root in roots if root.grad_fn is not None]
    seen: set[Any] = set(pending)
    while pending:
        for node, _ in pending.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                pending.append(node)
    return seen


def graph_bytes(roots: Iterable[Tensor]) -> int:
    """About how much the tensors' graph keeps: a tensor of each node's output.

    Args:
        roots: the graph's ends.
    """
    entries = [
        entry for node in graph_nodes(roots) for entry in getattr(node, "_input_metadata", ())
    ]
    return sum(math.prod(entry.shape) * entry.dtype.itemsize for entry in entries)


def _check_ends(roots: Iterable[Tensor], model: nn.Module, name: str) -> None:
    """MeasurementError where the tensors' graph ends in the given model's own parameters.

    Measured is a copy with other tensors in their place: what goes by the given model, as weight
    decay in a loss that holds it, would count as constant.
    """
    ends = {id(getattr(node, "variable", None)) for node in graph_nodes(roots)}
    if found := [of_model for of_model, param in model.named_parameters() if id(param) in ends]:
        raise MeasurementError(
            f"{name} uses {', '.join(found[:3])} beside what the model returns, as weight decay in "
            "the loss does: return from the model what the loss needs of its parameters"
        )


def _check_equal(found: Tensor, expected: Tensor, dtype: torch.dtype, name: str) -> None:
    """MeasurementError unless losses (B,) in different company are the same up to rounding."""
    precision = torch.finfo(dtype).eps ** 0.5
    if not torch.allclose(found, expected, rtol=precision, atol=precision, equal_nan=True):
        raise MeasurementError(
            f"{name}: an example's loss depends on which others are in the batch, so that none has "
            "a gradient of its own"
        )
