"""A measured number with its error: value, stderr and 95 % interval, in words and on disk."""

from __future__ import annotations

import dataclasses
import html
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from noisescale.errors import SettingError

CONFIDENCE = 0.95  # of every interval, the field's convention
MOST_DECIMALS = 6  # of a printed number; with smaller errors it has significant digits
LARGEST_WRITTEN_OUT = 1e7  # beyond which a number is printed with an exponent
# of a format specification: what lays the text out (fill, alignment, width), and what is left for
# its numbers (sign, comma, precision, type)
FORMAT = re.compile(
    r"(?P<align>(?:.?[<>^])?)(?P<sign>[-+ ]?)(?P<width>\d*)(?P<number>.*)", re.DOTALL
)

Kind = Literal["exact", "interval", "point", "bound", "undefined"]
Style = Literal["value", "interval", "value (interval)", "value ± stderr"]
Number = Callable[[float], str]  # how a number is printed


class Reach(NamedTuple):
    """How many standard errors an interval reaches below its estimate, and above it."""

    below: float
    above: float


def three_digits(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def two_digits(value: float) -> str:
    """Two significant digits, without an exponent where it can be: enough for a standard error."""
    return f"{float(f'{value:.2g}'):g}"


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


def written_out(value: float) -> str:
    """Three significant digits, all digits from 1,000 on; a dash for nan."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


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
                text = self._in_words(_printed(self._numbers, numbers, numbers))
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
            return _printed(self._numbers, ",.4g", ".2g")
        error = self.stderr if math.isfinite(self.stderr) else (self.high - self.low) / 4
        if not 0 < error < math.inf:
            return _printed(self._numbers, ",.5g", ".2g")
        decimals = max(0, 1 - math.floor(math.log10(error)))
        largest = max(abs(part) for part in self._numbers if math.isfinite(part))
        if decimals > MOST_DECIMALS or largest >= LARGEST_WRITTEN_OUT:
            return _printed(self._numbers, ",.5g", ".2g")
        return _printed(self._numbers, f",.{decimals}f", f",.{decimals}f")

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
        record: dict[str, float | None] = jsonable(
            {"value": self.value, "stderr": self.stderr, "low": self.low, "high": self.high}
        )
        return record

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


def _printed(numbers: Sequence[float], spec: str, of_stderr: str) -> Printed:
    """Value, stderr, low and high by these format specifications."""
    specs = (spec, of_stderr, spec, spec)
    texts = (format(part, form) for part, form in zip(numbers, specs, strict=True))
    return Printed(*(text.replace("inf", "∞") for text in texts))


def jsonable(record: Any) -> Any:
    """`record` as strict JSON takes it: None for nan and infinity, and plain containers.

    Dictionaries, lists, tuples, dataclasses, named tuples, arrays and tables (a list of rows) are
    gone through; a record that has a `to_dict` of its own gives that.
    """
    pandas = sys.modules.get("pandas")  # there are no tables where it has not been imported
    if pandas is not None and isinstance(record, pandas.DataFrame):
        return jsonable(record.to_dict("records"))
    if isinstance(record, np.ndarray | np.generic):
        return jsonable(record.tolist())
    if isinstance(record, float):
        return record if math.isfinite(record) else None
    if isinstance(record, Mapping):
        return {str(name): jsonable(value) for name, value in record.items()}
    if hasattr(record, "to_dict"):
        return jsonable(record.to_dict())
    if dataclasses.is_dataclass(record):
        return {
            field.name: jsonable(getattr(record, field.name))
            for field in dataclasses.fields(record)
        }
    if hasattr(record, "_asdict"):
        return jsonable(record._asdict())
    if isinstance(record, list | tuple):
        return [jsonable(value) for value in record]
    return record


def estimate_columns(*names: str) -> list[str]:
    """The columns of estimates: each one's value, standard error and 95 % interval."""
    return [f"{name}{part}" for name in names for part in ("", "_stderr", "_low", "_high")]


def estimate_row(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate under these columns; exact ones have stderr 0."""
    values = (estimate.value, estimate.stderr, estimate.low, estimate.high)
    return dict(zip(estimate_columns(name), values, strict=True))


def estimate_of(row: Mapping[Any, Any], name: str, *, num_samples: int = 0) -> Estimate:
    """The estimate that `estimate_row` wrote into a row; a part that the row lacks is nan.

    Args:
        row: values by column.
        name: of the estimate.
        num_samples: behind it; 0 where the row does not say.
    """
    value, stderr, low, high = (
        float(row.get(column, math.nan)) for column in estimate_columns(name)
    )
    return Estimate(value=value, stderr=stderr, low=low, high=high, num_samples=num_samples)


def from_record(values: Mapping[str, Any], *, num_samples: int = 0) -> Estimate:
    """The estimate that `Estimate.to_dict` made a record of.

    Of an interval with a lower end alone the upper one is open.

    Args:
        values: the four parts by name, None where not finite.
        num_samples: behind it; 0 where the record does not say.

    Raises:
        KeyError, TypeError: a part is missing, or no number.
    """
    value, stderr, low, high = (
        math.nan if values[name] is None else float(values[name])
        for name in ("value", "stderr", "low", "high")
    )
    if math.isnan(high) and not math.isnan(low):
        high = math.inf
    return Estimate(value=value, stderr=stderr, low=low, high=high, num_samples=num_samples)


def student_t(dof: float, *, confidence: float = CONFIDENCE) -> float:
    """How many standard errors a two-sided interval of Student's t reaches; nan for no dof.

    Of scipy.special, imported here: it takes a fifth of a second, scipy.stats half of one, and
    workers that only train need neither.
    """
    from scipy import special

    return float(special.stdtrit(dof, (1 + confidence) / 2))


def exact(value: float, *, num_samples: int = 1) -> Estimate:
    """A number known without error."""
    return Estimate(value=value, stderr=0.0, low=value, high=value, num_samples=num_samples)


def from_stderr(
    value: float,
    stderr: float,
    *,
    num_samples: int,
    dof: float | None = None,
    reach: Reach | None = None,
) -> Estimate:
    """Value ± stderr with an interval.

    Args:
        value: the estimate.
        stderr: its standard error.
        num_samples: behind it; of fewer than two the error is not known.
        dof: degrees of freedom of Student's t; None: num_samples − 1.
        reach: how far the interval goes; None: as far as Student's t.

    Returns:
        The estimate.
    """
    if num_samples < 2:
        return Estimate(
            value=value, stderr=math.nan, low=math.nan, high=math.nan, num_samples=num_samples
        )
    if reach is None:
        reach = Reach(*2 * [student_t(dof or num_samples - 1)])
    return Estimate(
        value=value,
        stderr=float(stderr),
        low=value - reach.below * float(stderr),
        high=value + reach.above * float(stderr),
        num_samples=num_samples,
    )


def from_samples(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The mean of independent samples (n,), its stderr with 1/(n − 1), and Student's t interval."""
    values = np.asarray(samples, dtype=np.float64)
    if len(values) < 2:
        return from_stderr(float(values.mean()), math.nan, num_samples=len(values))
    stderr = float(values.std(ddof=1)) / math.sqrt(len(values))
    return from_stderr(float(values.mean()), stderr, num_samples=len(values))


def from_log_samples(samples: Sequence[float] | np.ndarray) -> Estimate:
    """The geometric mean of positive samples (n,), with Student's t interval in logarithms."""
    logs = from_samples(np.log(np.asarray(samples, dtype=np.float64)))
    value = math.exp(logs.value)
    return Estimate(
        value=value,
        stderr=value * logs.stderr,
        low=math.exp(logs.low),
        high=math.exp(logs.high),
        num_samples=logs.num_samples,
    )


def quotient(numerator: Estimate, denominator: Estimate) -> Estimate:
    """The ratio of two independent positive estimates, from their intervals alone.

    Its logarithm's distance from each end is the root of the sum of the squares of the two
    estimates' distances that pull that way (Zou and Donner 2008); an interval that is open, or a
    value that is not defined, stays so. stderr: a quarter of the interval in logs, times the value.
    """
    num_samples = min(numerator.num_samples, denominator.num_samples)
    if not (numerator.value > 0 and denominator.value > 0):
        return undefined(num_samples=num_samples)
    value = numerator.value / denominator.value

    def distance(estimate: Estimate, end: float) -> float:
        if math.isnan(end):
            return math.nan
        return math.inf if end <= 0 or math.isinf(end) else math.log(end / estimate.value)

    below = math.hypot(distance(numerator, numerator.low), distance(denominator, denominator.high))
    above = math.hypot(distance(numerator, numerator.high), distance(denominator, denominator.low))
    return Estimate(
        value=value,
        stderr=value * (below + above) / 4,
        low=value * math.exp(-below),
        high=value * math.exp(above),
        num_samples=num_samples,
    )


def between(
    first: float, second: float, stderr: float, *, num_samples: int, one_sign: bool = False
) -> Estimate:
    """A number between two estimates of it that err to opposite sides.

    The value is half-way; the interval reaches Student's t times `stderr` beyond both, so that it
    covers as long as the truth lies between what the two estimate on average. stderr: of a normal
    interval as long.

    Args:
        first: the one estimate.
        second: the other.
        stderr: the standard error of either.
        num_samples: independent samples behind it, one more than the degrees of freedom of t.
        one_sign: whether the estimates are means of numbers of one sign: the interval is then
            taken in logarithms, with stderr/first, as suits their skew.
    """
    value = (first + second) / 2
    if num_samples < 2:
        return from_stderr(value, math.nan, num_samples=num_samples)
    t = student_t(num_samples - 1)
    if one_sign and first * second > 0:
        factor = math.exp(t * stderr / abs(first))
        ends = [end * power for end in (first, second) for power in (1 / factor, factor)]
    else:
        ends = [end + shift for end in (first, second) for shift in (-t * stderr, t * stderr)]
    return Estimate.from_interval(
        value, min(ends), max(ends), num_samples=num_samples, widths=2 * t, scale="linear"
    )


def rescaled(ratio: Estimate, reach: Reach, *, dof: float) -> Estimate:
    """A positive ratio whose interval of Student's t reaches, in logs, as far as `reach` says.

    Args:
        ratio: with Fieller's interval, or without one, which changes nothing.
        reach: of its logarithm, in standard errors.
        dof: of Student's t.
    """
    if ratio.kind != "interval" or not 0 < ratio.low <= ratio.value:
        return ratio
    t = student_t(dof)
    low = ratio.value * (ratio.low / ratio.value) ** (reach.below / t)
    high = ratio.value * (ratio.high / ratio.value) ** (reach.above / t)
    return replace(ratio, low=low, high=high)


def stretched(ratio: Estimate, numerator: Estimate, denominator: Estimate) -> Estimate:
    """A ratio whose interval reaches as far as its halves' intervals leave open, by `quotient`.

    For halves that err skewly, of which Fieller's interval knows nothing. Halves that are not
    positive, and a ratio without an interval, change nothing.
    """
    rough = quotient(numerator, denominator)
    if ratio.kind != "interval" or rough.kind != "interval":
        return ratio
    low, high = min(ratio.low, rough.low), max(ratio.high, rough.high)
    if math.isinf(high):
        return undefined(num_samples=ratio.num_samples, low=low)
    return replace(ratio, low=low, high=high)


def undefined(*, num_samples: int, low: float = math.nan) -> Estimate:
    """No value, at most a lower bound."""
    high = math.nan if math.isnan(low) else math.inf
    return Estimate(value=math.nan, stderr=math.nan, low=low, high=high, num_samples=num_samples)


def ratio(
    numerator: float, denominator: float, covariance: np.ndarray, *, num_samples: int, dof: float
) -> Estimate:
    """numerator/denominator with Fieller's interval (1954): the R with |x − Ry| ≤ t·stderr(x − Ry).

    Where the denominator is not significantly above zero the ratio is unresolved: value and stderr
    are nan, `low` is Fieller's root, below which the ratio of a positive denominator cannot lie,
    and `high` infinite; without even a bound, all are nan. An estimate below zero gives the
    (weaker) bound of zero, since its stderr is small by the same chance. Values are never clamped.

    Args:
        numerator: x.
        denominator: y.
        covariance: of the two (2, 2), zero where both are exact, nan where it is unknown.
        num_samples: behind them.
        dof: degrees of freedom of t.

    Returns:
        The ratio; its stderr is that of first order.
    """
    x, y = numerator, denominator
    if np.isnan(covariance).any():
        value = x / y if y > 0 else math.nan
        return from_stderr(value, math.nan, num_samples=num_samples)
    if y > 0 and not covariance.any():
        return exact(x / y, num_samples=num_samples)
    squared_t = student_t(dof) ** 2
    (vxx, vxy), (_, vyy) = covariance
    # a R² − 2b R + c ≤ 0
    bounded = max(y, 0.0)
    a, b, c = bounded**2 - squared_t * vyy, x * bounded - squared_t * vxy, x**2 - squared_t * vxx
    discriminant = b**2 - a * c
    if y > 0 and a > 0:
        value = x / y
        stderr = math.sqrt(max(vxx - 2 * value * vxy + value**2 * vyy, 0.0)) / y
        half = math.sqrt(max(discriminant, 0.0))  # a sum of squares, negative by rounding alone
        low, high = float((b - half) / a), float((b + half) / a)
        return Estimate(value=value, stderr=stderr, low=low, high=high, num_samples=num_samples)
    # all but what lies between the roots, of which one is on either side of zero
    if a < 0 < c and x > 0:
        return undefined(num_samples=num_samples, low=float((b - math.sqrt(discriminant)) / a))
    return undefined(num_samples=num_samples)
