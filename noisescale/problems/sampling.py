"""The order in which a run sees its examples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Batches:
    """Indices of examples without replacement, a fresh permutation each epoch, batches of any size.

    The batch size is an argument of every `take`, so it may change between any two steps at no cost: an
    epoch ends when every example has been used once, however the batches divided it, and its last batch
    is the ragged rest. State: the epoch, the offset in it, and the generator as it was before this
    epoch's permutation was drawn.
    """

    def __init__(self, num_examples: int, *, seed: int, device: torch.device | str = "cpu") -> None:
        self.num_examples = num_examples
        self.device = device
        self.epoch = 0
        self.offset = 0
        self._generator = torch.Generator().manual_seed(seed)  # on the CPU: the same order on any device
        self._shuffle()

    @property
    def remaining(self) -> int:
        """Examples left in this epoch."""
        return self.num_examples - self.offset

    def take(self, batch_size: int) -> Tensor:
        """The next min(batch_size, remaining) indices; an epoch that has ended is followed by a new one."""
        if self.remaining == 0:
            self.epoch += 1
            self.offset = 0
            self._shuffle()
        indices = self._permutation[self.offset : self.offset + batch_size]
        self.offset += len(indices)
        return indices

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "offset": self.offset, "generator": self._generator_state.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.offset = state["epoch"], state["offset"]
        self._generator.set_state(state["generator"].cpu())
        self._shuffle()

    def _shuffle(self) -> None:
        self._generator_state = self._generator.get_state()
        self._permutation = torch.randperm(self.num_examples, generator=self._generator).to(self.device)
