"""The process's random state, left as it was."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

# The state is the whole process's: of two threads one would draw the other's numbers
_LOCK = threading.RLock()


@contextmanager
def preserved_random_state(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """While open, the random states of Python, NumPy, torch and torch on `devices` are free."""
    with _LOCK, torch.random.fork_rng(list(devices)):
        of_python, of_numpy = random.getstate(), np.random.get_state()
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
