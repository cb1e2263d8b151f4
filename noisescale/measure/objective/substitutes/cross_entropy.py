"""Cross-entropy whose second derivative is written down, not differentiated out of a softmax."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

# Classes from which on it is used: a product with the Hessian of a layer that gives so many takes a
# quarter less, and its graph holds the logits alone; of fewer, as digits have, little is to be won
LARGE_VOCABULARY = 256


class ClosedForms(TorchFunctionMode):
    """A context in which cross-entropy of many classes is computed by `cross_entropy`.

    Wherever it is called, by whatever name it was imported. Calls that it does not cover, with
    class weights, smoothed labels or probabilities as targets, are torch's own.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The function's value, of this one or of torch's own."""
        keywords = dict(kwargs or {})
        if func is functional.cross_entropy:
            losses = cross_entropy(*args, **keywords)
            if losses is not None:
                return losses
        return func(*args, **keywords)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor | None:
    """Cross-entropy of logits, as torch.nn.functional's; None where it does not cover the call.

    Args:
        input: logits (B, V, ...).
        target: classes (B, ...).
        weight: of classes, not covered.
        size_average: as in torch, not covered.
        ignore_index: a class whose examples do not count.
        reduce: as in torch, not covered.
        reduction: "none", "sum", or "mean" over the examples that count.
        label_smoothing: other than 0 is not covered.
    """
    if weight is not None or size_average is not None or reduce is not None or label_smoothing:
        return None
    if reduction not in ("none", "sum", "mean") or not _covers(input, target):
        return None
    counted = target != ignore_index
    classes = target.where(counted, 0)
    if not ((classes >= 0) & (classes < input.shape[1])).all():
        return None  # torch names the class that there is none of
    logits = input.movedim(1, -1).reshape(-1, input.shape[1])  # (n, V)
    weights = counted.flatten().to(logits)
    losses: Tensor = _Losses.apply(logits, classes.flatten()) * weights
    if reduction == "none":
        return losses.view_as(target)
    return losses.sum() if reduction == "sum" else losses.sum() / weights.sum()


def _covers(input: Tensor, target: Tensor) -> bool:
    """Whether these are plain logits of many classes, and classes."""
    return (
        input.dim() >= 2
        and input.shape[1] >= LARGE_VOCABULARY
        and input.dtype in (torch.float32, torch.float64)
        and target.dtype == torch.int64
        and target.shape == input.shape[:1] + input.shape[2:]
        and target.numel() > 0
        # within torch.func's transformations no value can be looked at
        and not torch._C._are_functorch_transforms_active()
    )


class _Losses(torch.autograd.Function):
    """ℓ_i = log Σ_v exp z_iv − z_iy of logits z (n, V) and classes y (n,): (n,)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor) -> Tensor:
        ctx.save_for_backward(logits, classes)
        return logits.logsumexp(1) - logits.gather(1, classes[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, *weights: Tensor) -> tuple[Tensor, None]:
        logits, classes = ctx.saved_tensors
        gradient: Tensor = _Gradient.apply(logits, classes, *weights)
        return gradient, None


class _Gradient(torch.autograd.Function):
    """w_i (p_i − e_y), p the softmax of the logits (n, V), with weights w (n,): (n, V).

    Along u its derivative is w_i (p_i∘u_i − p_i (p_i·u_i)), which takes no graph through the
    softmax. That is computed anew from the logits, the one matrix of this size that is kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(logits, classes, weights)
        gradient = logits.softmax(1).mul_(weights[:, None])
        return gradient.scatter_add_(1, classes[:, None], -weights[:, None])

    @staticmethod
    def backward(ctx: Any, *directions: Tensor) -> tuple[Tensor, None, Tensor | None]:
        logits, classes, weights = ctx.saved_tensors
        (along,) = directions
        shares = logits.softmax(1)
        means = (shares * along).sum(1)  # p_i·u_i (n,)
        by_logits = shares * (along - means[:, None]) * weights[:, None]
        by_weights = None
        if ctx.needs_input_grad[2]:
            by_weights = means - along.gather(1, classes[:, None])[:, 0]
        return by_logits, None, by_weights
