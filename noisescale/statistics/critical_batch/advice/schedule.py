"""A batch size that grows along a run, from the noise scale along one like it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from noisescale.errors import MeasurementError, SettingError, check_count
from noisescale.statistics.critical_batch.recommendation import Recommendation
from noisescale.statistics.estimate import jsonable


@dataclass(frozen=True)
class Stage:
    """A part of a run at one batch size.

    Attributes:
        examples: used before it begins.
        step: updates made before it begins.
        batch_size: examples per update in it.
    """

    examples: int
    step: int
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class BatchSizeSchedule:
    """Batch sizes that never fall, the first one doubled and doubled again.

    Attributes:
        stages: from the first update on, each with twice the batch size of the one before it, or
            four times, and so on.
        multiple_of: a number that divides every batch size.
        num_examples: in the training set, an epoch.
        num_resolved: the measurements of the noise that it rests on.
        num_measurements: all there were.
        covered: the share of the tracked run's steps between two neighbours that are resolved; over
            the others the batch size stays as it is.
        critical: B_crit of a run at one batch size, which the stages are balanced by.
        units_per_example: the mean number of tokens of an example; None: not told.
    """

    stages: tuple[Stage, ...]
    multiple_of: int
    num_examples: int
    num_resolved: int
    num_measurements: int
    covered: float
    critical: float
    units_per_example: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON."""
        record = {**vars(self), "stages": [vars(stage) for stage in self.stages]}
        stored: dict[str, Any] = jsonable(record)
        return stored


def batch_size_schedule(
    table: pd.DataFrame,
    found: Recommendation,
    *,
    multiple_of: int = 1,
    units_per_example: float | None = None,
) -> BatchSizeSchedule:
    """The schedule of a run like the one along which the noise was measured.

    With 𝓑(t) for the noise scale along the run, times what B_crit of the whole run is of its mean
    by progress, the batch size is √(B_crit·𝓑(t)), at which steps and examples are balanced
    (McCandlish et al. 2018, appendix D, at the exchange rate E_min/S_min). 𝓑 is made monotone by
    isotonic regression of its logarithm, and √(B_crit·𝓑) rounded to the first size times a power
    of two. Each stage begins at the first measurement that calls for it. The same progress takes
    (B + 𝓑)/(B_0 + 𝓑) of the examples that it took at the tracked run's B_0, by which the begins
    are moved; over stretches that are not resolved as many as it took.

    Args:
        table: the rows of noise.csv.
        found: what `recommend` made of them.
        multiple_of: a number that divides every batch size, such as the examples that all devices
            take at once.
        units_per_example: the mean number of tokens of an example; None: not told.

    Raises:
        MeasurementError: no measurement is resolved.
        SettingError: a multiple of more than all training examples.
    """
    from scipy.optimize import isotonic_regression  # takes 0.1 s to load

    check_count("multiple of", multiple_of)
    largest = found.population_size // multiple_of * multiple_of
    if largest == 0:
        raise SettingError(
            f"multiple of {multiple_of}: there are {found.population_size} training examples; give "
            f"{found.population_size} at most"
        )
    steps = table["step"].to_numpy(dtype=float)
    sizes = table["batch_size"].to_numpy(dtype=float)
    values = table[found.column].to_numpy(dtype=float)
    resolved = np.isfinite(values) & (values > 0)
    if not resolved.any():
        raise MeasurementError("no measurement of the noise along the run is resolved")
    critical = found.critical_batch_size.value
    scale = np.full(len(values), np.nan)
    calibrated = values[resolved] * critical / found.by_progress.value
    scale[resolved] = np.exp(isotonic_regression(np.log(calibrated)).x)
    wanted = np.sqrt(critical * scale)
    first = _multiple(float(wanted[resolved][0]), multiple_of, largest=largest)
    doublings = math.floor(math.log2(largest / first))
    examples = made = 0.0
    size = first
    stages = [Stage(0, 0, first)]
    for row in range(len(table)):
        if resolved[row]:
            power = min(max(round(math.log2(wanted[row] / first)), 0), doublings)
            if (due := first * 2**power) > size:
                size = due
                begin = Stage(round(examples), round(made), size)
                if begin.step > stages[-1].step:
                    stages.append(begin)
                else:  # the one before it would have no update
                    stages[-1] = replace(stages[-1], batch_size=size)
        if row + 1 == len(table):
            break
        taken = (steps[row + 1] - steps[row]) * sizes[row]
        if resolved[row] and resolved[row + 1]:
            between = math.sqrt(scale[row] * scale[row + 1])
            taken *= (size + between) / (sizes[row] + between)
        examples += taken
        made += taken / size
    return BatchSizeSchedule(
        stages=tuple(stages),
        multiple_of=multiple_of,
        num_examples=found.population_size,
        num_resolved=int(resolved.sum()),
        num_measurements=len(table),
        covered=found.covered,
        critical=critical,
        units_per_example=units_per_example,
    )


def _multiple(size: float, of: int, *, largest: int) -> int:
    """The multiple nearest to a batch size, from one of them to the largest."""
    return min(max(round(size / of), 1) * of, largest)
