"""The numbers of an estimate as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

MOST_DECIMALS = 6  # of a printed number; with smaller errors it has significant digits
LARGEST_WRITTEN_OUT = 1e7  # beyond which a number is printed with an exponent
# of a format specification: what lays the text out (fill, alignment, width), and what is left for
# its numbers (sign, comma, precision, type)
FORMAT = re.compile(
    r"(?P<align>(?:.?[<>^])?)(?P<sign>[-+ ]?)(?P<width>\d*)(?P<number>.*)", re.DOTALL
)
Style = Literal["value", "interval", "value (interval)", "value ± stderr"]
Number = Callable[[float], str]  # how a number is printed


def three_digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def two_digits(value: float) -> str:
    """Two significant digits, without an exponent where it can be: enough for a standard error."""
    return f"{float(f'{value:.2g}'):g}"


def written_out(value: float) -> str:
    """Three significant digits, all digits from 1,000 on; a dash for nan."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


class Printed(NamedTuple):
    """An estimate's numbers as they are printed together."""

    value: str
    stderr: str
    low: str
    high: str

    @property
    def interval(self) -> str:
        """From low to high; in words where a minus sign would be taken for a dash."""
        is_signed = "-" in (self.low[:1], self.high[:1])
        return f"{self.low} to {self.high}" if is_signed else f"{self.low}–{self.high}"


def printed(numbers: Sequence[float], spec: str, of_stderr: str) -> Printed:
    """Value, stderr, low and high by these format specifications."""
    specs = (spec, of_stderr, spec, spec)
    texts = (format(part, form) for part, form in zip(numbers, specs, strict=True))
    return Printed(*(text.replace("inf", "∞") for text in texts))
