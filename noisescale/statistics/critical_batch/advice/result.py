"""Which batch size and learning rate to use: three aims, each with an interval, in ten lines."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from noisescale.statistics.critical_batch.advice.words import number_text
from noisescale.statistics.display import listed
from noisescale.statistics.estimate import jsonable

WIDTH = 80  # columns at which a block has `MOST_LINES` at most
MOST_LINES = 10
HEADINGS = ("aim", "batch size", "95 % interval", "learning rate", "worth")
WORDS = ("aim", "worth")  # the columns of words
LATER = ("beta2", "weight_decay")  # of a size, of adaptive optimizers alone


@dataclass(frozen=True, kw_only=True)
class AimedSize:
    """A batch size for an aim, and the learning rate that goes with it.

    Attributes:
        aim: "fewest examples", "balanced" or "fewest steps".
        batch_size: examples per update.
        low: the lower end of its 95 % interval.
        high: the upper end; None where it is open.
        learning_rate: None where none is known.
        worth: what the row is worth: "measured", "extrapolated ×40" or another word or two.
        beta2: that goes with it, by a rule of thumb; None where none does.
        weight_decay: likewise.
        exact: whether it follows from a number without an error, so that there is no interval.
    """

    aim: str
    batch_size: int
    low: int
    high: int | None
    learning_rate: float | None
    worth: str = ""
    beta2: float | None = None
    weight_decay: float | None = None
    exact: bool = False

    def cells(self) -> tuple[str, ...]:
        """The row under HEADINGS."""
        ends = f"{self.low:,} or more" if self.high is None else f"{self.low:,}–{self.high:,}"
        if self.exact:
            ends = "exact"
        rate = "–" if self.learning_rate is None else f"{self.learning_rate:g}"
        return self.aim, f"{self.batch_size:,}", ends, rate, self.worth

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: an entry of the list `recommendation`."""
        left_out = {"worth", "exact", *(name for name in LATER if getattr(self, name) is None)}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of thumb for what goes with a batch size, which nothing here has measured.

    Attributes:
        setting: what it is of: "learning rate", "β₂" or "weight decay".
        short: the rule in a word or two.
        text: the rule.
        source: where it comes from, a paper's number on arXiv last.
    """

    setting: str
    short: str
    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to use, what it is worth and what it cost, as it closes a command's output.

    Attributes:
        heading: what the sizes follow from.
        sizes: one for each aim; none where they are not resolved.
        in_use: a sentence on the batch size in use; None where none is.
        worth: what the numbers are worth, a short sentence each, the most important one first.
        cost: what it took.
        firmer: the command that would tell more.
        reason: why there are no sizes; None where there are.
        ends: what the lower and the upper end of each size are.
        units_per_example: the mean number of units, such as tokens, that an example has; None where
            it is not told.
        rules: those that the sizes' rates, and what else they have, follow from.
    """

    heading: str
    sizes: tuple[AimedSize, ...] = ()
    in_use: str | None = None
    worth: tuple[str, ...] = ()
    cost: str | None = None
    firmer: str | None = None
    reason: str | None = None
    ends: str = HEADINGS[2]
    units_per_example: float | None = None
    rules: tuple[Rule, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON; `from_dict` reads it."""
        stored: dict[str, Any] = jsonable(asdict(self))
        return stored

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Advice:
        """The advice that `to_dict` stored; KeyError or TypeError for anything else.

        Args:
            values: the fields by name.
        """
        sizes = tuple(AimedSize(**size) for size in values["sizes"])
        rules = tuple(Rule(**rule) for rule in values.get("rules", ()))
        worth = tuple(values["worth"])
        return cls(**{**values, "sizes": sizes, "worth": worth, "rules": rules})

    @classmethod
    def of_summary(cls, summary: dict[str, Any], heading: str) -> Advice:
        """The advice that a study's summary.json holds.

        Args:
            summary: its content; one of an earlier release has nothing but the sizes.
            heading: what is said of these.
        """
        if (stored := summary.get("advice")) is not None:
            return cls.from_dict(stored)
        sizes = tuple(AimedSize(**size) for size in summary.get("recommendation") or ())
        reason = None if sizes else "this folder's release has none; run the same command again"
        return cls(heading=heading, sizes=sizes, reason=reason)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What stands beside the sizes, a sentence each."""
        reason = None if self.reason is None else f"Not resolved: {self.reason}."
        said = (reason, self.in_units, self.in_use, self.by_rule, *self.worth, self.cost)
        return tuple(filter(None, said))

    @property
    def in_units(self) -> str | None:
        """The sizes in tokens, a sentence; None where it is not told how many an example has."""
        if self.units_per_example is None or not self.sizes:
            return None
        each = number_text(self.units_per_example)
        return f"In tokens, {each} an example: {listed(self.tokens)}."

    @property
    def tokens(self) -> list[str]:
        """The sizes in tokens; none where it is not told how many an example has."""
        if self.units_per_example is None:
            return []
        return [f"{size.batch_size * self.units_per_example:,.0f}" for size in self.sizes]

    @property
    def by_rule(self) -> str | None:
        """The rules with their numbers on arXiv, a sentence; None without any."""
        if not self.rules:
            return None
        rules = [f"{rule.short} {rule.source.rpartition(' ')[2]}" for rule in self.rules]
        return f"Rules of thumb: {', '.join(rules)}."

    def table(self) -> dict[str, list[str]]:
        """The cells of the sizes by heading: `HEADINGS`, and what adaptive optimizers have more."""
        rows = [size.cells() for size in self.sizes]
        headings = (*HEADINGS[:2], self.ends, *HEADINGS[3:])
        columns = {name: [row[place] for row in rows] for place, name in enumerate(headings)}
        worth = columns.pop("worth")
        for heading, name in (("β₂", "beta2"), ("decay", "weight_decay")):
            values = [getattr(size, name) for size in self.sizes]
            if any(value is not None for value in values):
                columns[heading] = ["–" if value is None else f"{value:.12g}" for value in values]
        if any(worth):
            columns["worth"] = worth
        return columns

    def block(self, width: int = WIDTH) -> list[str]:
        """The lines, folded at a width.

        Args:
            width: columns. At 80 there are ten lines at most, unless the heading takes three or
                more; a command is never broken.
        """
        lines = _folded(self.heading, width)
        if self.reason is None:
            lines += self._rows(width)
        closing = _command(self.firmer, width)
        room = MOST_LINES - len(lines) - len(closing)
        said = {text: _folded(text, width) for text in self._by_weight()}
        shown = set()
        for text, folded in said.items():
            if len(folded) <= room or width < WIDTH:
                shown.add(text)
                room -= len(folded)
        for text in self.sentences:
            if text in shown:
                lines += said[text]
        return [*lines, *closing]

    def _by_weight(self) -> list[str]:
        """The sentences of a block but that on tokens, from those that must be read to others.

        Under rules of thumb the first is what keeps the sizes from being this optimizer's.
        """
        reason = None if self.reason is None else f"Not resolved: {self.reason}."
        first, others = (self.worth[:1], self.worth[1:]) if self.rules else ((), self.worth)
        ordered = (reason, *first, self.by_rule, self.in_use, self.cost, *others)
        return [text for text in ordered if text is not None]

    def _rows(self, width: int) -> list[str]:
        """The table, as much of it as there is room for, and the sentence on tokens without theirs.

        What the rows are worth goes first where they have what an optimizer needs; a screen too
        narrow for the rest has a line or two for each.
        """
        columns = self.table()
        has_more = "decay" in columns or "β₂" in columns
        if has_more:
            columns = {"lr" if name == HEADINGS[3] else name: of for name, of in columns.items()}
        if has_more and self.tokens:
            first = {name: columns[name] for name in HEADINGS[:2]}
            columns = first | {"tokens": self.tokens} | columns
        for left_out in ((), ("worth",), ("worth", "tokens")) if has_more else ((),):
            shown = {name: cells for name, cells in columns.items() if name not in left_out}
            lines = _lines(shown)
            if max(map(len, lines)) <= width:
                return [*lines, *([] if "tokens" in shown else _folded(self.in_units, width))]
        return [*self._narrow_rows(width), *_folded(self.in_units, width)]

    def _narrow_rows(self, width: int) -> list[str]:
        """A line or two for each aim, without a table's columns."""
        lines = []
        for size in self.sizes:
            aim, batch_size, ends, rate, worth = size.cells()
            more = [
                f"{name} {value:.12g}"
                for name, value in (("β₂", size.beta2), ("decay", size.weight_decay))
                if value is not None
            ]
            said = ", ".join(filter(None, (f"learning rate {rate}", *more, worth)))
            lines += _folded(f"{aim}: {batch_size} ({ends}), {said}", width)
        return lines


def _lines(columns: dict[str, list[str]]) -> list[str]:
    """A line for each row under headings, words to the left and numbers to the right."""
    widths = {name: max(map(len, (name, *cells))) for name, cells in columns.items()}
    rows = zip(*([name, *cells] for name, cells in columns.items()), strict=True)
    return [
        "  ".join(
            f"{cell:{'<' if name in WORDS else '>'}{widths[name]}}"
            for name, cell in zip(columns, row, strict=True)
        ).rstrip()
        for row in rows
    ]


def _command(command: str | None, width: int) -> list[str]:
    """A command after "Firmer:", in two lines where it takes more than one, as a shell reads it."""
    if command is None:
        return []
    line = f"Firmer: {command}"
    first, option, rest = line.partition(" --bs ")
    if len(line) <= width or not option:
        return [line]
    return [f"{first} \\", f"  --bs {rest}"]


def _folded(text: str | None, width: int) -> list[str]:
    if text is None:
        return []
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)
