"""A study's folder: what all its runs have in common, and what each summary ends in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock

from noisescale.errors import RunFolderError
from noisescale.problems.sampling import independent_seed
from noisescale.training.config import TrainConfig
from noisescale.training.records.folder import EXPERIMENT, read_json, write_json

CELL_FOLDER = "cells"  # of the runs, each in a folder of its own
LOCK = ".noisescale.lock"
ORDERS = "orders"  # of a folder's settings: which of these two holds in it
Orders = Literal["seed and batch size", "seed"]
INDEPENDENT: Orders
SHARED: Orders
# what the order of a run's examples is drawn from
INDEPENDENT, SHARED = get_args(Orders)


def claim(out: Path, identity: dict[str, Any], *, settings: str) -> Orders:
    """Notes in the folder's file `settings` what its runs have in common, the `identity`.

    A new folder's runs draw their orders from seed and batch size; a folder of an earlier release,
    from the seed alone, and goes on so.

    Returns:
        Which of the two it is, for `ordered`.

    Raises:
        RunFolderError: it holds runs of another identity, or something else.
    """
    others = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    strangers = [name for name in others if not name.startswith(".") and name != EXPERIMENT]
    # looked for last, since another process may just be writing it
    if strangers and not (out / settings).exists():
        raise RunFolderError(
            f"{out} holds {', '.join(strangers[:3])} but no {settings}, so it is no folder of such "
            "runs: choose an empty or new folder with --out"
        )
    stored = read_json(out / settings)
    if stored is None:
        out.mkdir(parents=True, exist_ok=True)
        # of two studies that begin at once, one sees the other's settings
        with FileLock(out / LOCK):
            stored = read_json(out / settings)
            if stored is None:
                write_json(out / settings, {**identity, ORDERS: INDEPENDENT})
                return INDEPENDENT
    differences = [
        f"{name} is {old!r} there, {new!r} here"
        for name, old, new in _differences(stored, identity)
    ]
    if differences:
        raise RunFolderError(
            f"{out} holds runs made by other settings ({'; '.join(differences)}): "
            "choose another --out"
        )
    return INDEPENDENT if stored.get(ORDERS) == INDEPENDENT else SHARED


def ordered(training: TrainConfig, orders: Orders) -> TrainConfig:
    """The training with the order of its examples drawn as its folder's are.

    Orders shared by all batch sizes make one seed's runs rise and fall together, of which the
    scatter of batch sizes about a curve shows nothing.
    """
    if orders == SHARED:
        return training
    return replace(training, order_seed=independent_seed(training.seed, str(training.batch_size)))


def changes(out: Path, *names: str) -> Callable[[], bool]:
    """A function that says whether any of these files has changed, come or gone since now."""

    def content() -> list[bytes | None]:
        paths = [out / name for name in names]
        return [path.read_bytes() if path.exists() else None for path in paths]

    before = content()
    return lambda: content() != before


def closing(seconds: float, notes: Sequence[str], environment: dict[str, Any]) -> dict[str, Any]:
    """What a summary ends in: how long it all took, when that was, and where."""
    return {
        "seconds": seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "notes": list(notes),
        "environment": environment,
    }


def _differences(
    there: dict[str, Any], here: dict[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    differences: list[tuple[str, Any, Any]] = []
    for name in {**here, **there}:
        if name == ORDERS:
            continue
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            differences.append((prefix + name, old, new))
    return differences
