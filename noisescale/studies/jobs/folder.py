"""A study's folder: what all its runs have in common, and what each summary ends in."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from noisescale.errors import RunFolderError
from noisescale.training.records.folder import EXPERIMENT, read_json, write_json

CELL_FOLDER = "cells"  # of the runs, each in a folder of its own
LOCK = ".noisescale.lock"


def claim(out: Path, identity: dict[str, Any], *, settings: str) -> None:
    """Notes in the folder's file `settings` what its runs have in common, the `identity`.

    RunFolderError where it holds runs of another identity, or something else.
    """
    others = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    strangers = [name for name in others if not name.startswith(".") and name != EXPERIMENT]
    # looked for last, since another process may just be writing it
    if strangers and not (out / settings).exists():
        raise RunFolderError(
            f"{out} holds {', '.join(strangers[:3])} but no {settings}, so it is no folder of such "
            "runs: choose an empty or new folder with --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    # of two studies that begin at once, one sees the other's settings
    with FileLock(out / LOCK):
        stored = read_json(out / settings)
        if stored is None:
            write_json(out / settings, identity)
            return
    differences = [
        f"{name} is {old!r} there, {new!r} here"
        for name, old, new in _differences(stored, identity)
    ]
    if differences:
        raise RunFolderError(
            f"{out} holds runs made by other settings ({'; '.join(differences)}): "
            "choose another --out"
        )


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
    for name in here:
        old, new = there.get(name), here[name]
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            differences.append((prefix + name, old, new))
    return differences
