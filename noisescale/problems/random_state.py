"""The process's random state, left as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

_LOCK = (
    threading.RLock()
)  # the state is the whole process's: of two threads one would draw the other's numbers


@contextmanager
def preserved_random_state(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """While open, torch's random state on the CPU and on `devices` may be used; it is put back at the end."""
    with _LOCK, torch.random.fork_rng(list(devices)):
        yield
