"""Damage that disks, hands and other programs do to files, by a seeded random generator."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# What may stand in the place of a value of any kind
STRANGERS: tuple[Any, ...] = (None, "x", "", -1, 0, 1e308, True, [], {}, [[1]], {"a": None}, 2**70)
CELLS = ("", "x", "inf", "-1", "nan", "1e400", "9" * 30, "\x00", "é")


def damaged(content: bytes, suffix: str, chance: random.Random) -> bytes:
    """The content of a file, damaged in one of the ways that there are for its kind."""
    ways = [_cut, _flipped]
    if suffix == ".json":
        ways += [_other_leaf, _other_leaf, _without_leaf, _nested]
    if suffix == ".csv":
        ways += [_other_cell, _other_cell, _without_column, _repeated_column]
    return chance.choice(ways)(content, chance)


def _cut(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content) + 1)]


def _flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice([1, 8])):
        if changed:
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value within, and to every dictionary and list."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else ():
        yield from _leaves(value[key], (*path, key))
    for index, item in enumerate(value) if isinstance(value, list) else ():
        yield from _leaves(item, (*path, index))


def _other_leaf(content: bytes, chance: random.Random) -> bytes:
    value = json.loads(content)
    *path, last = chance.choice(list(_leaves(value)))
    within = value
    for key in path:
        within = within[key]
    within[last] = chance.choice(STRANGERS)
    return json.dumps(value).encode()


def _without_leaf(content: bytes, chance: random.Random) -> bytes:
    value = json.loads(content)
    *path, last = chance.choice(list(_leaves(value)))
    within = value
    for key in path:
        within = within[key]
    del within[last]
    return json.dumps(value).encode()


def _nested(content: bytes, chance: random.Random) -> bytes:
    depth = 100_000
    return chance.choice([b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth])


def _rows(content: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(content.decode())))


def _table(rows: list[list[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _other_cell(content: bytes, chance: random.Random) -> bytes:
    rows = _rows(content)
    row = chance.choice(rows)
    row[chance.randrange(len(row))] = chance.choice(CELLS)
    return _table(rows)


def _without_column(content: bytes, chance: random.Random) -> bytes:
    rows = _rows(content)
    column = chance.randrange(len(rows[0]))
    return _table([row[:column] + row[column + 1 :] for row in rows])


def _repeated_column(content: bytes, chance: random.Random) -> bytes:
    rows = _rows(content)
    column = chance.randrange(len(rows[0]))
    return _table([[*row, row[column]] for row in rows])


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """The files below a folder that end so, hidden ones left out, in order."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in suffixes and not path.name.startswith(".")
    )
