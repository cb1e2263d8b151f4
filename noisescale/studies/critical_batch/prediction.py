"""The noise scale averaged along runs to the goals, held against the critical batch size measured there."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.fit import CriticalBatchFit
from noisescale.statistics.critical_batch.recommendation import Recommendation, Scale, recommend
from noisescale.statistics.estimate import (
    Estimate,
    estimate_columns,
    estimate_row,
    from_log_samples,
    quotient,
    undefined,
)
from noisescale.studies.critical_batch.goal_run import GoalRun
from noisescale.training.records.tables import read_noise

QUANTITIES: tuple[Scale, ...] = ("simple", "full")


ESTIMATES = (
    "critical_batch_size",
    "start",
    "average",
    "by_progress",
    "end",
    "ratio",
    "ratio_by_progress",
)
PREDICTED_COLUMNS = (
    *("goal", "quantity", "batch_size", "learning_rate", "num_seeds", "covered"),
    *estimate_columns(*ESTIMATES),
)


def predicted_rows(goal: float, fit: CriticalBatchFit, runs: list[GoalRun]) -> list[dict[str, Any]]:
    """A row for B_simple and one for B_noise: where the runs start, averaged up to the goal, and at the goal.

    average: over the steps, as McCandlish et al. 2018 do. by_progress: E_min/S_min of (2.12), weighted by
    the progress made, which a step at batch size B makes as 1/(1 + 𝓑/B). Both are geometric means over the
    seeds that reach the goal; of one seed, its own. ratio, ratio_by_progress: B_crit over each. covered: the
    least share of the steps over which the noise scale is resolved; the rest is left out. No row where it is
    nowhere.
    """
    rows = []
    for quantity in QUANTITIES:
        found: list[Recommendation] = []
        for run in runs:
            table = pd.DataFrame(read_noise(run.path))
            steps = run.steps(goal)
            if math.isinf(steps):
                continue
            try:
                found.append(recommend(table[table["step"] <= steps], quantity=quantity))
            except MeasurementError:
                continue
        if not found:
            continue
        average = _over_seeds([one.average for one in found])
        progress = _over_seeds([one.critical_batch_size for one in found])
        row: dict[str, Any] = {
            "goal": goal,
            "quantity": quantity,
            "batch_size": runs[0].summary["batch_size"],
            "learning_rate": runs[0].summary["learning_rate"],
            "num_seeds": len(found),
            "covered": min(one.covered for one in found),
        }
        estimates = {
            "critical_batch_size": fit.critical_batch_size,
            "start": _over_seeds([one.start for one in found]),
            "average": average,
            "by_progress": progress,
            "end": _over_seeds([one.end for one in found]),
            "ratio": quotient(fit.critical_batch_size, average),
            "ratio_by_progress": quotient(fit.critical_batch_size, progress),
        }
        for name, estimate in estimates.items():
            row |= estimate_row(name, estimate)
        rows.append(row)
    return rows


def _over_seeds(estimates: list[Estimate]) -> Estimate:
    values = np.array([one.value for one in estimates])
    if len(estimates) == 1:
        return estimates[0]
    if not (values > 0).all():
        return undefined(num_samples=len(estimates))
    return from_log_samples(values)
