"""The losses of each example that configurations name."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisescale.problems.config import LossName
from noisescale.problems.problem import LossFn

# outputs (B, C), classes (B,), weights (B,) -> losses (B,), the gradient (B, C) of Σ weights·losses
LossGradient = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
aten = torch.ops.aten


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(logits)[class] of each example, in nats: (B, C), (B,) -> (B,)."""
    return F.cross_entropy(outputs, targets, reduction="none")


def sequence_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean over each sequence's T symbols of −log softmax(logits)[symbol], in nats.

    Args:
        outputs: logits (B, T, C).
        targets: the symbols (B, T), as indices.

    Returns:
        The losses (B,): divided by ln 2, bits per symbol.
    """
    each: Tensor = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
    return each.view(targets.shape).mean(1)  # (B·T,) -> (B,)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ Σ_c (output_c − [c = target])² of each example: outputs (B, C), classes (B,) -> (B,).

    Half the sum, neither the mean over classes nor without the half, so that the loss has unit
    curvature in each output: the convention of Cohen et al. 2021 (arXiv 2103.00065), five times
    `mse_loss` at C = 10.
    """
    return 0.5 * (outputs - _one_hot(outputs, targets)).square().sum(1)


def _one_hot(outputs: Tensor, targets: Tensor) -> Tensor:
    """1 where an output (B, C) is of its example's class (B,), else 0, in the outputs' dtype."""
    classes = torch.arange(outputs.shape[1], device=outputs.device)
    return (targets.unsqueeze(1) == classes).to(outputs.dtype)


def cross_entropy_gradient(
    outputs: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The losses (B,), and the gradient (B, C) of Σ weights·losses, bit for bit autograd's.

    By the operations that autograd calls, without the time it takes to record them.

    Args:
        outputs: logits (B, C).
        targets: classes (B,), int64.
        weights: (B,).
    """
    logs = outputs.log_softmax(1)
    losses, total = aten.nll_loss_forward(logs, targets, None, 0, -100)
    slopes = aten.nll_loss_backward(weights, logs, targets, None, 0, -100, total)
    return losses, aten._log_softmax_backward_data(slopes, logs, 1, outputs.dtype)


def squared_error_gradient(
    outputs: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """As `cross_entropy_gradient`, of `squared_error`."""
    misses = outputs - _one_hot(outputs, targets)
    return 0.5 * misses.square().sum(1), misses * weights.unsqueeze(1)


LOSSES: dict[LossName, LossFn] = {"cross_entropy": cross_entropy, "mse": squared_error}
GRADIENTS: dict[LossFn, LossGradient] = {
    cross_entropy: cross_entropy_gradient,
    squared_error: squared_error_gradient,
}


def gradient_of(loss: LossFn) -> LossGradient | None:
    """How a loss's gradient at the outputs is known without autograd; None: it is not."""
    if type(loss) is not nn.CrossEntropyLoss:
        return GRADIENTS.get(loss) if isinstance(loss, Hashable) else None
    settings = (loss.weight, loss.reduction, loss.ignore_index, loss.label_smoothing)
    is_plain = settings == (None, "none", -100, 0.0)
    is_altered = loss._forward_hooks or loss._forward_pre_hooks or loss._backward_hooks
    return cross_entropy_gradient if is_plain and not is_altered else None


def chance_loss(name: LossName, targets: Tensor) -> float:
    """The mean loss of the best output that is the same for every example.

    Args:
        name: of the loss.
        targets: classes (n,), or symbols (n, T), whose losses are means over each sequence.
    """
    classes = targets.flatten()
    shares = torch.bincount(classes).double() / len(classes)
    if name == "mse":
        return 0.5 * float((shares * (1 - shares)).sum())
    return float(torch.special.entr(shares).sum())
