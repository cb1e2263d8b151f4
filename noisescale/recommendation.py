"""Batch sizes for a run whose noise scale has been tracked: fewest examples, balanced, fewest steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from noisescale.errors import MeasurementError
from noisescale.tradeoff import Tradeoff

AIMS = {"fewest examples": 0.1, "balanced": 1.0, "fewest steps": 10.0}  # batch size in units of B_crit
NAMES: dict[Literal["simple", "full"], str] = {"full": "B_noise", "simple": "B_simple"}


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What the noise scale 𝓑 along a run says about the batch size of another like it.

    quantity: "full", B_noise, where it was tracked and resolved at least twice; else "simple", B_simple.
    course: the steps and examples that the run's course takes, from 𝓑 interpolated between measurements.
    low, high: the same from the lower and the upper ends of all intervals, as if the errors were one: they
        are of the same examples.
    start, end, average: 𝓑 at the first and last resolved measurement, and its mean over the run's steps.
    num_measurements, num_unresolved: rows there were, and those of them without a value.
    """

    quantity: Literal["simple", "full"]
    course: Tradeoff
    low: Tradeoff
    high: Tradeoff | None
    start: float
    end: float
    average: float
    num_measurements: int
    num_unresolved: int

    @property
    def name(self) -> str:
        return NAMES[self.quantity]

    def batch_size(self, aim: str) -> int:
        """For "fewest examples" a tenth of B_crit, for "balanced" B_crit, for "fewest steps" ten times it.

        They take 1.1, 2 and 11 times the fewest examples, and 11, 2 and 1.1 times the fewest steps.
        """
        size = AIMS[aim] * self.course.critical_batch_size
        return max(1, round(float(f"{size:.2g}")))

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: the key `recommendation` of `noisescale measure-noise --json`."""
        sizes = []
        for aim in AIMS:
            steps, examples = self.course.fixed(self.batch_size(aim))
            sizes.append(
                {"aim": aim, "batch_size": self.batch_size(aim), "steps": steps, "examples": examples}
            )
        return {
            "from": self.quantity,
            "start": self.start,
            "average": self.average,
            "end": self.end,
            "num_measurements": self.num_measurements,
            "num_unresolved": self.num_unresolved,
            "min_steps": self.course.min_steps,
            "min_examples": self.course.min_examples,
            "critical_batch_size": {
                "value": self.course.critical_batch_size,
                "low": self.low.critical_batch_size,
                "high": None if self.high is None else self.high.critical_batch_size,
            },
            "gain": self.course.gain,
            "sizes": sizes,
        }


def recommend(table: pd.DataFrame) -> Recommendation:
    """The recommendation from the rows of a run's noise.csv.

    MeasurementError where fewer than two of them have a noise scale.
    """
    for quantity in NAMES:
        rows = table[np.isfinite(table[quantity]) & (table[quantity] > 0)]
        if len(rows) >= 2:
            break
    else:
        raise MeasurementError(
            f"{len(rows)} of {len(table)} measurements along the run have a noise scale, and it takes 2: "
            "track it on more examples (--noise-examples)"
        )
    low = rows[f"{quantity}_low"].fillna(rows[quantity]).clip(lower=0)
    high = rows[f"{quantity}_high"].fillna(rows[quantity])
    steps = rows["step"].to_numpy(dtype=float)
    values = rows[quantity].to_numpy(dtype=float)
    return Recommendation(
        quantity=quantity,
        course=_course(rows, values),
        low=_course(rows, low.to_numpy(dtype=float)),
        high=_course(rows, high.to_numpy(dtype=float)) if np.isfinite(high).all() else None,
        start=float(values[0]),
        end=float(values[-1]),
        average=float(np.trapezoid(values, steps) / (steps[-1] - steps[0])),
        num_measurements=len(table),
        num_unresolved=len(table) - len(rows),
    )


def _course(rows: pd.DataFrame, values: np.ndarray) -> Tradeoff:
    """The trade-off over the steps between rows, each stretch at its ends' mean noise scale."""
    steps, sizes = rows["step"].tolist(), rows["batch_size"].tolist()
    course = Tradeoff()
    for index in range(len(rows) - 1):
        scale = float(values[index] + values[index + 1]) / 2
        made = steps[index + 1] - steps[index]
        course = course.after(scale, batch_size=sizes[index], steps=made)
    return course
