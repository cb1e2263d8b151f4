"""The process's random state, left as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

# The state is the whole process's: of two threads one would draw the other's numbers
_LOCK = threading.RLock()


@contextmanager
def preserved_random_state(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """While open, torch's random state on the CPU and on `devices` is free to use."""
    with _LOCK, torch.random.fork_rng(list(devices)):
        yield
