"""What an optimizer has to do with a recommendation: its rules and its caveats."""

from __future__ import annotations

from noisescale.statistics.critical_batch.advice import ScalingRules
from noisescale.statistics.critical_batch.calibration.shipped import (
    calibrated_on,
    covers_preconditioned,
)
from noisescale.training.config import TrainConfig


def scaling_rules(
    training: TrainConfig,
    *,
    batch_size: int,
    learning_rate: float,
    critical: float,
    largest_rate: float | None = None,
) -> ScalingRules:
    """How this training is to be set at another batch size.

    Args:
        training: its optimizer, β₂ and weight decay.
        batch_size: in use.
        learning_rate: at that batch size.
        critical: B_crit.
        largest_rate: at which runs at that batch size have trained; None: not known.
    """
    return ScalingRules(
        optimizer=training.optimizer,
        batch_size=batch_size,
        learning_rate=learning_rate,
        critical=critical,
        beta2=training.second_moment_decay,
        weight_decay=training.weight_decay,
        largest_rate=largest_rate,
    )


def caveat(optimizer: str, *, in_geometry: bool) -> str | None:
    """Of which noise scale this optimizer's B_crit is told, and by whose runs; None of SGD.

    Args:
        optimizer: as TrainConfig names it.
        in_geometry: whether the noise is that under the optimizer's P.
    """
    if optimizer == "sgd":
        return None
    if in_geometry and not covers_preconditioned():
        return f"Noise in the geometry of {optimizer}; the interval is calibrated for SGD alone."
    where = f"in the geometry of {optimizer}" if in_geometry else "of the plain gradient"
    return f"Noise {where}; the interval is calibrated on {calibrated_on()}."
