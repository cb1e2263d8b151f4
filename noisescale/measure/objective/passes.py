"""How a model and its loss run while they are measured: in operations that can be differentiated.

That is twice, and with other parameters than the model's own.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from noisescale.measure.objective.substitutes.bags import embedding_bag
from noisescale.measure.objective.substitutes.cross_entropy import ClosedForms


def as_measured(*, once: bool = False) -> contextlib.AbstractContextManager[None]:
    """A context for forward passes in operations that can be differentiated as they stand.

    That is with plain attention, without checkpoints, with nothing compiled, recurrence without
    cuDNN.

    Fused attention has no second derivative and no batching rule, so that it serves only where the
    pass is differentiated once, by autograd. A checkpointed block is computed anew in the backward
    pass, when the parameters may no longer be those that are measured; here it runs as if it were
    not checkpointed, at the price of the memory that would have saved. What `torch.compile` has
    made can be differentiated only once, and not by torch.func. Recurrent layers of cuDNN have no
    gradient in evaluation mode.

    Args:
        once: whether attention may be fused.
    """
    attention: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not once:
        attention = sdpa_kernel(SDPBackend.MATH)
    return attention if torch.compiler.is_compiling() else _plainly(attention)


@contextlib.contextmanager
def differentiable_twice() -> Iterator[None]:
    """A context for forward passes whose second derivative is taken.

    The functions of torch that have none, though their parts have, are replaced by their parts:
    `embedding_bag`. Cross-entropy of many classes has its second derivative in closed form.
    """
    with _DIFFERENTIABLE_TWICE, ClosedForms():
        yield


@contextlib.contextmanager
def _plainly(attention: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    with attention, _MEASURED, _nothing_compiled():
        yield


def _nothing_compiled() -> contextlib.AbstractContextManager[Any]:
    """Compiled functions run as they were written."""
    if "torch._dynamo" not in sys.modules:  # which takes a second to import; nothing is compiled
        return contextlib.nullcontext()
    return _eager()


@contextlib.contextmanager
def _eager() -> Iterator[None]:
    """The stance of running what was compiled as it was written, at no loss of references."""
    with torch.compiler.set_stance("force_eager"):
        yield
    for _ in range(_references_lost()):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(None))


@functools.cache
def _references_lost() -> int:
    """How many references to None a use of `set_stance` takes from the process.

    Three in torch 2.6, which looks at the compiler's callback as if the reference were its own;
    after some 50,000 uses Python 3.11 would end for want of them. None in later ones.
    """
    uses = 100  # against what else changes the count meanwhile
    before = sys.getrefcount(None)
    for _ in range(uses):
        with torch.compiler.set_stance("force_eager"):
            pass
    return max(0, round((before - sys.getrefcount(None)) / uses))


class _Exchanged:
    """A context in which names of torch's modules stand for other things.

    They do so for the whole process: another thread's forward passes then take more time or memory,
    with the same results. The last thread to leave puts back what was there.

    Args:
        names: what stands for each name, by module and name; what torch does not have is left out.
    """

    def __init__(self, names: dict[tuple[str, str], Any]) -> None:
        self._names = names
        self._lock = threading.Lock()
        self._inside = 0
        self._replaced: list[tuple[ModuleType, str, Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._replaced = [
                    (sys.modules[module], name, getattr(sys.modules[module], name))
                    for module, name in self._names
                    if hasattr(sys.modules.get(module), name)
                ]
                for module, name, _ in self._replaced:
                    setattr(module, name, self._names[module.__name__, name])
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


class _WithoutCudnn:
    """In place of torch's recurrent functions: cuDNN's have no gradient in evaluation mode."""

    def __getattr__(self, name: str) -> Any:
        function = getattr(torch._VF, name)

        def call(inputs: Tensor, *arguments: Any) -> Any:
            if not inputs.is_cuda:
                return function(inputs, *arguments)
            with torch.backends.cudnn.flags(enabled=False):
                return function(inputs, *arguments)

        return call


# What torch.utils.checkpoint.checkpoint looks up when it is called: of torch up to 2.13, and later
GENERATORS = (
    "_checkpoint_without_reentrant_generator",
    "_checkpoint_without_reentrant_generator_impl",
)
# Modules that look these up under a name of their own
CHECKPOINTING = ("torch.utils.checkpoint", "torch.distributed._composable.checkpoint_activation")
_MEASURED = _Exchanged(
    {(module, name): _plain_generator for module in CHECKPOINTING for name in GENERATORS}
    | {("torch.utils.checkpoint", "CheckpointFunction"): _PlainCall}
    | {("torch.nn.modules.rnn", "_VF"): _WithoutCudnn()}
    # attention's, of passes without a gradient: it gives padded places zeros
    | {("torch.backends.mha", "get_fastpath_enabled"): lambda: False}
)
_DIFFERENTIABLE_TWICE = _Exchanged({("torch.nn.functional", "embedding_bag"): embedding_bag})
