"""Predicted limits of stable training."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from noisescale.errors import SettingError
from noisescale.statistics.display import Shown, Summary, share
from noisescale.statistics.estimate import Estimate, estimate_row, from_stderr, undefined

if TYPE_CHECKING:
    import pandas as pd

# the constants that each prediction is made of
MADE_OF = {
    "upper": ("sharpness", "concentration"),
    "lower": ("sharpness", "largest_example"),
    "gaussian": ("sharpness", "trace"),
    "descent": ("best_rate", "noise_batch_size"),
    "wu": ("sharpness", "square_deviation"),
}


# the constants, by their names in records, and what they are called
SYMBOLS = {
    "sharpness": "λ_max",
    "concentration": "κ",
    "largest_example": "β",
    "trace": "tr H",
    "square_deviation": "s²",
    "best_rate": "ε_max",
    "noise_batch_size": "B_noise",
}


def side_of(limit: float, *, low: float, high: float) -> str:
    """Whether an interval lies "below", "at" or "above" a limit."""
    if high < limit:
        return "below"
    return "above" if low > limit else "at"


def batch_noise_factor(batch_size: float, *, population_size: int | None) -> float:
    """The p of Cov(mean over a batch) = p·Σ, Σ with 1/N over the examples.

    (N − B)/(B(N − 1)) for a batch drawn without replacement from N = `population_size` examples;
    1/B with replacement or from a distribution (None).
    """
    if population_size is None and batch_size >= 1:
        return 1 / batch_size
    if population_size is None:
        raise SettingError(f"batch size {batch_size}: give 1 or more")
    if not 1 <= batch_size <= population_size:
        raise SettingError(
            f"batch size {batch_size}: give 1 to {population_size}, the number of examples"
        )
    if population_size == 1:
        return 0.0
    return (population_size - batch_size) / (batch_size * (population_size - 1))


@dataclass(frozen=True, kw_only=True)
class StabilityCurve:
    """A predicted threshold η_max(B) = η_∞ / (1 + p·B_c), p as in `batch_noise_factor`.

    Attributes:
        largest_rate: η_∞, the threshold of gradient descent on all examples.
        critical_batch_size: B_c, the batch size at which, with replacement, it has fallen to half.
    """

    largest_rate: float
    critical_batch_size: float

    def rate(self, batch_size: float, *, population_size: int | None) -> float:
        """η_max(B)."""
        factor = batch_noise_factor(batch_size, population_size=population_size)
        if factor == 0:  # B_c may be infinite
            return self.largest_rate
        over = 1 + factor * self.critical_batch_size
        return math.inf if over <= 0 else self.largest_rate / over  # no rate is too large


@dataclass(frozen=True, kw_only=True, repr=False)
class StabilityConstants(Shown):
    """What the predictions of plain SGD's stability at one point need to know of its curvature.

    H = (1/N) Σ H_i, where H_i is an example's Gauss–Newton matrix, positive semi-definite.

    Attributes:
        sharpness: λ = λ_max(H).
        concentration: κ = mean (vᵀH_i v)²/λ², v the eigenvector of λ; at least 1.
        largest_example: β = max_i λ_max(H_i) over the examples looked at.
        trace: tr H.
        square_deviation: s² = λ_max(mean H_i² − H²).
        best_rate: ε_max = |G|²/GᵀHG with the Hessian of the loss; nan where it is undefined or
            unresolved.
        noise_batch_size: B_noise = tr(HΣ)/GᵀHG, likewise.
        num_examples: looked at one by one, for β, tr H and s; of a random subset β and s are those
            of the subset.
        population_size: N, how many there are; None where that was not kept.
        estimates: the constants by name, each with its error; those of a record that was kept
            before there were any are missing. β of a subset is a lower estimate: its interval is
            open above. s² has its sampling error alone, and errs upwards.
    """

    sharpness: float
    concentration: float
    largest_example: float
    trace: float
    square_deviation: float
    best_rate: float
    noise_batch_size: float
    num_examples: int
    population_size: int | None = None
    estimates: dict[str, Estimate] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StabilityConstants:
        """The constants as a sweep keeps them; those of before there were estimates have none.

        Args:
            values: the fields by name, nan and infinity by their names.

        Raises:
            TypeError: a field is missing or unknown.
            ValueError: a word stands in the place of a number.
        """
        numbers: dict[str, Any] = {
            name: float(value) if isinstance(value, str) else value
            for name, value in values.items()
            if name != "estimates"
        }
        estimates = {
            name: Estimate.from_dict(parts) for name, parts in values.get("estimates", {}).items()
        }
        return cls(**numbers, estimates=estimates)

    def estimate(self, name: str) -> Estimate:
        """A constant with its error, which is unknown where it was not kept.

        Args:
            name: such as "sharpness".
        """
        value = float(getattr(self, name))
        unknown = from_stderr(value, math.nan, num_samples=1)
        return self.estimates.get(name, unknown)

    def to_frame(self) -> pd.DataFrame:
        """One row: each constant with its _stderr, _low and _high, and how many examples."""
        import pandas as pd

        row: dict[str, Any] = {}
        for name in SYMBOLS:
            row |= estimate_row(name, self.estimate(name))
        total = math.nan if self.population_size is None else self.population_size
        row |= {"num_examples": self.num_examples, "population_size": total}
        return pd.DataFrame([row])

    def _summary(self) -> Summary:
        count = share(self.num_examples, self.population_size)
        return Summary(
            title=f"Constants of stability at one point, by {count} examples",
            rows=[
                *((symbol, str(self.estimate(name))) for name, symbol in SYMBOLS.items()),
                ("2/λ_max", f"{2 / self.sharpness:.3g}"),
            ],
            notes=self.notes,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the curves should know."""
        largest = self.estimates.get("largest_example")
        if largest is None or largest.stderr == 0:
            return ()
        return (
            f"β is the largest of the {self.num_examples:,} examples looked at, a lower estimate, "
            "so that the curve `lower` is an upper estimate of what it should be, and no bound",
        )

    @property
    def curves(self) -> dict[str, StabilityCurve]:
        """The curves η_∞/(1 + p·B_c), by name.

        "upper", "lower" and "gaussian" are of staying at a minimum in mean square, with independent
        batches. No learning rate above `upper` does (Mulayoff & Michaeli 2023, arXiv 2306.07850);
        every one below `lower` does (cf. Ma, Bassily & Belkin 2018, arXiv 1712.06559), as far as β
        is that of all examples; `gaussian` is sufficient where H_i = x xᵀ with Gaussian x.
        "descent": below it, one step lowers the expected loss: 2·ε_opt(B) (McCandlish et al. 2018,
        arXiv 1812.06162, 2.6).
        """
        edge = 2 / self.sharpness
        return {
            "upper": StabilityCurve(largest_rate=edge, critical_batch_size=self.concentration - 1),
            "lower": StabilityCurve(
                largest_rate=edge, critical_batch_size=self.largest_example / self.sharpness - 1
            ),
            "gaussian": StabilityCurve(
                largest_rate=edge, critical_batch_size=1 + self.trace / self.sharpness
            ),
            "descent": StabilityCurve(
                largest_rate=2 * self.best_rate, critical_batch_size=self.noise_batch_size
            ),
        }

    def wu_rate(self, batch_size: float, *, population_size: int | None) -> float:
        """The rectangle of Wu, Ma & E (2018): the largest η with λ ≤ 2/η and s ≤ 1/(η√p).

        Neither necessary nor sufficient for mean-square stability in more than one dimension.

        Args:
            batch_size: B.
            population_size: N, of batches drawn without replacement; None: with replacement.

        Returns:
            η.
        """
        noise = (
            batch_noise_factor(batch_size, population_size=population_size) * self.square_deviation
        )
        return min(2 / self.sharpness, math.inf if noise <= 0 else 1 / math.sqrt(noise))

    def rates(self, batch_size: float, *, population_size: int | None) -> dict[str, float]:
        """Every prediction at one batch size, by name; nan where there is none.

        Args:
            batch_size: B.
            population_size: N, of batches drawn without replacement; None: with replacement.

        Returns:
            The largest stable learning rate of each of `curves` and, as "wu", of `wu_rate`.
        """
        rates = {
            name: curve.rate(batch_size, population_size=population_size)
            for name, curve in self.curves.items()
        }
        return rates | {"wu": self.wu_rate(batch_size, population_size=population_size)}

    def rate_estimates(
        self, batch_size: float, *, population_size: int | None
    ) -> dict[str, Estimate]:
        """Every prediction at one batch size, by name, with the interval its constants leave it.

        It reaches as far as any combination of the ends of its constants' intervals, whose errors
        may go together: it covers at least 90 % of the time, and mostly more than 95 %. It is no
        statement on how well the prediction holds. Unknown where a constant has no interval.

        Args:
            batch_size: B.
            population_size: N, of batches drawn without replacement; None: with replacement.

        Returns:
            The predictions of `rates`.
        """
        rates = self.rates(batch_size, population_size=population_size)
        return {
            name: self._with_interval(name, rate, batch_size, population_size)
            for name, rate in rates.items()
        }

    def _with_interval(
        self, name: str, rate: float, batch_size: float, population_size: int | None
    ) -> Estimate:
        """A prediction with the interval that those of its constants span."""
        unknown = undefined(num_samples=0)
        constants = [self.estimates.get(constant, unknown) for constant in MADE_OF[name]]
        corners = []
        for ends in itertools.product(*((constant.low, constant.high) for constant in constants)):
            moved: dict[str, Any] = dict(zip(MADE_OF[name], ends, strict=True))
            rates = replace(self, **moved).rates(batch_size, population_size=population_size)
            corners.append(rates[name])
        known = not any(math.isnan(corner) for corner in corners)
        return Estimate.from_interval(
            rate,
            min(corners) if known else math.nan,
            max(corners) if known else math.nan,
            num_samples=min(constant.num_samples for constant in constants),
        )
