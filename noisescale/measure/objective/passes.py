"""How a model and its loss run while they are measured: in operations that can be differentiated.

That is twice, and with other parameters than the model's own.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# What torch.utils.checkpoint.checkpoint looks up when it is called: of torch up to 2.13, and later
GENERATORS = (
    "_checkpoint_without_reentrant_generator",
    "_checkpoint_without_reentrant_generator_impl",
)
# Modules that look these up under a name of their own
CHECKPOINTING = ("torch.utils.checkpoint", "torch.distributed._composable.checkpoint_activation")


def as_measured(*, once: bool = False) -> contextlib.AbstractContextManager[None]:
    """A context for forward passes: plain attention, no checkpoints, nothing compiled.

    Fused attention has no second derivative and no batching rule, so that it serves only where
    the pass is differentiated once, by autograd. A checkpointed block is computed
    anew in the backward pass, when the parameters may no longer be those that are measured; here it
    runs as if it were not checkpointed, at the price of the memory that would have saved. What
    `torch.compile` has made can be differentiated only once, and not by torch.func.

    Args:
        once: whether attention may be fused.
    """
    attention: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not once:
        attention = sdpa_kernel(SDPBackend.MATH)
    return attention if torch.compiler.is_compiling() else _plainly(attention)


@contextlib.contextmanager
def _plainly(attention: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    with attention, _CHECKPOINTS, _nothing_compiled():
        yield


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch ran out of memory, for which a CPU has no exception of its own."""
    return isinstance(
        error, torch.OutOfMemoryError | MemoryError
    ) or "can't allocate memory" in str(error)


def _nothing_compiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled functions run as they were written."""
    if "torch._dynamo" not in sys.modules:  # which takes a second to import; nothing is compiled
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


class _PlainCheckpoints:
    """A context in which checkpointed functions are called and nothing else.

    The names are exchanged for the whole process: in other threads, too, checkpoints are then none,
    which changes their memory alone. The last thread to leave puts back what was there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._replaced: list[tuple[ModuleType, str, Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._replaced = [
                    (module, name, getattr(module, name))
                    for module in map(sys.modules.get, CHECKPOINTING)
                    if module is not None
                    for name in ("CheckpointFunction", *GENERATORS)
                    if hasattr(module, name)
                ]
                for module, name, _ in self._replaced:
                    setattr(module, name, _plain_generator if name in GENERATORS else _PlainCall)
            self._inside += 1

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for module, name, original in self._replaced:
                    setattr(module, name, original)


def _plain_generator(*arguments: Any, **keywords: Any) -> Iterator[None]:
    """What a non-reentrant checkpoint does before and after its function's call: nothing."""
    yield


class _PlainCall:
    """In place of the autograd.Function of a reentrant checkpoint."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *arguments: Any) -> Any:
        return function(*arguments)


_CHECKPOINTS = _PlainCheckpoints()
