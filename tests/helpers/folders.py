"""Folders that several tests read and none may change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path


def contents(folder: Path) -> dict[str, str]:
    """A digest of every file in the folder, by its path there."""
    return {
        path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Fails at its end where a file in the folder has been written, added or removed."""
    before = contents(folder)
    yield
    after = contents(folder)
    assert after == before, f"{folder} is for reading alone: give the test that writes a copy"
