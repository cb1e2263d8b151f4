"""A measured number with its error: value, stderr and 95 % interval."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from noisescale.errors import SettingError
from noisescale.statistics.estimate.in_words import (
    FORMAT,
    LARGEST_WRITTEN_OUT,
    MOST_DECIMALS,
    Number,
    Printed,
    Style,
    printed,
    three_digits,
    two_digits,
)

Kind = Literal["exact", "interval", "point", "bound", "undefined"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimate:
    """A number with its error: value ± stderr, and a 95 % interval from `low` to `high`.

    Printed, it has the decimals of its standard error's two digits. A format specification such as
    `.3g` is one for a number, and goes for value, stderr and interval alike; fill, alignment and
    width are of the whole text. `float()` gives the value, nan where there is none.

    Attributes:
        value: the estimate; nan where there is none, as of a ratio whose denominator may be zero.
        stderr: its standard error; 0 where the value is exact, nan where the error is not known.
        low: the lower end of the interval; nan where it is not known.
        high: the upper end; infinite where the interval is open.
        num_samples: independent samples behind it.

    Examples:
        >>> from noisescale import Estimate
        >>> b_simple = Estimate(value=71.94, stderr=3.07, low=66.39, high=78.54, num_samples=800)
        >>> print(b_simple)
        71.9 ± 3.1 (66.4–78.5)
        >>> f"{b_simple:.2f}"
        '71.94 ± 3.07 (66.39–78.54)'
        >>> round(float(b_simple))
        72
    """

    value: float
    stderr: float
    low: float
    high: float
    num_samples: int

    @classmethod
    def from_interval(
        cls,
        value: float,
        low: float,
        high: float,
        *,
        num_samples: int,
        widths: float = 4.0,
        scale: Literal["log", "linear"] = "log",
    ) -> Estimate:
        """A value whose interval was found directly; its stderr is a part of the interval's length.

        Args:
            value: the estimate, nan where it is not defined.
            low: the lower end of its 95 % interval.
            high: the upper end.
            num_samples: independent samples behind it.
            widths: standard errors in the interval: 4 of a normal one, 2t where Student's t set its
                ends.
            scale: "log": the length in logarithms, times the value, as suits a positive quantity
                with a skew interval; nan where that is open or the value is. "linear": the length
                itself.

        Returns:
            The estimate with that stderr.
        """
        if scale == "linear":
            stderr = (high - low) / widths
        elif math.isnan(value) or not (low > 0 and high < math.inf):
            stderr = math.nan
        else:
            stderr = value * math.log(high / low) / widths
        return cls(value=value, stderr=stderr, low=low, high=high, num_samples=num_samples)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Estimate:
        """The estimate of a record of its fields, nan and infinity as numbers or by their names.

        Args:
            values: the fields by name.

        Raises:
            TypeError: a field is missing or unknown, or is no number.
            ValueError: a word stands in the place of a number.
        """
        num_samples = int(values.get("num_samples", 0))
        parts = {name: float(value) for name, value in values.items() if name != "num_samples"}
        return cls(**parts, num_samples=num_samples)

    @property
    def kind(self) -> Kind:
        """What is known of the quantity.

        "exact": its value, without error. "interval": its value and an interval. "point": its
        value, with an unknown error. "bound": no value, but an end of the interval, most often the
        lower one. "undefined": nothing.
        """
        if math.isnan(self.value):
            return "bound" if self.low > 0 or self.high < math.inf else "undefined"
        if self.stderr == 0:
            return "exact"
        return "point" if math.isnan(self.low) else "interval"

    def text(
        self,
        style: Style = "value (interval)",
        *,
        number: Number | None = None,
        unknown: str = "–",
    ) -> str:
        """The estimate in words for a screen.

        Args:
            style: "value": the value alone or, where there is none, its bound: "> 12". "interval":
                "10–15". "value (interval)": the value, with its interval where there is one.
                "value ± stderr": the value, with its standard error in two significant digits where
                that is known and not zero.
            number: how the value and the ends are printed; None: in three significant digits.
            unknown: what stands for a value or an interval of which nothing is known.

        Returns:
            The text, such as "12.3 (10–15)".
        """
        number = number or three_digits
        if style == "interval":
            if math.isnan(self.low) or (self.low == 0 and math.isinf(self.high)):
                return unknown
            low, high = number(self.low), number(self.high)
            return Printed(value="", stderr="", low=low, high=high).interval
        if self.kind == "undefined":
            return unknown
        if self.kind == "bound":
            return f"> {number(self.low)}" if self.low > 0 else f"< {number(self.high)}"
        value = number(self.value)
        if self.kind == "interval" and style == "value (interval)":
            return f"{value} ({self.text('interval', number=number)})"
        if self.kind == "interval" and style == "value ± stderr":
            return f"{value} ± {two_digits(self.stderr)}"
        return value

    def cells(self) -> tuple[str, str, str]:
        """Value, stderr and interval for a table, all with the decimals of the stderr's two digits.

        An exact value has neither of the latter, a bound no value.
        """
        printed = self._printed()
        interval = f"{printed.low} – {printed.high}"
        if self.kind == "undefined":
            return "not resolved", "", ""
        if self.kind == "bound":
            return "not resolved", "", interval if self._has_two_ends else self._bound(printed)
        if self.kind == "exact":
            return printed.value, "", ""
        stderr = printed.stderr if math.isfinite(self.stderr) else "unknown"
        return printed.value, stderr, "" if math.isnan(self.low) else interval

    def __str__(self) -> str:
        return self._in_words(self._printed())

    def __repr__(self) -> str:
        return f"Estimate({self})"

    def __float__(self) -> float:
        return float(self.value)

    def __format__(self, spec: str) -> str:
        """The text of `str`, or with its numbers by `spec`, such as ".3g" or ">30"."""
        parts = FORMAT.fullmatch(spec)
        assert parts is not None, "the pattern takes every text"
        numbers = parts["sign"] + parts["number"].removesuffix("s")
        text = str(self)
        if numbers:
            try:
                text = self._in_words(printed(self._numbers, numbers, numbers))
            except ValueError:
                raise SettingError(
                    f"format {spec!r} of an estimate: give one of a number, such as .3g or .2f, "
                    "which goes for value, error and interval alike; or an alignment and a width "
                    "of the whole, such as >30"
                ) from None
        width = parts["width"].lstrip("0")
        return format(text, (parts["align"] or ">") + width) if width else text

    def _repr_html_(self) -> str:
        return html.escape(str(self))

    @property
    def _numbers(self) -> tuple[float, float, float, float]:
        return self.value, self.stderr, self.low, self.high

    @property
    def _has_two_ends(self) -> bool:
        return self.low != 0 and math.isfinite(self.low) and math.isfinite(self.high)

    def _printed(self) -> Printed:
        """The numbers with the decimals of the error's two digits.

        Where the stderr is not known, a quarter of the interval stands in for it. What has no error
        has five digits, a bound four.
        """
        if math.isnan(self.value):
            return printed(self._numbers, ",.4g", ".2g")
        error = self.stderr if math.isfinite(self.stderr) else (self.high - self.low) / 4
        if not 0 < error < math.inf:
            return printed(self._numbers, ",.5g", ".2g")
        decimals = max(0, 1 - math.floor(math.log10(error)))
        largest = max(abs(part) for part in self._numbers if math.isfinite(part))
        if decimals > MOST_DECIMALS or largest >= LARGEST_WRITTEN_OUT:
            return printed(self._numbers, ",.5g", ".2g")
        return printed(self._numbers, f",.{decimals}f", f",.{decimals}f")

    def _in_words(self, printed: Printed) -> str:
        """All that is known, and that no more is."""
        if self.kind == "undefined":
            return "undefined"
        if self.kind == "bound":
            bound = self._bound(printed)
            return f"not resolved ({bound})" if self._has_two_ends else bound
        if self.kind == "exact":
            return f"{printed.value} (exact)"
        if self.kind == "point":
            return f"{printed.value} (error unknown)"
        error = f" ± {printed.stderr}" if math.isfinite(self.stderr) else ""
        return f"{printed.value}{error} ({printed.interval})"

    def _bound(self, printed: Printed) -> str:
        """The ends of what has no value."""
        if self._has_two_ends:
            return printed.interval
        return f"> {printed.low}" if self.low > 0 else f"< {printed.high}"

    def to_dict(self) -> dict[str, float | None]:
        """value, stderr, low and high for strict JSON: None where not finite."""
        names = ("value", "stderr", "low", "high")
        return {
            name: float(part) if math.isfinite(part) else None
            for name, part in zip(names, self._numbers, strict=True)
        }

    def scaled(self, factor: float) -> Estimate:
        """The same estimate times a positive constant.

        Args:
            factor: the constant.

        Returns:
            The estimate with value, stderr and both ends multiplied by it.
        """
        return Estimate(
            value=factor * self.value,
            stderr=factor * self.stderr,
            low=factor * self.low,
            high=factor * self.high,
            num_samples=self.num_samples,
        )
