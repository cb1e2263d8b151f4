"""Models of images, a multilayer perceptron and a small CNN; and whichever a config names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from noisescale.errors import SettingError, check_memory
from noisescale.problems.config import Norm, ProblemConfig
from noisescale.problems.models.ghost_norm import GhostBatchNorm
from noisescale.problems.models.gpt import gpt


def mlp(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 1024,
    depth: int = 2,
    norm: Norm = "none",
    ghost_size: int | None = None,
) -> nn.Sequential:
    """A fully connected ReLU network, with PyTorch's default initialisation.

    On MNIST its defaults are the three-case study's 784–1024–1024–10 with 1,863,690 parameters.

    Args:
        input_shape: of one example, such as (1, 28, 28).
        num_classes: C, how many outputs.
        width: units of each hidden layer.
        depth: how many hidden layers.
        norm: the normalisation before each activation: "none", "layer", "batch", or "ghost": batch
            norm over parts of the batch, see `GhostBatchNorm`.
        ghost_size: examples in each of those parts.

    Returns:
        A model of inputs (B, *input_shape) -> logits (B, C).

    Raises:
        NotEnoughMemoryError: more weights than the memory holds.

    Examples:
        >>> from noisescale import mlp
        >>> model = mlp((1, 28, 28), 10, width=64)
        >>> sum(parameter.numel() for parameter in model.parameters())
        55050
    """
    fan_in = math.prod(input_shape)
    weights = fan_in * width + (depth - 1) * width**2 + width * num_classes
    _check_size(weights, f"an mlp of width {width:,} and depth {depth:,}")
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth):
        layers += [nn.Linear(fan_in, width), *_norm_1d(norm, width, ghost_size), nn.ReLU()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(fan_in, num_classes))


def cnn(
    input_shape: Sequence[int],
    num_classes: int,
    *,
    width: int = 32,
    depth: int = 2,
    norm: Norm = "none",
    ghost_size: int | None = None,
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
            pixels (GroupNorm with one group), or "ghost": batch norm over parts of the batch, see
            `GhostBatchNorm`.
        ghost_size: examples in each of those parts.

    Returns:
        A model of inputs (B, channels, height, width) -> logits (B, C).

    Raises:
        SettingError: more blocks than the image can be halved.
        NotEnoughMemoryError: more weights than the memory holds.

    Examples:
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
    widths = [channels, *(width * 2**block for block in range(depth))]
    weights = sum(9 * inputs * outputs for inputs, outputs in pairwise(widths))
    _check_size(weights, f"a cnn of width {width:,} and depth {depth:,}")
    layers: list[nn.Module] = []
    for block in range(depth):
        outputs = width * 2**block
        layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
        layers += [*_norm_2d(norm, outputs, ghost_size), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, height, breadth = outputs, height // 2, breadth // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * breadth, num_classes))


def _check_size(num_weights: int, what: str) -> None:
    """NotEnoughMemoryError for a model whose weights alone the memory does not hold."""
    bytes_each = 4  # of float32
    check_memory(bytes_each * num_weights, f"{what} has {num_weights:,} weights or more")


def build_model(config: ProblemConfig, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """The model that `config` names; sizes left None are the model's own."""
    names = ("width", "depth", "heads", "context")
    sizes = {name: size for name in names if (size := getattr(config, name)) is not None}
    if config.model == "gpt":
        return gpt(num_classes, tied=config.tied, **sizes)
    make: Callable[..., nn.Module] = {"mlp": mlp, "cnn": cnn}[config.model]
    return make(input_shape, num_classes, norm=config.norm, ghost_size=config.ghost_size, **sizes)


def _norm_1d(norm: Norm, width: int, ghost_size: int | None) -> list[nn.Module]:
    """The normalisation of (B, width), if any."""
    if norm == "layer":
        return [nn.LayerNorm(width)]
    return _batch_norm(norm, nn.BatchNorm1d, width, ghost_size)


def _norm_2d(norm: Norm, channels: int, ghost_size: int | None) -> list[nn.Module]:
    """The normalisation of (B, channels, H, W), if any."""
    if norm == "layer":
        return [nn.GroupNorm(1, channels)]
    return _batch_norm(norm, nn.BatchNorm2d, channels, ghost_size)


def _batch_norm(
    norm: Norm, whole: Callable[[int], nn.Module], num_features: int, ghost_size: int | None
) -> list[nn.Module]:
    """That over the batch, or over parts of it, if either."""
    if norm == "none":
        return []
    if norm == "batch":
        return [whole(num_features)]
    if ghost_size is None:
        raise SettingError("norm ghost without a ghost size: give 2 or more examples")
    return [GhostBatchNorm(num_features, ghost_size)]
