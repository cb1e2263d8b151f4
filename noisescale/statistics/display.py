"""How a result shows itself in Python: a few lines of text, or a small table in a notebook."""

from __future__ import annotations

import dataclasses
import html
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

WIDTH = 80  # columns of text, those of a terminal that nobody has widened
MOST_LINES = 12  # what is taken in at a glance
BLANKS = "  "  # between columns


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What there is to see first of a result.

    Attributes:
        title: what it is, and of what.
        headings: of the columns; none where the rows explain themselves.
        rows: of cells, each as long as the first; where there are many, some in the middle go.
        notes: sentences that a reader should know, without their full stop.
        numeric: whether all columns but the first hold numbers, to be flush right.
        notes_at: where of the result all notes are, for when they are cut.
    """

    title: str
    rows: Sequence[tuple[str, ...]]
    headings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    numeric: bool = False
    notes_at: str = ".notes"

    def text(self) -> str:
        """At most 12 lines of at most 80 columns, as long as the cells fit side by side."""
        title = textwrap.wrap(self.title, WIDTH)
        notes = [line for note in self.notes for line in _wrapped(f"Note: {note}.")]
        room = MOST_LINES - len(title) - bool(self.headings)
        # a note that there is keeps two lines, however many rows
        rows = self._shown(room - min(len(notes), 2))
        notes = _cut(notes, room - len(rows), f" … (more in {self.notes_at})")
        table = ([self.headings] if self.headings else []) + rows
        return "\n".join([*title, *self._lines(table), *notes])

    def html(self) -> str:
        """The same as a table without a style of its own; names in it are escaped."""
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in self.headings)
        parts = [f"<table><caption>{html.escape(self.title)}</caption>"]
        if head:
            parts.append(f"<thead><tr>{head}</tr></thead>")
        parts.append("<tbody>")
        for row in self._shown(MOST_LINES):
            first, *others = (html.escape(cell) for cell in row)
            cells = "".join(f"<td>{cell}</td>" for cell in others)
            parts.append(f"<tr><th>{first}</th>{cells}</tr>")
        parts.append("</tbody></table>")
        parts += [f"<p>Note: {html.escape(note)}.</p>" for note in self.notes]
        return "".join(parts)

    def _shown(self, room: int) -> list[tuple[str, ...]]:
        """The rows, where they are too many the first and the last, and how many are left out."""
        rows = list(self.rows)
        if len(rows) <= room:
            return rows
        kept = room - 1
        first, last = (kept + 1) // 2, kept // 2
        gap = (f"… {len(rows) - kept} more", *("",) * (len(rows[0]) - 1))
        return [*rows[:first], gap, *rows[len(rows) - last :]]

    def _lines(self, table: list[tuple[str, ...]]) -> list[str]:
        """Cells side by side under one another, indented by two."""
        if not table:
            return []
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = []
        for first, *others in table:
            cells = [first.ljust(widths[0])] + [
                cell.rjust(width) if self.numeric else cell.ljust(width)
                for cell, width in zip(others, widths[1:], strict=True)
            ]
            lines.append(f"{BLANKS}{BLANKS.join(cells)}".rstrip())
        return lines


class Shown:
    """A result that shows its summary: as text wherever it is printed, as a table in a notebook.

    A dataclass that builds on it is made with repr=False.
    """

    def _summary(self) -> Summary:
        """What there is to see first, from what has been measured: nothing is computed anew."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return self._summary().text()

    def _repr_html_(self) -> str:
        return self._summary().html()


@dataclass(frozen=True, repr=False)
class Settings:
    """A dataclass of settings, whose repr makes it anew: what differs from the defaults.

    One that builds on it is made with repr=False.
    """

    always_shown: ClassVar[tuple[str, ...]] = ()  # fields that are told at their defaults too

    def __post_init__(self) -> None:
        """Makes numpy's numbers Python's: one setting has one key, and goes into JSON."""
        np = sys.modules.get("numpy")  # where it is not loaded there are none of its numbers
        if np is None:
            return
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            plain = value.tolist() if isinstance(value, np.generic | np.ndarray) else value
            if isinstance(plain, tuple | list):
                plain = tuple(
                    each.item() if isinstance(each, np.generic) else each for each in plain
                )
            if plain is not value:
                object.__setattr__(self, field.name, plain)

    def __repr__(self) -> str:
        told = (
            f"{field.name}={value!r}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) != field.default
            or field.name in self.always_shown
        )
        return one_line(self, *told)


def one_line(thing: object, *parts: str) -> str:
    """The repr "Name(part, part)" of what holds too much to be shown.

    Args:
        thing: whose class gives the name.
        *parts: what to say of it; empty ones are left out.
    """
    return f"{type(thing).__name__}({', '.join(part for part in parts if part)})"


def listed(texts: Iterable[str], *, most: int = 4) -> str:
    """The first of some texts, with how many there are beyond them."""
    every = list(texts)
    shown = every[:most] if len(every) > most + 1 else every
    more = len(every) - len(shown)
    return ", ".join(shown) + (f", … {more} more" if more else "")


def counted(number: int, thing: str) -> str:
    """A number of things in words: "1 seed", "1,000 seeds"."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def share(number: int, total: int | None) -> str:
    """How many of how many: "all 600", "300 of 600"; the number alone where the rest is unknown."""
    if total is None:
        return f"{number:,}"
    return f"all {total:,}" if number == total else f"{number:,} of {total:,}"


def _wrapped(note: str) -> list[str]:
    return textwrap.wrap(note, WIDTH, subsequent_indent=BLANKS)


def _cut(lines: list[str], room: int, rest: str) -> list[str]:
    """As many lines as there is room for, the last of which says where the others are."""
    if len(lines) <= room:
        return lines
    if room <= 0:
        return []
    kept = lines[:room]
    return [*kept[:-1], textwrap.shorten(kept[-1], WIDTH - len(rest), placeholder="") + rest]
