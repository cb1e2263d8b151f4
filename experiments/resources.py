"""What a piece of work costs, in seconds and bytes, and the record of a benchmark made of parts."""

from __future__ import annotations

import ctypes
import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from noisescale.errors import first_line
from noisescale.training.records.environment import commit, environment
from noisescale.training.records.folder import write_json

RESULTS = "experiments/benchmarks/results"  # one benchmark's are no change to the code of the next


def where_and_when(device: str) -> dict[str, Any]:
    """The environment and the date of a benchmark, which its results begin with."""
    measured_with = environment(device) | {"commit": commit(but=[RESULTS])}
    return {"environment": measured_with, "date": time.strftime("%Y-%m-%d", time.gmtime())}


class LeftOut(Exception):
    """Why a part of a benchmark is not measured."""


class PeerMissing(LeftOut):
    """A library that is compared with is not installed."""


def peer(module: str) -> Any:
    """Another library, which need not be installed.

    Args:
        module: its name.

    Raises:
        PeerMissing: it is not there, or does not go with what else is installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise PeerMissing(f"{error.name} is not installed") from error
    except ImportError as error:
        raise PeerMissing(f"{module} cannot be imported ({first_line(error)})") from error


class Deadline:
    """When a part of a benchmark is to end.

    Args:
        minutes: from now on; None: never.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def minutes(self) -> float | None:
        """Those that are left; None: there is no end."""
        return None if self._end is None else (self._end - time.monotonic()) / 60

    def rounds(self, number: int, *, fewest: int = 1) -> Iterator[int]:
        """The numbers of that many rounds, or of as many, `fewest` at least, as the time allows.

        Args:
            number: of rounds, where the time allows them.
            fewest: that are made in any case.
        """
        for index in range(number):
            if index >= fewest and self.minutes is not None and self.minutes <= 0:
                return
            yield index


NEVER = Deadline()
# Measures a part until about its deadline, and gives what is written of it
Part = Callable[[Deadline], Any]
CUT = "the benchmark ended before it"


class Record:
    """A benchmark's JSON, written anew whenever one of its parts ends.

    So that whatever ends the benchmark leaves the parts that were measured, and `left_out` says why
    the others are not there.

    Args:
        path: of the file.
        device: that is measured.
        minutes: for all the parts together; None: as many as they take.
        **facts: that stand beside the parts, such as targets.

    Attributes:
        content: of the file.
    """

    def __init__(
        self, path: Path, device: str, *, minutes: float | None = None, **facts: Any
    ) -> None:
        self.content: dict[str, Any] = {**where_and_when(device), **facts, "left_out": {}}
        self._path = path
        self._deadline = Deadline(minutes)

    def measure(
        self, parts: Mapping[str, Part], console: Console, shares: Mapping[str, float] | None = None
    ) -> None:
        """Measures parts in turn, each within its share of the time that is left.

        Args:
            parts: by the place of what they give: "a/b" is `content["a"]["b"]`, and "a/+b" the next
                of the list `content["a"]`.
            console: is told which part is being measured.
            shares: of the time, by place, beside one for every other part; None: all alike.
        """
        weights = [(shares or {}).get(place, 1.0) for place in parts]
        left_out = self.content["left_out"]
        left_out.update(dict.fromkeys(parts, CUT))
        self._write()
        for number, (place, part) in enumerate(parts.items()):
            minutes = self._deadline.minutes
            if minutes is not None and minutes <= 0:
                left_out[place] = "there was no time left for it"
            else:
                share = weights[number] / sum(weights[number:])
                deadline = Deadline(None if minutes is None else minutes * share)
                console.print(place.replace("/", ": ").replace("+", ""))
                try:
                    self._put(place, part(deadline))
                    del left_out[place]
                except LeftOut as reason:
                    left_out[place] = str(reason)
            self._write()

    def _put(self, place: str, found: Any) -> None:
        *folders, name = place.split("/")
        where = self.content
        for folder in folders[:-1] if name.startswith("+") else folders:
            where = where.setdefault(folder, {})
        if name.startswith("+"):
            where.setdefault(folders[-1], []).append(found)
        else:
            where[name] = found

    def _write(self) -> None:
        write_json(self._path, self.content)


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
