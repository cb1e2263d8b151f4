"""The changes of an adaptive batch size along a training run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from noisescale.statistics.estimate import estimate_row, two_digits
from noisescale.statistics.gradient_noise import GRADIENT_NOISE
from noisescale.training.adaptive_batch import AdaptiveBatchSize
from noisescale.training.records.tables import (
    BATCH_SIZE,
    BATCH_SIZE_COLUMNS,
    read_batch_size,
)
from noisescale.training.tracking.rows import Rows
from noisescale.training.trainer import Training


class BatchSizeTracker:
    """Batch size, learning rate and running noise scale: at the start, at each change, at the end.

    In batch_size.csv; a row says what the updates after its step are made with.
    """

    def __init__(self, training: Training, path: Path, schedule: AdaptiveBatchSize) -> None:
        self._training = training
        self._schedule = schedule
        self._rows = Rows(
            training,
            path / BATCH_SIZE,
            columns=BATCH_SIZE_COLUMNS,
            rows=read_batch_size(path),
        )

    def is_at(self, step: int) -> bool:
        return True

    @property
    def due(self) -> bool:
        return self._rows.due(now=self._schedule.changed_at_step == self._training.step)

    def num_left(self, last: int) -> int:
        return 0  # a row is written in no time

    def flush(self) -> None:
        self._rows.flush()

    def measure(self) -> dict[str, Any]:
        training, schedule = self._training, self._schedule
        row: dict[str, Any] = {
            "step": training.step,
            "epoch": training.epoch,
            "batch_size": schedule.batch_size,
            "learning_rate": schedule.learning_rate,
            "population": schedule.monitor.population,
        }
        if noise := schedule.noise:
            for name in GRADIENT_NOISE:
                row |= estimate_row(name, getattr(noise, name))
        return self._rows.add(row)

    def describe(self, row: dict[str, Any]) -> str:
        text = f"B {row['batch_size']:,}  lr {row['learning_rate']:.4g}"
        if not math.isnan(row["simple"]):
            return (
                f"{text}  running B_simple {row['simple']:.4g} ± {two_digits(row['simple_stderr'])}"
            )
        if not math.isnan(row["simple_low"]):
            return f"{text}  running B_simple > {row['simple_low']:.3g}"
        return text

    def scalars(self, row: dict[str, Any]) -> dict[str, float]:
        scalars = {"batch_size": row["batch_size"], "learning_rate": row["learning_rate"]}
        if not math.isnan(row["simple"]):
            scalars["noise/running_simple"] = row["simple"]
        return scalars
