"""How every table and sentence meets the width of the screen; and the names of checkpoints.

A number is never cut. A table too wide for its screen folds its headings and its words, then leaves
out its less important columns and says so in a line below, and at last turns each row into a block
of lines, "heading  value".
"""

from __future__ import annotations

import math
import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from noisescale.statistics.estimate import Number, three_digits

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Measured
    from noisescale.measure.sharpness import Sharpness
    from noisescale.statistics.gradient_noise import NoiseScale

AS_MADE = "as made"  # a model without a checkpoint, as its factory makes it
WIDTH = 120  # columns of output that is not to a terminal: every table fits
BETWEEN = 3  # columns between two of a table's, as rich draws them; two more are at its edges
LEAST_WORDS = 16  # columns that a path, which has no words to fold at, keeps
IN_JSON = "--json has them"  # where to find the columns that are left out


class Screen(Console):
    """A console whose sentences break between words alone, and where brackets are brackets."""

    def print(self, *objects: Any, **settings: Any) -> None:
        """Prints as rich does, but lets a word longer than the screen, such as a path, stick out.

        Args:
            *objects: what to print.
            **settings: rich's own.
        """
        whole: dict[str, Any] = {"overflow": "ignore", "crop": False}  # which folds nothing itself
        folded = [fold(each, self.width) if isinstance(each, str) else each for each in objects]
        try:
            super().print(*folded, **(whole | settings))
        except OSError as error:  # which does not say of what, where nothing is buffered
            error.filename = error.filename or "stdout"
            raise


def fold(text: str, width: int) -> str:
    """The text with lines no longer than the width, but for single words that are.

    Args:
        text: its own line ends stay.
        width: in columns.
    """
    return "\n".join(
        textwrap.fill(line, width, break_long_words=False, break_on_hyphens=False)
        for line in text.split("\n")
    )


def stdout_console() -> Screen:
    """The console that a command's result goes to, as wide as the terminal.

    Where there is none it is as wide as $COLUMNS says, else 120 columns.
    """
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH
    return Screen(width=width, highlight=False, markup=False)


@dataclass
class Column:
    """A column of a table.

    Attributes:
        heading: folded between its words where there is little room.
        left: whether its cells are flush left.
        words: whether its cells are words, which may be folded; numbers stay whole.
    """

    heading: str
    left: bool = False
    words: bool = False

    def widths(self, cells: Sequence[str]) -> tuple[int, int]:
        """How wide it must be at least, and how wide it would be, to hold these cells."""
        least = max(map(cell_len, [*self.heading.split(), ""]))
        full = max(map(cell_len, [self.heading, *cells]))
        if not self.words:
            return max(least, *map(cell_len, ["", *cells])), full
        words = [word for cell in cells for word in cell.split()]
        longest = max(map(cell_len, [*words, ""]))
        return max(least, min(longest, LEAST_WORDS)), full


class NumberTable:
    """A table that no screen cuts the numbers of; see the head of this module.

    Args:
        title: a line above it.
        less: headings of the columns that may be left out, the least important one first.
        where: in what words to say where those are.
    """

    def __init__(
        self, *, title: str | None = None, less: Sequence[str] = (), where: str = IN_JSON
    ) -> None:
        self.title = title
        self.less = tuple(less)
        self.where = where
        self.columns: list[Column] = []
        self.rows: list[tuple[str, ...]] = []
        self._section_ends: set[int] = set()

    def add_column(self, heading: str, *, left: bool = False, words: bool = False) -> None:
        """Adds a column to the right.

        Args:
            heading: of the column.
            left: whether its cells are flush left.
            words: whether its cells may be folded, being no numbers; then they are flush left.
        """
        self.columns.append(Column(heading, left=left or words, words=words))

    def add_row(self, *cells: str) -> None:
        """Adds a row.

        Args:
            *cells: one for each column; fewer leave the last ones empty.
        """
        self.rows.append((*cells, *[""] * (len(self.columns) - len(cells))))

    def add_section(self) -> None:
        """Leaves some room below the last row."""
        self._section_ends.add(len(self.rows) - 1)

    def ends_section(self, number: int) -> bool:
        """Whether there is some room below a row.

        Args:
            number: of the row, from 0.
        """
        return number in self._section_ends

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What fits the width of the console."""
        width = options.max_width
        shown = self._shown(width)
        if self.title is not None:
            yield Text(fold(self.title, width), style="italic")
        if shown is None:
            yield from self._blocks(width)
            return
        yield self._table(shown, width)
        if len(shown) < len(self.columns):
            names = [
                column.heading for index, column in enumerate(self.columns) if index not in shown
            ]
            text = f"Left out for want of room: {', '.join(names)} ({self.where})."
            yield Text(fold(text, width))

    def _shown(self, width: int) -> list[int] | None:
        """The columns that are shown, by index; None where even the most important do not fit."""
        dropped = [
            index
            for heading in self.less
            for index, column in enumerate(self.columns)
            if column.heading == heading
        ]
        for count in range(len(dropped) + 1):
            shown = [index for index in range(len(self.columns)) if index not in dropped[:count]]
            if sum(self._widths(index)[0] for index in shown) <= _room(len(shown), width):
                return shown
        return None

    def _widths(self, index: int) -> tuple[int, int]:
        return self.columns[index].widths([row[index] for row in self.rows])

    def _table(self, shown: list[int], width: int) -> Table:
        """The columns shown, each at least as wide as it must be, and as it would be from the left.

        Headings come last where there is room for some: a folded one is still whole.
        """
        widths = {index: self._widths(index) for index in shown}
        spare = _room(len(shown), width) - sum(least for least, _ in widths.values())
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for index in sorted(shown, key=lambda index: not self.columns[index].words):
            least, full = widths[index]
            extra = min(spare, full - least)
            spare -= extra
            widths[index] = least + extra, full
        for index in shown:
            column = self.columns[index]
            table.add_column(
                column.heading,
                justify="left" if column.left else "right",
                width=widths[index][0],
                overflow="fold",
            )
        for number, row in enumerate(self.rows):
            table.add_row(*(Text(row[index]) for index in shown))
            if self.ends_section(number):
                table.add_section()
        return table

    def _blocks(self, width: int) -> Iterable[Text]:
        """Each row as lines of a heading and a value, without those that have none.

        A value that does not fit beside its heading, such as a path, has a line of its own.
        """
        indent = max(cell_len(column.heading) for column in self.columns)
        for row in self.rows:
            yield Text("")
            for column, cell in zip(self.columns, row, strict=True):
                if cell:
                    heading = column.heading + " " * (indent - cell_len(column.heading))
                    fits = cell_len(f"{heading}  {cell}") <= width
                    yield Text(f"{heading}  {cell}" if fits else f"{column.heading}\n{cell}")
        yield Text("")


def _room(num_columns: int, width: int) -> int:
    """The columns of a screen that are left for the cells of so many columns of a table."""
    return width - BETWEEN * (num_columns - 1) - 2


def plain_table(
    *columns: str,
    left: Sequence[str] = (),
    words: Sequence[str] = (),
    less: Sequence[str] = (),
    where: str = IN_JSON,
    title: str | None = None,
) -> NumberTable:
    """An empty table of numbers under these headings.

    Args:
        *columns: the headings.
        left: those whose cells are flush left.
        words: those whose cells are words, which may be folded.
        less: those that may be left out where there is no room, the least important first.
        where: in what words to say where those are.
        title: a line above it.
    """
    table = NumberTable(title=title, less=less, where=where)
    for heading in columns:
        table.add_column(heading, left=heading in left, words=heading in words)
    return table


def add_columns(table: NumberTable, *columns: str, left: Sequence[str] = ()) -> None:
    """Adds columns of numbers under these headings, those of `left` flush left."""
    for heading in columns:
        table.add_column(heading, left=heading in left)


def or_dash(value: float | None, number: Number = three_digits) -> str:
    """A number as text, a dash where there is none."""
    return "–" if value is None or math.isnan(value) else number(value)


def examples_text(results: Iterable[NoiseScale | Sharpness]) -> str:
    """How many examples of how many were measured on, as far as the results agree."""
    counts = {(result.num_examples, result.population_size) for result in results}
    texts = [
        f"all {size:,}" if count == size else f"{count:,} of {size:,}"
        for count, size in sorted(counts)
    ]
    return " or ".join(texts)


def several_runs(measured: Iterable[Measured[object]]) -> bool:
    """Whether the checkpoints are of more than one run."""
    return len({one.loaded.run for one in measured}) > 1


def step_text(measured: Measured[object]) -> str:
    """The step of a checkpoint, a dash where it is not known; of none, that it is as made."""
    step = measured.loaded.step
    if measured.loaded.content is None:
        return AS_MADE
    return "–" if step is None else f"{step:,}"


def name_text(measured: Measured[object], among: Iterable[Measured[object]]) -> str:
    """What to call a checkpoint in a sentence among these."""
    loaded = measured.loaded
    if loaded.step is None:
        return loaded.title
    step = f"step {loaded.step:,}"
    return f"{loaded.run}, {step}" if several_runs(among) else step.capitalize()
