"""Which batch size and learning rate to use: three aims, each with an interval, in ten lines."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from noisescale.statistics.critical_batch.learning_rate_law import LearningRateLaw
from noisescale.statistics.critical_batch.recommendation import AIMS, size_for
from noisescale.statistics.display import listed
from noisescale.statistics.estimate import Estimate, jsonable

WIDTH = 80  # columns at which a block has `MOST_LINES` at most
MOST_LINES = 10
HEADINGS = ("aim", "batch size", "95 % interval", "learning rate", "worth")
NEAR = 4.0  # times a batch size at which there was a run: beyond, its sizes are extrapolated to
FOLD = 3.0  # between two values of B_crit, from which on a choice between them matters


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
    """

    aim: str
    batch_size: int
    low: int
    high: int | None
    learning_rate: float | None
    worth: str = ""

    def cells(self) -> tuple[str, ...]:
        """The row under HEADINGS."""
        ends = f"{self.low:,} or more" if self.high is None else f"{self.low:,}–{self.high:,}"
        rate = "–" if self.learning_rate is None else f"{self.learning_rate:g}"
        return self.aim, f"{self.batch_size:,}", ends, rate, self.worth

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: an entry of the list `recommendation`."""
        return {name: value for name, value in asdict(self).items() if name != "worth"}


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
        return cls(**{**values, "sizes": sizes, "worth": tuple(values["worth"])})

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
        return tuple(filter(None, (reason, self.in_units, self.in_use, *self.worth, self.cost)))

    @property
    def in_units(self) -> str | None:
        """The sizes in tokens, a sentence; None where it is not told how many an example has."""
        if self.units_per_example is None or not self.sizes:
            return None
        counts = [f"{size.batch_size * self.units_per_example:,.0f}" for size in self.sizes]
        return f"In tokens, {number_text(self.units_per_example)} an example: {listed(counts)}."

    def block(self, width: int = WIDTH) -> list[str]:
        """The lines, folded at a width.

        Args:
            width: columns. At 80 there are ten lines at most; a command is never broken.
        """
        closing = [*_folded(self.cost, width), *_command(self.firmer, width)]
        if self.reason is not None:
            body = [*_folded(f"Not resolved: {self.reason}.", width), *_folded(self.in_use, width)]
        else:
            body = [
                *_rows(self.sizes, width, self.ends),
                *_folded(self.in_units, width),
                *_folded(self.in_use, width),
            ]
        lines = [*_folded(self.heading, width), *body]
        for sentence in self.worth:
            folded = _folded(sentence, width)
            if len(lines) + len(folded) + len(closing) <= MOST_LINES or width < WIDTH:
                lines += folded
        return [*lines, *closing]


def aimed_sizes(
    critical: Estimate,
    *,
    population_size: int | None,
    rate: Callable[[int], float] | None,
    measured_at: Sequence[float] = (),
) -> tuple[AimedSize, ...]:
    """A tenth of B_crit, B_crit and ten times it, with the ends that its interval gives them.

    Args:
        critical: B_crit.
        population_size: the training examples, which no batch can exceed; None: not known.
        rate: the learning rate at a batch size; None: not known.
        measured_at: the batch sizes at which there were runs.
    """
    largest = population_size or math.inf
    sizes = []
    for aim in AIMS:
        size, low, high = (
            size_for(aim, end, largest=largest)
            for end in (critical.value, critical.low, critical.high)
        )
        assert size is not None
        sizes.append(
            AimedSize(
                aim=aim,
                batch_size=size,
                low=min(low or 1, size),
                high=None if high is None else max(high, size),
                learning_rate=None if rate is None else _two_digits(rate(size)),
                worth=_worth(size, measured_at, largest=largest),
            )
        )
    return tuple(sizes)


def _worth(size: int, measured_at: Sequence[float], *, largest: float) -> str:
    """Whether runs were made near a batch size, or how far it lies from those that were."""
    if size >= largest:
        return "bound: all examples"
    if size == 1:
        return "bound: one example"
    if not measured_at:
        return ""
    far = min(max(size / near, near / size) for near in measured_at)
    return "measured near it" if far <= NEAR else f"extrapolated ×{number_text(far)}"


def rate_law(
    optimizer: str, *, batch_size: int, learning_rate: float, critical: float
) -> LearningRateLaw:
    """The law ε(B) through the one learning rate that is known.

    For SGD, with momentum or without, ε ∝ 1/(1 + B_crit/B) (McCandlish et al. 2018, 2.6, with
    B_crit for B_noise, as whose average it stands); for Adam and AdamW ε ∝ √B (Krizhevsky 2014;
    Malladi et al. 2022).

    Args:
        optimizer: "sgd", "adam" or "adamw".
        batch_size: at which the rate is known.
        learning_rate: there.
        critical: B_crit.
    """
    by_noise = optimizer == "sgd"
    law = LearningRateLaw(
        name="noise" if by_noise else "sqrt",
        scale=1.0,
        bend=critical if by_noise else math.nan,
        power=math.nan if by_noise else 0.5,
        batch_size=None,
        held_out_error=math.nan,
    )
    return replace(law, scale=learning_rate / law.rate(batch_size))


def rate_between(
    batch_sizes: list[float], rates: list[float], law: LearningRateLaw | None
) -> Callable[[int], float]:
    """The learning rate at a batch size from the best ones measured at others.

    Between two of them the straight line in logs; beyond their ends the law that follows them best,
    through the nearest; without a law, the nearest.

    Args:
        batch_sizes: ascending (n,), one or more.
        rates: the best learning rate at each (n,).
        law: of the best rates; None: none could be fitted.
    """

    def rate(size: int) -> float:
        log_rate = np.interp(math.log(size), np.log(batch_sizes), np.log(rates))
        nearest = min(max(float(size), batch_sizes[0]), batch_sizes[-1])
        beyond = 1.0 if law is None else law.rate(size) / law.rate(nearest)
        return math.exp(float(log_rate)) * beyond

    return rate


def in_use_text(batch_size: int, critical: Estimate) -> str:
    """What a batch size takes beside the least of both: 1 + B/B_crit and 1 + B_crit/B.

    Args:
        batch_size: in use.
        critical: B_crit.
    """
    examples = 1 + batch_size / critical.value
    fewest, most = (1 + batch_size / end for end in (critical.high, critical.low or math.nan))
    steps = 1 + critical.value / batch_size
    interval = f"{_factor(fewest)}–{_factor(most)}"
    if math.isnan(most):
        interval = f"{_factor(fewest)} or more"
    return (
        f"You use {batch_size:,}: {_factor(examples)} times the least examples ({interval}), "
        f"{_factor(steps)} times the steps."
    )


def differ(one: Estimate, other: Estimate) -> bool:
    """Whether two values of B_crit lead to different choices: apart, and by more than a little.

    Args:
        one: with its interval.
        other: with its own.
    """
    if not (one.value > 0 and other.value > 0):
        return False
    apart = max(one.value / other.value, other.value / one.value)
    overlap = one.low <= other.high and other.low <= one.high
    return apart > FOLD or (not overlap and apart > math.sqrt(FOLD))


def number_text(value: float) -> str:
    """Two significant digits, all of them from a hundred on, without an exponent.

    Args:
        value: to be printed.
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.2g}'):g}"


def interval_text(estimate: Estimate) -> str:
    """The interval of a batch size in two digits; "20 or more" where it is open.

    Args:
        estimate: the batch size.
    """
    low, high = (number_text(_two_digits(end)) for end in (estimate.low, estimate.high))
    return f"{low} or more" if math.isinf(estimate.high) else f"{low}–{high}"


def _rows(sizes: tuple[AimedSize, ...], width: int, ends: str) -> list[str]:
    """A line for each aim under headings; on a narrow screen a line without a table's columns."""
    cells = [(*HEADINGS[:2], ends, *HEADINGS[3:]), *(size.cells() for size in sizes)]
    if not any(size.worth for size in sizes):
        cells = [row[:-1] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if sum(widths) + 2 * (len(widths) - 1) > width:
        return [
            line
            for row in cells[1:]
            for line in _folded(
                f"{row[0]}: {row[1]} ({row[2]}), learning rate {', '.join(filter(None, row[3:]))}",
                width,
            )
        ]
    alignments = "<>>><"
    return [
        "  ".join(
            f"{cell:{align}{room}}"
            for cell, align, room in zip(row, alignments, widths, strict=False)
        ).rstrip()
        for row in cells
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


def _factor(value: float) -> str:
    """A factor in two digits; three where two would be 1."""
    return f"{value:,.0f}" if value >= 100 else f"{float(f'{value:.{3 if value < 1.1 else 2}g}'):g}"


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
