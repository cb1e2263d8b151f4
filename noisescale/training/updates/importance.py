"""Importance sampling: examples of large gradients drawn more often, and weighted by less."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from noisescale.errors import SettingError
from noisescale.measure.objective.outputs import with_tensors

# blocks of draws in an epoch, at least: between two of them the chances stay as they are, since to
# renew them takes passes over all scores; scores are an epoch old on average in any case
BLOCKS = 64


class ImportanceBatches:
    """Indices of examples drawn with replacement, those of larger gradients with a larger chance.

    Example i of N is drawn with the chance

        p_i = floor/N + (1 − floor)·s_i/Σs,

    where s_i is its score, the norm of its gradient when it was last drawn; one that was not drawn
    yet has the mean score of those that were. Its gradient counts 1/(N·p_i) times, at most 1/floor
    times, so that the mean over a batch has the full gradient as its expectation, whatever the
    scores are. They decide its variance alone: (mean |g|)² − |G|² in the place of tr Σ for s_i ∝
    |g_i| and no floor (Needell, Srebro and Ward 2014, arXiv 1310.5715).

    An epoch is N draws, of which the last batch takes what is left, as in `Batches`.

    Args:
        num_examples: N.
        floor: the least chance of an example, as a share of 1/N, above 0; at 1 all are alike.
        seed: of the draws.
        device: of indices and scores.

    Attributes:
        epoch: whole epochs before this one.
        offset: draws made in this one.
        weights: 1/(N·p_i) of the examples taken last (B,), float64.
        scores: s_i (N,), float64, nan of examples that have not been drawn.
    """

    def __init__(
        self, num_examples: int, *, floor: float, seed: int, device: torch.device | str = "cpu"
    ) -> None:
        self.num_examples = num_examples
        self.floor = floor
        self.device = device
        self.epoch = 0
        self.offset = 0
        self.scores = torch.full((num_examples,), math.nan, dtype=torch.float64, device=device)
        self.weights = torch.empty(0, dtype=torch.float64, device=device)
        self._generator = torch.Generator().manual_seed(seed)
        # what was drawn ahead under one set of chances, and with which weights
        self._block = torch.empty(0, dtype=torch.int64, device=device)
        self._block_weights = self.weights
        self._taken = 0  # of the block

    @property
    def remaining(self) -> int:
        """Draws left in this epoch."""
        return self.num_examples - self.offset

    @property
    def chances(self) -> Tensor:
        """p_i by the scores as they are (N,), float64."""
        scores = self.scores
        mean = scores.nanmean()  # nan where none is known
        is_told = scores.isfinite() & (mean > 0)
        shares = torch.where(is_told, scores / mean, 1.0)
        return (self.floor + (1 - self.floor) * shares) / self.num_examples

    def take(self, batch_size: int) -> Tensor:
        """The next min(batch_size, remaining) indices; their weights are then in `weights`."""
        if self.remaining == 0:
            self.epoch += 1
            self.offset = 0
        size = min(batch_size, self.remaining)
        if self._taken + size > len(self._block):  # what is left of a block is not missed
            self._draw(max(size, math.ceil(self.num_examples / BLOCKS)))
        part = slice(self._taken, self._taken + size)
        self._taken += size
        self.offset += size
        self.weights = self._block_weights[part]
        return self._block[part]

    def record(self, indices: Tensor, norms: Tensor) -> None:
        """Takes the norms of the gradients of some examples as their scores.

        Args:
            indices: of the examples (B,); of one that is there twice the larger norm counts.
            norms: of their gradients (B,); those that are not finite say nothing.
        """
        norms = norms.to(self.scores)
        told = torch.where(norms.isfinite(), norms, math.nan)
        self.scores[indices] = -1.0  # below any norm; not a plain assignment of the norms, since
        self.scores.scatter_reduce_(0, indices, told, "amax")  # which of two stays is left to torch

    def state_dict(self) -> dict[str, Any]:
        """All that the next draws follow from."""
        return {
            "epoch": self.epoch,
            "offset": self.offset,
            "generator": self._generator.get_state(),
            "scores": self.scores.clone(),
            "block": self._block[self._taken :].clone(),
            "block_weights": self._block_weights[self._taken :].clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict` was taken."""
        self.epoch, self.offset = state["epoch"], state["offset"]
        self._generator.set_state(state["generator"].cpu())
        self.scores = state["scores"].to(self.device, copy=True)  # which is changed in place
        self._block = state["block"].to(self.device)
        self._block_weights = state["block_weights"].to(self.device)
        self._taken = 0

    def _draw(self, number: int) -> None:
        """Draws so many examples, independently, by the chances as they are."""
        chances = self.chances
        limits = chances.cumsum(0)
        # drawn on the CPU: the same numbers on every device
        uniform = torch.rand(number, generator=self._generator, dtype=torch.float64)
        drawn = torch.searchsorted(limits, uniform.to(self.device) * limits[-1], right=True)
        self._block = drawn.clamp(max=self.num_examples - 1)
        self._block_weights = 1 / (self.num_examples * chances[self._block])
        self._taken = 0


class OutputNorms:
    """The norms of the gradients of examples' losses at the model's outputs, |∂ℓ_i/∂z_i|.

    The backward pass of training computes them anyway: to keep them costs no pass. The gradient of
    the last layer is in proportion to them, and those of the others nearly so where layers and
    activations neither stretch nor shrink much, so that they stand for |g_i| (Katharopoulos and
    Fleuret 2018, arXiv 1803.00942, section 3.2).
    """

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def keep(self, outputs: Any) -> Any:
        """The outputs of a model, whose gradients the backward pass that follows will leave."""
        self._kept = []
        return with_tensors(outputs, self._watched)

    def norms(self, scales: Tensor) -> Tensor:
        """The norms (B,), once the backward pass is made.

        Args:
            scales: what the loss of each example counted for in what was differentiated (B,).

        Raises:
            SettingError: the outputs hold no tensor with a row for each example.
        """
        number = len(scales)
        # in the outputs' own precision, of which a chance needs no more
        norms = [
            torch.linalg.vector_norm(tensor.grad.reshape(number, -1), dim=1)
            for tensor in self._kept
            if tensor.grad is not None and tensor.shape[:1] == (number,)
        ]
        self._kept = []
        if not norms:
            raise SettingError(
                "sampling importance of a model whose outputs hold no tensor with a row for each "
                "example that the loss goes back to: leave it out"
            )
        together: Tensor = (
            norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)
        )
        return together / scales

    def _watched(self, tensor: Tensor) -> Tensor:
        if tensor.requires_grad:
            tensor.retain_grad()
            self._kept.append(tensor)
        return tensor
