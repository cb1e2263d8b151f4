"""Several steps of plain SGD on a chain in one call of compiled code, at small batch sizes."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from noisescale.problems.models.losses import (
    LossGradient,
    cross_entropy_gradient,
    squared_error_gradient,
)
from noisescale.training.updates.in_place.chain import Chain

try:  # beside the package, so that a checkout finds it too
    import _noisescale_chain_steps as built
except ImportError:  # it is built where noisescale is installed, if a C compiler is found there
    built = None

LAYOUT = 1  # of what chain_steps.c is given, which another version may have given otherwise
sgd: Callable[..., int] | None = built.sgd if built and built.LAYOUT == LAYOUT else None
NOT_BUILT = (
    "small batches are trained by torch's operations, which takes several times as long: the "
    "compiled steps were not built when noisescale was installed, as without a C compiler"
)

# of a batch: with more, the matrix products of libraries are as fast on wide layers
MOST_EXAMPLES = 8
READ_AT_ONCE = 64  # examples of a call, which a processor's cache still holds
# as chain_steps.c numbers them
IDENTITY = 0
ACTIVATIONS: dict[type[nn.Module], int] = {nn.ReLU: 1, nn.Tanh: 2}
LOSSES: dict[LossGradient, int] = {cross_entropy_gradient: 0, squared_error_gradient: 1}


class CompiledSteps:
    """Steps of a chain's linear layers, all trained, and what lies between them.

    They are `Chain`'s up to rounding, and the same numbers however many are made in a call.

    Args:
        chain: whose layers are updated.
        loss: its number.
        layers: from the lowest, weight and bias of each, and the number of its activation.
    """

    def __init__(
        self, chain: Chain, loss: int, layers: list[tuple[Tensor, Tensor | None, int]]
    ) -> None:
        self._chain = chain
        self._loss = loss
        self._layers = layers
        params = [param for weight, bias, _ in layers for param in (weight, bias)]
        self._params = [(param, param.shape) for param in params if param is not None]
        self._is_flattened = any(isinstance(link.layer, nn.Flatten) for link in chain.links)

    @classmethod
    def of(cls, chain: Chain | None, gradient: LossGradient | None) -> Self | None:
        """The compiled steps of a chain under a loss; None: one of them is not covered."""
        loss = None if gradient is None else LOSSES.get(gradient)
        if chain is None or loss is None:
            return None
        layers: list[Any] = []
        for link in chain.links:
            if isinstance(link.layer, nn.Linear) and link.is_trained:
                layers.append((link.weight, link.bias, IDENTITY))
            elif isinstance(link.layer, nn.Flatten):
                if (link.layer.start_dim, link.layer.end_dim) != (1, -1):
                    return None
            elif type(link.layer) in ACTIVATIONS and layers and layers[-1][2] == IDENTITY:
                layers[-1] = (*layers[-1][:2], ACTIVATIONS[type(link.layer)])
            elif not isinstance(link.layer, nn.Identity):
                return None
        compiled = cls(chain, loss, layers)
        return compiled if compiled._fits() else None

    @property
    def is_built(self) -> bool:
        """Whether there is compiled code to call."""
        return sgd is not None

    @staticmethod
    def at_once(batch_size: int) -> int:
        """How many steps a call should make, at a batch size; none above MOST_EXAMPLES."""
        return READ_AT_ONCE // batch_size if batch_size <= MOST_EXAMPLES else 0

    def __call__(
        self,
        inputs: Any,
        targets: Any,
        *,
        batch_size: int,
        learning_rate: float,
        weight_decay: float,
    ) -> Tensor | None:
        """The mean losses (K,) before each step; None: no step is made, and torch's are wanted.

        They end after the first one whose loss is not finite.

        Args:
            inputs: of K batches (K·B, ...), one after the other.
            targets: their classes (K·B,).
            batch_size: B.
            learning_rate: η.
            weight_decay: λ.
        """
        if sgd is None or not self._takes(inputs, targets):
            return None
        losses = torch.empty(len(targets) // batch_size, dtype=torch.float32, device="cpu")
        inputs, targets = inputs.contiguous(), targets.contiguous()
        made = sgd(
            self._layout(),
            inputs.data_ptr(),
            targets.data_ptr(),
            losses.data_ptr(),
            len(losses),
            batch_size,
            self._loss,
            learning_rate,
            weight_decay,
        )
        increment_version([param for param, _ in self._params])
        return losses[:made]

    def _takes(self, inputs: Any, targets: Any) -> bool:
        """Whether these examples and the chain as it is now are what the compiled code is for."""
        if not (self._chain.takes(inputs) and type(targets) is Tensor):
            return False
        num_classes, width = self._layers[-1][0].shape[0], self._layers[0][0].shape[1]
        if (inputs.dtype, targets.dtype) != (torch.float32, torch.int64) or not inputs.is_cpu:
            return False
        if inputs.dim() != 2 and not (self._is_flattened and inputs.dim() > 2):
            return False
        if inputs[0].numel() != width or targets.shape != inputs.shape[:1]:
            return False
        low, high = targets.aminmax()
        return int(low) >= 0 and int(high) < num_classes and self._fits()

    def _fits(self) -> bool:
        """Whether the parameters lie in memory as the compiled code reads them."""
        return all(
            param.dtype == torch.float32
            and param.is_cpu
            and param.is_contiguous()
            and param.shape == shape
            for param, shape in self._params
        )

    def _layout(self) -> array[int]:
        """Where the layers lie in memory at this moment, as chain_steps.c reads it."""
        layout = array("q")
        for weight, bias, activation in self._layers:
            address = 0 if bias is None else bias.data_ptr()
            layout.extend((weight.data_ptr(), address, *weight.shape, activation))
        return layout
