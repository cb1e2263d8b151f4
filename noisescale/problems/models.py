"""The models of the studies: a multilayer perceptron and a small convolutional network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import nn

from noisescale.errors import SettingError
from noisescale.problems.config import Norm, ProblemConfig


def mlp(
    input_shape: Sequence[int], num_classes: int, *, width: int = 1024, depth: int = 2, norm: Norm = "none"
) -> nn.Sequential:
    """A ReLU network with `depth` hidden layers of `width` units, PyTorch's default initialisation.

    Inputs (B, *input_shape) -> logits (B, num_classes). On MNIST its defaults are the three-case study's
    784–1024–1024–10 with 1,863,690 parameters.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    fan_in = math.prod(input_shape)
    for _ in range(depth):
        layers += [nn.Linear(fan_in, width), *_norm_1d(norm, width), nn.ReLU()]
        fan_in = width
    return nn.Sequential(*layers, nn.Linear(fan_in, num_classes))


def cnn(
    input_shape: Sequence[int], num_classes: int, *, width: int = 32, depth: int = 2, norm: Norm = "none"
) -> nn.Sequential:
    """`depth` blocks of convolution 3×3, norm, ReLU and max-pooling 2×2, then one linear layer.

    Block k has width·2ᵏ channels. Inputs (B, channels, height, width) -> logits (B, num_classes). "layer"
    normalises each example over its channels and pixels (GroupNorm with one group).
    """
    channels, height, breadth = input_shape
    deepest = min(height, breadth).bit_length() - 1
    if depth > deepest:
        raise SettingError(
            f"depth {depth} halves a {height}×{breadth} image away: give a depth of at most {deepest}"
        )
    layers: list[nn.Module] = []
    for block in range(depth):
        outputs = width * 2**block
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), *_norm_2d(norm, outputs), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, height, breadth = outputs, height // 2, breadth // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * breadth, num_classes))


def build_model(config: ProblemConfig, input_shape: Sequence[int], num_classes: int) -> nn.Sequential:
    """The model that `config` names; sizes left None are the model's own."""
    make: Callable[..., nn.Sequential] = {"mlp": mlp, "cnn": cnn}[config.model]
    sizes = {name: size for name in ("width", "depth") if (size := getattr(config, name)) is not None}
    return make(input_shape, num_classes, norm=config.norm, **sizes)


def _norm_1d(norm: Norm, width: int) -> list[nn.Module]:
    if norm == "none":
        return []
    return [nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm1d(width)]


def _norm_2d(norm: Norm, channels: int) -> list[nn.Module]:
    if norm == "none":
        return []
    return [nn.GroupNorm(1, channels) if norm == "layer" else nn.BatchNorm2d(channels)]
