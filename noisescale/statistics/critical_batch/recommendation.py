"""Batch sizes for a run like one along which the noise scale has been tracked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.steps_vs_examples import Tradeoff
from noisescale.statistics.estimate import Estimate, estimate_columns, jsonable

# batch size in units of B_crit: steps or examples at 1.1 times their least, or both at twice it
AIMS = {"fewest examples": 0.1, "balanced": 1.0, "fewest steps": 10.0}
LEAST_COVERED = 0.75  # of the run's steps, for B_noise to be taken: what is left out is then little
PARTS = ("value", "stderr", "low", "high")
Scale = Literal["simple", "full"]


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What the noise scale 𝓑 along a run says about the batch size of another like it.

    Attributes:
        quantity: "full", B_noise, where it was tracked and is resolved along most of the run; else
            "simple".
        covered: the share of the run's steps in stretches at both of whose ends it is resolved.
        course: the steps and examples that the run's course takes, from 𝓑 interpolated between
            resolved measurements, at the batch size with which each stretch began.
        low: the same from the lower ends of all intervals, as if the errors were one: they are of
            the same examples. Interpolation adds no error here.
        high: the same from the upper ends; None where an interval is open.
        start: 𝓑 at the first resolved measurement.
        end: 𝓑 at the last one.
        average: its mean over the steps between.
        population_size: the training examples, which no batch can exceed.
        num_measurements: along the run.
        num_unresolved: of these.
    """

    quantity: Scale
    covered: float
    course: Tradeoff
    low: Tradeoff
    high: Tradeoff | None
    start: Estimate
    end: Estimate
    average: Estimate
    population_size: int
    num_measurements: int
    num_unresolved: int

    @property
    def critical_batch_size(self) -> Estimate:
        """B_crit = E_min/S_min of the run's course, its interval from those of all measurements."""
        # a quarter of the interval, not of its logarithm: both ends are means, which add
        return Estimate.from_interval(
            self.course.critical_batch_size,
            self.low.critical_batch_size,
            math.inf if self.high is None else self.high.critical_batch_size,
            num_samples=self.average.num_samples,
            scale="linear",
        )

    def batch_size(self, aim: str) -> int:
        """The batch size for an aim: a tenth of B_crit, B_crit, or ten times it.

        They take 1.1, 2 and 11 times the fewest examples, and 11, 2 and 1.1 times the fewest steps.

        Args:
            aim: "fewest examples", "balanced" or "fewest steps".

        Returns:
            Examples per update, two significant digits, at most all training examples.
        """
        size = AIMS[aim] * self.course.critical_batch_size
        return min(max(1, round(float(f"{size:.2g}"))), self.population_size)

    @property
    def sizes(self) -> list[dict[str, Any]]:
        """For each aim its batch size, and the S/S_min and E/E_min that this takes."""
        rows: list[dict[str, Any]] = []
        for aim in AIMS:
            steps, examples = self.course.fixed(self.batch_size(aim))
            row = {"aim": aim, "batch_size": self.batch_size(aim)}
            rows.append({**row, "steps": steps, "examples": examples})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: the key `recommendation` of `noisescale measure-noise --json`."""
        critical = self.critical_batch_size
        record: dict[str, Any] = {
            "from": self.quantity,
            "covered": self.covered,
            "start": self.start,
            "average": self.average,
            "end": self.end,
            "num_measurements": self.num_measurements,
            "num_unresolved": self.num_unresolved,
            "min_steps": self.course.min_steps,
            "min_examples": self.course.min_examples,
            "critical_batch_size": {
                "value": critical.value,
                "low": critical.low,
                "high": critical.high,
            },
            "gain": self.course.gain,
            "sizes": self.sizes,
        }
        stored: dict[str, Any] = jsonable(record)
        return stored


def recommend(table: pd.DataFrame, *, quantity: Scale | None = None) -> Recommendation:
    """The recommendation from the rows of a run's noise.csv.

    Args:
        table: the rows, by ascending step.
        quantity: which noise scale to take; None: "full" where it is resolved along most of the
            run.

    Returns:
        The recommendation.

    Raises:
        MeasurementError: fewer than two rows have a noise scale, or their steps do not increase.
    """
    steps = table["step"].to_numpy(dtype=float)
    if (np.diff(steps) <= 0).any() or (table["batch_size"] < 1).any():
        raise MeasurementError(
            "the table's steps do not increase, or a batch size in it is below 1"
        )
    if quantity is None:
        quantity = "full" if _covered(table, "full") >= LEAST_COVERED else "simple"
    rows = table[_resolved(table, quantity)]
    if len(rows) < 2:
        raise MeasurementError(
            f"{len(rows)} of {len(table)} measurements along the run have a noise scale, and it "
            "takes 2: track it on more examples (--noise-examples)"
        )
    names = dict(zip(PARTS, estimate_columns(quantity), strict=True))
    columns = {part: rows[name].to_numpy(dtype=float) for part, name in names.items()}
    columns["high"] = np.where(np.isnan(columns["high"]), columns["value"], columns["high"])
    # of a noise scale that is known to be positive
    columns["low"] = np.where(columns["low"] > 0, columns["low"], np.finfo(float).tiny)
    num_samples = int(rows["num_examples"].iloc[0])

    def measured(index: int) -> Estimate:
        parts = {part: float(column[index]) for part, column in columns.items()}
        return Estimate(**parts, num_samples=num_samples)

    at_steps = rows["step"].to_numpy(dtype=float)
    means = {
        part: float(np.trapezoid(column, at_steps) / (at_steps[-1] - at_steps[0]))
        for part, column in columns.items()
    }
    return Recommendation(
        quantity=quantity,
        covered=_covered(table, quantity),
        course=_course(rows, columns["value"]),
        low=_course(rows, columns["low"]),
        high=_course(rows, columns["high"]) if np.isfinite(columns["high"]).all() else None,
        start=measured(0),
        end=measured(-1),
        average=Estimate(**means, num_samples=num_samples),
        population_size=int(table["population_size"].max()),
        num_measurements=len(table),
        num_unresolved=len(table) - len(rows),
    )


def _resolved(table: pd.DataFrame, quantity: Scale) -> np.ndarray:
    """Which rows have a noise scale."""
    values = table[quantity].to_numpy(dtype=float)
    resolved: np.ndarray = np.isfinite(values) & (values > 0)
    return resolved


def _covered(table: pd.DataFrame, quantity: Scale) -> float:
    """The share of steps in stretches at both of whose ends the quantity is known."""
    resolved, steps = _resolved(table, quantity), table["step"].to_numpy(dtype=float)
    if len(steps) < 2:
        return 0.0
    return float((np.diff(steps) * (resolved[1:] & resolved[:-1])).sum() / (steps[-1] - steps[0]))


def _course(rows: pd.DataFrame, values: np.ndarray) -> Tradeoff:
    """The trade-off over the steps between rows, each stretch at its ends' mean noise scale."""
    steps, sizes = rows["step"].tolist(), rows["batch_size"].tolist()
    course = Tradeoff()
    for index in range(len(rows) - 1):
        scale = float(values[index] + values[index + 1]) / 2
        made = steps[index + 1] - steps[index]
        course = course.after(scale, batch_size=sizes[index], steps=made)
    return course
