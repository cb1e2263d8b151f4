"""The losses of each example that configurations name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from noisescale.problems.config import LossName
from noisescale.problems.problem import LossFn


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
    classes = torch.arange(outputs.shape[1], device=outputs.device)
    one_hot = targets.unsqueeze(1) == classes  # (B, C)
    return 0.5 * (outputs - one_hot.to(outputs.dtype)).square().sum(1)


LOSSES: dict[LossName, LossFn] = {"cross_entropy": cross_entropy, "mse": squared_error}


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
