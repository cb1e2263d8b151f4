"""B_crit with an interval that holds the error of the model, from the noise scale of one run.

measured.csv has runs on tasks whose B_crit is measured by their fronts: what the noise scale 𝓑
along each says, averaged by progress, and how the run's rate compares with the best. A run far
below the best rate has the larger 𝓑 at equal loss. It is the table of `python -m experiments
calibration --scale full` and `python -m analysis calibration`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from noisescale.statistics.estimate import Estimate, student_t

MEASURED = Path(__file__).with_name("measured.csv")
Scale = Literal["simple", "full"]
Regressor = Literal["relative_decrease", "rate_over_best"]  # x: what is known of the run's rate


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """log(𝓑/B_crit) = offset + slope·(log x − centre), x the run's rate in units of the best.

    x is `relative_decrease` or, where a search has found the best rate, the rate over it: that of
    MNIST's runs at their best rates is another on other tasks.

    The rows of one task and goal share the error of its measured B_crit and much else; so the
    blocks, not the rows, count as independent: a prediction for another has the rows' scatter, that
    of as many values as there are blocks, and Student's t. What sets one task apart from another it
    knows only as far as the table has tasks.

    Attributes:
        offset: at the centre.
        slope: 0 where the rate is not taken into account.
        centre: mean of log x.
        width: standard deviation of log x.
        spread: of the residuals.
        num_blocks: pairs of task and goal.
        unit: x at the best rate: the rows' geometric mean of x over ε/ε_opt.
    """

    offset: float
    slope: float
    centre: float
    width: float
    spread: float
    num_blocks: int
    unit: float

    @classmethod
    def fitted(
        cls,
        rows: pd.DataFrame,
        *,
        with_rate: bool,
        regressor: Regressor = "relative_decrease",
    ) -> Calibration:
        """By least squares.

        Args:
            rows: of measured.csv, of one quantity.
            with_rate: whether x is known of the run that is to be predicted.
            regressor: what x is.
        """
        logs = np.log((rows["noise_scale"] / rows["critical_batch_size"]).to_numpy())
        x = np.log(rows[regressor].to_numpy())
        distance = x - x.mean()
        slope = float(distance @ logs / (distance @ distance)) if with_rate else 0.0
        residuals = logs - logs.mean() - slope * distance
        return cls(
            offset=float(logs.mean()),
            slope=slope,
            centre=float(x.mean()),
            width=float(x.std()),
            spread=float(np.sqrt(residuals @ residuals / (len(logs) - 1 - with_rate))),
            num_blocks=len(rows[["task", "goal"]].drop_duplicates()),
            unit=float(np.exp(np.mean(x - np.log(rows["rate_over_best"].to_numpy())))),
        )

    def critical_batch_size(self, noise_scale: Estimate, x: float | None) -> Estimate:
        """B_crit of a run with this noise scale, with a 95 % interval for another such run.

        Args:
            noise_scale: 𝓑 averaged by progress, with its error of measurement.
            x: of the run; None, or nan, with a calibration that does without.
        """
        widths = 0.0  # from the centre
        if self.slope and x is not None:
            widths = (math.log(x) - self.centre) / self.width
        log_factor = -self.offset - self.slope * widths * self.width
        fitted = 1 + bool(self.slope)  # parameters
        leverage = (1 + widths**2) / self.num_blocks
        model = student_t(self.num_blocks - fitted) * self.spread * math.sqrt(1 + leverage)
        ends = [
            math.hypot(model, math.log(high / low)) if low > 0 and high < math.inf else math.inf
            for low, high in (
                (noise_scale.low, noise_scale.value),
                (noise_scale.value, noise_scale.high),
            )
        ]
        value = noise_scale.value * math.exp(log_factor)
        return Estimate.from_interval(
            value,
            value * math.exp(-ends[0]),
            value * math.exp(ends[1]),
            num_samples=self.num_blocks,
        )


def calibration(
    quantity: Scale, *, with_rate: bool, regressor: Regressor = "relative_decrease"
) -> Calibration:
    """The calibration from the table that comes with the package.

    Args:
        quantity: "simple", B_simple, or "full", B_noise.
        with_rate: whether x of the run is known.
        regressor: what x is.
    """
    rows = measured()
    rows = rows[rows["quantity"] == quantity]
    return Calibration.fitted(rows, with_rate=with_rate, regressor=regressor)


@lru_cache(maxsize=1)
def measured() -> pd.DataFrame:
    """The rows of measured.csv."""
    return pd.read_csv(MEASURED, comment="#")


def relative_decrease(table: pd.DataFrame, *, learning_rate: float) -> float | None:
    """The share of the loss that the first step's gradient promises to take, x = ε·E|g_B|²/L_0.

    E|g_B|² = |G_0|² + tr Σ_0/B, of a batch's gradient where the run starts. x goes as ε/ε_opt(B),
    with ε_opt(B) = ε_max/(1 + 𝓑/B), in units that a problem's own loss sets. The ε_max of one step,
    |G|²/GᵀHG, sets none: GᵀHG starts small or negative, and rates that are five times as high train
    best.

    Args:
        table: rows of noise.csv.
        learning_rate: ε, constant, of SGD without momentum.

    Returns:
        x; None where the table does not begin at the run's start.
    """
    start = table.iloc[0]
    if start["step"] != 0 or not {"loss", "squared_gradient_norm", "gradient_variance"} <= set(
        table
    ):
        return None
    square = start["squared_gradient_norm"] + start["gradient_variance"] / start["batch_size"]
    decrease = float(learning_rate * square / start["loss"])
    return decrease if decrease > 0 else None
