"""The process's random state, left as it was."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor

# The state is the whole process's: of two threads one would draw the other's numbers
_LOCK = threading.RLock()


@contextmanager
def preserved_random_state(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """While open, the random states of Python, NumPy, torch and torch on `devices` are free."""
    with _LOCK, torch.random.fork_rng(list(devices)), preserved_global_states():
        yield


@contextmanager
def preserved_global_states() -> Iterator[None]:
    """While open, the global random states of torch, numpy and Python are free to use."""
    with _LOCK:
        before = GlobalStates()
        try:
            yield
        finally:
            before.restore()


class GlobalStates:
    """The global random states of torch, numpy and Python, as they are now."""

    def __init__(self) -> None:
        self._torch = [torch.get_rng_state(), *_of_gpus()]
        self._numpy: Any = mtrand.get_state()  # name, key (624,), position and a stored normal
        self._python = random.getstate()

    def restore(self) -> None:
        """Puts them back."""
        torch.set_rng_state(self._torch[0])
        if gpus := self._torch[1:]:
            torch.cuda.set_rng_state_all(gpus)
        mtrand.set_state(self._numpy)
        random.setstate(self._python)

    def moved(self) -> bool:
        """Whether anything has been drawn from one of them since."""
        now = GlobalStates()
        _, key, *rest = self._numpy
        _, new_key, *new_rest = now._numpy
        of_numpy = rest != new_rest or not np.array_equal(key, new_key)
        pairs = zip(self._torch, now._torch, strict=False)  # a GPU may be in use since
        of_torch = not all(torch.equal(one, another) for one, another in pairs)
        return of_numpy or of_torch or self._python != now._python


def seed_global_states(seed: int) -> None:
    """Seeds torch, numpy and Python.

    Args:
        seed: 0 to 2³² − 1, which numpy takes.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    mtrand.seed(seed)
    random.seed(seed)


def _of_gpus() -> list[Tensor]:
    """The random states of the GPUs, where they are in use."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
