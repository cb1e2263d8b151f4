"""Batch norm over parts of a batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisescale.errors import SettingError, check_count


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


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a part of the model normalises over the batch.

    Args:
        model: of any kind.
    """
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
