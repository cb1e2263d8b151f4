"""The studies' models, a multilayer perceptron and a small CNN; ghost norm; losses; copies."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import CellType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from noisescale.errors import SettingError, check_count, check_memory
from noisescale.problems.config import LossName, Norm, ProblemConfig
from noisescale.problems.problem import LossFn


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


def build_model(
    config: ProblemConfig, input_shape: Sequence[int], num_classes: int
) -> nn.Sequential:
    """The model that `config` names; sizes left None are the model's own."""
    make: Callable[..., nn.Sequential] = {"mlp": mlp, "cnn": cnn}[config.model]
    sizes = {
        name: size for name in ("width", "depth") if (size := getattr(config, name)) is not None
    }
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


class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose statistics are those of consecutive parts of b examples of the batch.

    Hoffer, Hubara and Soudry 2017 (arXiv 1705.08741, algorithm 1): so that the size of the groups
    that are normalised together, and with it the noise of their statistics, no longer depends on
    the batch size. In training each part is normalised by its own mean and variance; what the batch
    leaves over is a part of fewer examples, and a batch smaller than b is one part. Running
    statistics are updated by each part in turn, as by so many batches of their own: after P parts
    the old ones weigh (1 − m)^P. In evaluation mode it is batch norm.

    Args:
        num_features: F, of inputs (B, F) or channels of (B, F, …).
        ghost_size: b, 2 or more.
        eps: added to the variance.
        momentum: m, the weight of one part's statistics in the running ones.

    Raises:
        SettingError: no such size; in training, a part of one example, which has no variance where
            the inputs are (B, F).

    Examples:
        >>> import torch
        >>> from noisescale import GhostBatchNorm
        >>> outputs = GhostBatchNorm(3, 4)(torch.randn(12, 3))
        >>> bool(outputs[:4].mean(0).abs().max() < 1e-6)  # of each part
        True
    """

    def __init__(
        self, num_features: int, ghost_size: int, *, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        check_count("ghost size", ghost_size)
        if ghost_size == 1:
            raise SettingError("ghost size 1: one example has no variance; give 2 or more")
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.ghost_size = ghost_size

    def forward(self, input: Tensor) -> Tensor:  # as torch names it
        """The inputs normalised, scaled and shifted.

        Args:
            input: (B, F, …).
        """
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        whole = len(input) // self.ghost_size * self.ghost_size
        parts = [
            self._normalised(part, max(1, len(part) // self.ghost_size))
            for part in (input[:whole], input[whole:])
            if len(part)
        ]
        normalised = parts[0] if len(parts) == 1 else torch.cat(parts)
        shape = (1, -1, *(1 for _ in input.shape[2:]))
        return normalised * self.weight.reshape(shape) + self.bias.reshape(shape)

    def _normalised(self, inputs: Tensor, num_parts: int) -> Tensor:
        """Inputs (P·b, F, …), each part by its own statistics, which go into the running ones."""
        size = len(inputs) // num_parts  # b
        if inputs.shape[0] * inputs[0, 0].numel() == num_parts:
            raise SettingError(
                "ghost batch norm of a part of one example, which has no variance: give batches "
                f"that leave none over from parts of {self.ghost_size}"
            )
        # each part's features are features of their own: (P·b, F, …) -> (b, P·F, …)
        side_by_side = inputs.unflatten(0, (num_parts, size)).transpose(0, 1).flatten(1, 2)
        means = inputs.new_zeros(side_by_side.shape[1])
        variances = torch.ones_like(means)
        normalised = F.batch_norm(  # momentum 1: these become the parts' own statistics
            side_by_side, means, variances, training=True, momentum=1.0, eps=self.eps
        )
        self._take(means.unflatten(0, (num_parts, -1)), variances.unflatten(0, (num_parts, -1)))
        # (b, P·F, …) -> (P·b, F, …)
        whole: Tensor = normalised.unflatten(1, (num_parts, -1)).transpose(0, 1).flatten(0, 1)
        return whole

    @torch.no_grad()
    def _take(self, means: Tensor, variances: Tensor) -> None:
        """Updates the running statistics by those of each part (P, F) in turn."""
        num_parts, momentum = len(means), self.momentum
        assert momentum is not None, "the constructor takes none"
        # what is left of the first part's, …, the last part's weight after all of them: (P, 1)
        ages = torch.arange(num_parts - 1, -1, -1, dtype=means.dtype, device=means.device)
        weights = (momentum * (1 - momentum) ** ages).unsqueeze(1)
        for running, of_parts in ((self.running_mean, means), (self.running_var, variances)):
            assert running is not None, "running statistics are kept"
            running.mul_((1 - momentum) ** num_parts).add_((weights * of_parts).sum(0))
        assert self.num_batches_tracked is not None, "running statistics are kept"
        self.num_batches_tracked.add_(num_parts)

    def _check_input_dim(self, input: Tensor) -> None:
        """Takes inputs of any shape from (B, F) on, as torch's own check of each class does not."""
        if input.ndim < 2:
            raise SettingError(
                f"ghost batch norm of inputs of shape {tuple(input.shape)}: give (B, F) or more"
            )

    def extra_repr(self) -> str:
        """What torch shows, and the parts' size."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"


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
