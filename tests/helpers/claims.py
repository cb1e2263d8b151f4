"""Sentences whose numbers are recomputed from the committed table that they rest on.

A file claims.toml beside the tables lists them:

    [[claim]]
    text = "Test accuracy was [.953] at B = 1024"    # as a page has it, its numbers in brackets
    table = "runs"                                   # runs.csv, or a JSON file by its whole name
    where = {pixel_scale = "raw", batch_size = 1024} # rows of a table; all where it is left out
    values = ["test_accuracy"]                       # an expression for each number in brackets
    tolerance = 0.002                                # left out: half of the last digit given

An expression has the table's columns as names, each one number where a single row is left; also
`rows`, the rows themselves, `table(name)` for others, np and pd. Of a JSON file it has `record`.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

NUMBER = re.compile(r"\[([−-]?[\d.,]+)( %)?\]")


@dataclass(frozen=True)
class Claim:
    """A sentence, and where its numbers come from."""

    folder: Path
    text: str
    table: str
    values: tuple[str, ...]
    where: dict[str, Any]
    tolerance: float | None = None

    @property
    def sentence(self) -> str:
        """The text as a reader sees it."""
        return squeezed(NUMBER.sub(r"\1\2", self.text))

    @property
    def said(self) -> list[tuple[float, float]]:
        """Each number in brackets, and half a unit of its last digit; of 9 %, .09 and .005."""
        return [_parse(*match) for match in NUMBER.findall(self.text)]

    def computed(self) -> list[float]:
        """What the table gives for each of them."""
        names = self._names()
        return [float(eval(expression, {}, names)) for expression in self.values]

    def wrong(self) -> list[str]:
        """A line for each number that its table does not bear out."""
        said, computed = self.said, self.computed()
        assert len(said) == len(computed), f"{len(computed)} expressions for {self.text!r}"
        return [
            f"{self.text!r} says {number:g}, {self.table} gives {value:.6g}"
            for (number, half_a_digit), value in zip(said, computed, strict=True)
            if not abs(value - number) <= (self.tolerance or half_a_digit * (1 + 1e-9))
        ]

    def _names(self) -> dict[str, Any]:
        common = {"np": np, "pd": pd, "table": lambda name: read(self.folder / f"{name}.csv")}
        if self.table.endswith(".json"):
            return common | {"record": json.loads((self.folder / self.table).read_text())}
        rows = read(self.folder / f"{self.table}.csv")
        for name, value in self.where.items():
            rows = rows[rows[name] == value]
        assert len(rows), f"no rows where {self.where} for {self.text!r}"
        one = len(rows) == 1
        return (
            common
            | {"rows": rows}
            | {name: rows[name].iloc[0] if one else rows[name] for name in rows}
        )


def claims_of(path: Path) -> list[Claim]:
    """The claims that a file lists."""
    entries = tomllib.loads(path.read_text())["claim"]
    return [
        Claim(path.parent, **{"where": {}, **entry, "values": tuple(entry["values"])})
        for entry in entries
    ]


def squeezed(text: str) -> str:
    """The text with its line breaks and runs of blanks as single blanks."""
    return " ".join(text.split())


@lru_cache(maxsize=8)
def read(path: Path) -> pd.DataFrame:
    """A committed table."""
    return pd.read_csv(path, comment="#")


def _parse(digits: str, percent: str) -> tuple[float, float]:
    plain = digits.replace(",", "").replace("−", "-")
    decimals = len(plain.partition(".")[2])
    scale = 0.01 if percent else 1.0
    return float(plain) * scale, 0.5 * 10.0**-decimals * scale
