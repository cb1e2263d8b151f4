"""What a piece of work costs: seconds, and bytes above what was there before."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from noisescale.training.records.environment import environment


def where_and_when(device: str) -> dict[str, Any]:
    """The environment and the date of a benchmark, which its results begin with."""
    return {"environment": environment(device), "date": time.strftime("%Y-%m-%d", time.gmtime())}


def seconds(work: Callable[[], Any]) -> float:
    """Wall-clock seconds of one call, a GPU's work included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def cpu_seconds(work: Callable[[], Any]) -> float:
    """The process's own seconds on all its threads in one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def peak_bytes(work: Callable[[], Any], *, device: str) -> int:
    """Peak memory of one call above what the process holds before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier work has freed goes back
    Path("/proc/self/clear_refs").write_text("5")  # forgets the process's peak
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(
        row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(name)
    )
    return int(line.split()[1]) * 1024
