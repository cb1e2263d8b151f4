"""B_crit of a run by the table of many tasks' fronts that comes with the package.

`fronts.csv` is made by `python -m analysis fronts`; its header has a version, which counts up with
every change of its rows. Of a noise scale that too few of its tasks have, as under an optimizer's
preconditioner, the runs of `measured.csv` stand in, see `model`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import pandas as pd

from noisescale.statistics.critical_batch.calibration.model import Scale, calibration
from noisescale.statistics.critical_batch.calibration.tasks import (
    NEAR,
    OF_OPTIMIZER,
    TaskModel,
    regressors,
    usable_regressors,
)
from noisescale.statistics.estimate import Estimate

FRONTS = Path(__file__).with_name("fronts.csv")
OptimizerKind = Literal["sgd", "momentum", "adaptive"]
Geometry = Literal["plain", "optimizer"]


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run tells of itself, beside its noise scale; None: it does not.

    Attributes:
        batch_size: B, of an adaptive one the geometric mean over its measurements.
        rate_over_best: its rate over the best one that a search has found.
        relative_decrease: see `model.relative_decrease`.
        negative_curvature: the share of its steps that begin where GᵀHG is below zero.
        relative_loss: the loss at its last measurement over that at its first, of the start.
        optimizer: of which kind it is.
    """

    batch_size: float | None = None
    rate_over_best: float | None = None
    relative_decrease: float | None = None
    negative_curvature: float | None = None
    relative_loss: float | None = None
    optimizer: OptimizerKind | None = None

    def known(self, noise_scale: float) -> dict[str, float]:
        """The regressors of `tasks` that follow from it and tell something of another task.

        The decrease of the first step and the share of negative curvature do not: with them
        intervals for tasks left out are no narrower (docs/findings, coverage.csv).

        Args:
            noise_scale: 𝓑 of the run.
        """
        row = {name: math.nan if value is None else value for name, value in vars(self).items()}
        values = regressors(pd.DataFrame([row]).assign(noise_scale=noise_scale))
        told = ("log_rate", "log_batch", "log_loss")
        names = told if self.optimizer is None else (*told, *OF_OPTIMIZER)
        return {name: values[name].item() for name in names if math.isfinite(values[name].item())}


def critical_batch_size(
    noise_scale: Estimate, facts: RunFacts, *, quantity: Scale, geometry: Geometry
) -> Estimate:
    """B_crit of another run like one with this noise scale, with a 95 % interval.

    Args:
        noise_scale: 𝓑 averaged by progress, with its error of measurement.
        facts: what else is known of the run.
        quantity: "simple", B_simple, or "full", B_noise.
        geometry: "plain", or "optimizer" for the noise scale under an optimizer's preconditioner.
    """
    known = facts.known(noise_scale.value)
    model = _of_tasks(FRONTS, quantity, geometry, tuple(known))
    if model is not None:
        return model.critical_batch_size(noise_scale, known, near=_is_near(facts))
    rate = facts.rate_over_best
    instead = calibration(quantity, with_rate=rate is not None, regressor="rate_over_best")
    return instead.critical_batch_size(noise_scale, rate)


def outside(
    noise_scale: float, facts: RunFacts, *, quantity: Scale, geometry: Geometry
) -> list[str]:
    """What of a run lies beyond the runs that its B_crit is told by, as it is called in print.

    Args:
        noise_scale: 𝓑 averaged by progress.
        facts: what else is known of the run.
        quantity: as of `critical_batch_size`.
        geometry: likewise.
    """
    known = facts.known(noise_scale)
    model = _of_tasks(FRONTS, quantity, geometry, tuple(known))
    return [] if model is None else model.outside(known)


def calibrated_on() -> str:
    """What the shipped table is of, as a sentence may have it: so many tasks."""
    return f"{_rows(FRONTS)['task'].nunique()} tasks"


def calibrated_by(geometry: Geometry) -> str:
    """How the interval came about, as a sentence has it in brackets.

    Args:
        geometry: of the noise scale that B_crit is told from.
    """
    if geometry == "optimizer" and not covers_preconditioned():
        return "by runs of SGD on MNIST whose B_crit was measured; other tasks may differ by more"
    return (
        f"by the fronts of {calibrated_on()}, table {version(FRONTS)}, each predicted from the "
        "others"
    )


def covers_preconditioned() -> bool:
    """Whether enough of the tasks have noise scales under an optimizer's preconditioner."""
    return _of_tasks(FRONTS, "simple", "optimizer", ()) is not None


def version(path: Path) -> int | None:
    """The version that a table's header states; None of a table without one, or of none.

    Args:
        path: of the table.
    """
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        if line.startswith("# version: "):
            return int(line.removeprefix("# version: "))
        if not line.startswith("#"):
            return None
    return None


def _is_near(facts: RunFacts) -> bool:
    """Whether a run of SGD is known to be within `NEAR` of the best rate, from a search."""
    rate = facts.rate_over_best
    is_tuned = rate is not None and 1 / NEAR <= rate <= NEAR
    return is_tuned and facts.optimizer in ("sgd", "momentum")


@lru_cache(maxsize=32)
def _of_tasks(
    path: Path, quantity: Scale, geometry: Geometry, names: tuple[str, ...]
) -> TaskModel | None:
    """The model by these regressors, but those that few tasks have; None: few have any row."""
    rows = _rows(path)
    rows = rows[(rows["quantity"] == quantity) & (rows["geometry"] == geometry)]
    usable = usable_regressors(rows, names)
    return None if usable is None else TaskModel.fitted(rows, usable)


@lru_cache(maxsize=4)
def _rows(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, comment="#")
