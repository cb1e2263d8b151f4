"""What an optimizer has to do with a recommendation: its geometry, its rules and its caveats."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from noisescale.statistics.critical_batch.advice import ScalingRules
from noisescale.statistics.critical_batch.recommendation import (
    LEAST_COVERED,
    Recommendation,
    covered_share,
    recommend,
)
from noisescale.training.config import TrainConfig

PRECONDITIONED = "preconditioned_"  # before the names of columns under the optimizer's P


def scaling_rules(
    training: TrainConfig, *, batch_size: int, learning_rate: float, critical: float
) -> ScalingRules:
    """How this training is to be set at another batch size.

    Args:
        training: its optimizer, β₂ and weight decay.
        batch_size: in use.
        learning_rate: at that batch size.
        critical: B_crit.
    """
    return ScalingRules(
        optimizer=training.optimizer,
        batch_size=batch_size,
        learning_rate=learning_rate,
        critical=critical,
        beta2=training.second_moment_decay,
        weight_decay=training.weight_decay,
    )


def in_optimizers_geometry(table: pd.DataFrame, training: TrainConfig) -> pd.DataFrame | None:
    """The rows of noise.csv with the noise under the optimizer's P in the plain one's place.

    Args:
        table: the rows.
        training: of the run.

    Returns:
        The rows; None of SGD, and where that noise was not tracked, or resolved along too little.
    """
    columns = {
        name: name.removeprefix(PRECONDITIONED)
        for name in map(str, table)
        if name.startswith(PRECONDITIONED)
    }
    if not training.is_adaptive or not columns:
        return None
    plain = table.drop(columns=[name for name in columns.values() if name in table])
    under = plain.rename(columns=columns)
    return under if covered_share(under, "simple") >= LEAST_COVERED else None


def recommend_for(
    table: pd.DataFrame, training: TrainConfig, *, rate_over_best: float | None = None
) -> Recommendation:
    """What the rows of noise.csv recommend, by the noise in the optimizer's geometry where it is.

    Args:
        table: the rows.
        training: of the run.
        rate_over_best: as for `recommend`.

    Raises:
        MeasurementError: as `recommend` does.
    """
    under = in_optimizers_geometry(table, training)
    found = recommend(
        table if under is None else under,
        learning_rate=training.constant_sgd_rate,
        rate_over_best=rate_over_best,
    )
    return found if under is None else replace(found, geometry="optimizer")


def caveat(optimizer: str, *, in_geometry: bool) -> str | None:
    """What keeps a noise scale from being this optimizer's B_crit; None of SGD.

    Args:
        optimizer: as TrainConfig names it.
        in_geometry: whether the noise is that under the optimizer's P.
    """
    if optimizer == "sgd":
        return None
    if in_geometry:
        return f"Noise in the geometry of {optimizer}; the interval is calibrated for SGD alone."
    return f"Plain noise: {optimizer}'s B_crit may lie far above (2505.23971); interval: SGD's."
