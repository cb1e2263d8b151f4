"""The studies' models, a multilayer perceptron and a small CNN; losses; copies of any model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from types import CellType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from noisescale.errors import SettingError
from noisescale.problems.config import LossName, Norm, ProblemConfig
from noisescale.problems.problem import LossFn


def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 1024,
    depth: int = 2,
    norm: Norm = "none",
) -> nn.Sequential:
    """A fully connected ReLU network, with PyTorch's default initialisation.

    On MNIST its defaults are the three-case study's 784–1024–1024–10 with 1,863,690 parameters.

    Args:
        input_shape: of one example, such as (1, 28, 28).
        num_classes: C, how many outputs.
        width: units of each hidden layer.
        depth: how many hidden layers.
        norm: the normalisation before each activation: "none", "layer" or "batch".

    Returns:
        A model of inputs (B, *input_shape) -> logits (B, C).

    Example:
        >>> from noisescale import mlp
        >>> model = mlp((1, 28, 28), 10, width=64)
        >>> sum(parameter.numel() for parameter in model.parameters())
        55050
    """
    layers: list[nn.Module] = [nn.Flatten()]
    fan_in = math.prod(input_shape)
    for _ in range(depth):
        layers += [nn.Linear(fan_in, width), *_norm_1d(norm, width), nn.ReLU()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(fan_in, num_classes))


def cnn(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 32,
    depth: int = 2,
    norm: Norm = "none",
) -> nn.Sequential:
    """A small convolutional network, with PyTorch's default initialisation.

    Blocks of convolution 3×3, norm, ReLU and max-pooling 2×2, then one linear layer; block k, from
    0 on, has width·2ᵏ channels.

    Args:
        input_shape: of one example: channels, height, width.
        num_classes: C, how many outputs.
        width: channels of the first block.
        depth: how many blocks, each of which halves the image.
        norm: "none", "batch", or "layer", which normalises each example over its channels and
            pixels (GroupNorm with one group).

    Returns:
        A model of inputs (B, channels, height, width) -> logits (B, C).

    Raises:
        SettingError: more blocks than the image can be halved.

    Example:
        >>> import torch
        >>> from noisescale import cnn
        >>> cnn((1, 28, 28), 10)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 10])
    """
    channels, height, breadth = input_shape
    deepest = min(height, breadth).bit_length() - 1
    if depth > deepest:
        raise SettingError(
            f"depth {depth} halves a {height}×{breadth} image away: "
            f"give a depth of at most {deepest}"
        )
    layers: list[nn.Module] = []
    for block in range(depth):
        outputs = width * 2**block
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), *_norm_2d(norm, outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, height, breadth = outputs, height // 2, breadth // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * breadth, num_classes))


def build_model(
    config: ProblemConfig, input_shape: Sequence[int], num_classes: int
) -> nn.Sequential:
    """The model that `config` names; sizes left None are the model's own."""
    make: Callable[..., nn.Sequential] = {"mlp": mlp, "cnn": cnn}[config.model]
    sizes = {
        name: size for name in ("width", "depth") if (size := getattr(config, name)) is not None
    }
    return make(input_shape, num_classes, norm=config.norm, **sizes)


def _norm_1d(norm: Norm, width: int) -> list[nn.Module]:
    """The normalisation of (B, width), if any."""
    if norm == "none":
        return []
    return [nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm1d(width)]


def _norm_2d(norm: Norm, channels: int) -> list[nn.Module]:
    """The normalisation of (B, channels, H, W), if any."""
    if norm == "none":
        return []
    return [nn.GroupNorm(1, channels) if norm == "layer" else nn.BatchNorm2d(channels)]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(logits)[class] of each example, in nats: (B, C), (B,) -> (B,)."""
    return F.cross_entropy(outputs, targets, reduction="none")


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
    """The mean loss over classes (n,) of the best output that is the same for every example."""
    shares = torch.bincount(targets).double() / len(targets)
    if name == "mse":
        return 0.5 * float((shares * (1 - shares)).sum())
    return float(torch.special.entr(shares).sum())


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of any model.

    Tensors that an earlier forward pass left in it, such as the weight that
    torch.nn.utils.weight_norm computes, are copied as constants; the next pass computes them anew.

    Args:
        model: left as it is.
    """
    attributes = [vars(module) for module in model.modules()]
    computed = [
        value
        for value in tree_leaves(attributes)
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    with torch.no_grad():  # or the parameters of a ScriptModule's copy would be no leaves
        copies: dict[int, Any] = {id(value): value.detach().clone() for value in computed}
        copied = copy.deepcopy(model, copies)
    rebind_closures(copied, copies)
    for param, original in zip(copied.parameters(), model.parameters(), strict=True):
        param.requires_grad_(original.requires_grad)
    return copied


def rebind_closures(copied: nn.Module, copies: Mapping[int, Any]) -> None:
    """Lets functions that a copied model holds speak of the copy: copying leaves functions alone.

    Args:
        copied: the copy, changed in place.
        copies: of the model's parts, by the id of the originals, as copy.deepcopy notes them.
    """
    for module in copied.modules():
        hooks = [value for name, value in vars(module).items() if name.endswith("_hooks")]
        for holder in [vars(module), *(held for held in hooks if isinstance(held, dict))]:
            for name, value in list(holder.items()):
                if isinstance(value, FunctionType) and value.__closure__:
                    holder[name] = _rebound(value, copies)


def _rebound(function: FunctionType, copies: Mapping[int, Any]) -> FunctionType:
    """A function of the copy's own, where it speaks of the model: copying leaves functions alone.

    Args:
        function: with a closure, as a hook that is defined in the model's constructor.
        copies: of the model's parts, by the id of the originals.
    """
    cells = []
    for cell in function.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not yet filled
            cells.append(cell)
        else:
            cells.append(CellType(copies.get(id(content), content)))
    rebound = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        tuple(cells),
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    return rebound
