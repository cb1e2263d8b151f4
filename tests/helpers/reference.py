"""The tables of docs/reference, as a record of keys or columns that output is held against."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = ("_stderr", "_low", "_high")  # of an estimate that takes columns


@dataclass
class Entry:
    """What the page says of a key: whether it may be missing, and what its value is."""

    optional: bool
    links: tuple[str, ...]  # sections that say more of its value; one of them fits
    by_name: bool  # whether the value's own keys are names, which are not listed


@dataclass
class Reference:
    """A page of tables, and what of it has been seen.

    sections: by anchor, the entries by key. columns: sections whose estimates take four columns.
    more: by anchor, another section all of whose keys it has too.
    """

    sections: dict[str, dict[str, Entry]]
    columns: set[str]
    more: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    objects: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, page: Path) -> Reference:
        sections: dict[str, dict[str, Entry]] = {}
        columns = set()
        more = {}
        for part in re.split(r"^##+ ", page.read_text(), flags=re.MULTILINE)[1:]:
            title, _, body = part.partition("\n")
            name = anchor(title)
            if "Columns of estimates" in body:
                columns.add(name)
            if other := re.search(r"all of \[[^]]*\]\(#([\w-]+)\)", body):
                more[name] = other[1]
            sections[name] = {
                key: Entry(
                    optional="(optional)" in keys,
                    links=tuple(re.findall(r"\(#([\w-]+)\)", content)),
                    by_name=re.search(r"\bby (name|its|split)\b", content) is not None,
                )
                for keys, content in re.findall(r"^\| (.*?`.*?) \| (.*) \|$", body, re.MULTILINE)
                for key in re.findall(r"`([^`]+)`", keys)
            }
        return cls(sections, columns, more)

    def hold(self, value: Any, section: str, where: str) -> None:
        """Notes what an output has and the section does not say."""
        if isinstance(value, list):
            for each in value:
                self.hold(each, section, where)
            return
        if not isinstance(value, dict):
            return
        if (other := self.more.get(section)) is not None:
            there = {key: each for key, each in value.items() if key in self.sections[other]}
            self.hold(there, other, where)
            value = {key: each for key, each in value.items() if key not in there}
        entries = self.sections[section]
        self.objects[section] += 1
        for key, inner in value.items():
            base = key
            if section in self.columns:
                base = next((key.removesuffix(part) for part in PARTS if key.endswith(part)), key)
            if base not in entries:
                self.faults.append(f"{where}: {section} does not say {key}")
                continue
            self.seen[section][key] += 1
            self._hold_value(inner, entries[base], f"{where}.{key}")

    def _hold_value(self, value: Any, entry: Entry, where: str) -> None:
        first = value[0] if isinstance(value, list) and value else value
        if not isinstance(first, dict) or entry.by_name:
            return
        fitting = [name for name in entry.links if set(first) & set(self.sections[name])]
        if not fitting:
            self.faults.append(f"{where}: nothing says what {sorted(first)[:4]} are")
            return
        best = max(fitting, key=lambda name: len(set(first) & set(self.sections[name])))
        self.hold(value, best, where)

    def unmet(self) -> list[str]:
        """What the page says and no output has, and keys that are wrongly said to be optional."""
        faults = list(self.faults)
        for section, entries in self.sections.items():
            for key, entry in entries.items():
                count = self.seen[section][key]
                if count == 0:
                    faults.append(f"{section}: no output has {key}")
                elif (count < self.objects[section]) != entry.optional:
                    there = f"{count} of {self.objects[section]}"
                    faults.append(f"{section}: {key} is there in {there}, see (optional)")
        return faults


def anchor(title: str) -> str:
    """The name by which a heading is linked to."""
    if given := re.search(r"\{ #([\w-]+) \}", title):
        return given[1]
    words = re.sub(r"[^\w\s-]", "", title).strip().lower()
    return re.sub(r"[-\s]+", "-", words)
