"""Sharpness along a training run, appended to a table in its folder."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from noisescale import store
from noisescale.errors import MeasurementError
from noisescale.measure.sharpness import Sharpness, SharpnessOptions, measure_sharpness
from noisescale.stability import stable_sharpness
from noisescale.training import Training, has_batch_norm


class SharpnessTracker:
    """Measures a run's λ_max and batch sharpness between its updates, which it does not influence.

    path: the run's folder; rows there after the run's step will come again and are dropped, all of them where
        they are of another number of examples.
    every: steps between two measurements; the first is at step 0.
    num_examples: of the random subset measured on, the same throughout; all where there are fewer.
    """

    def __init__(self, training: Training, path: Path, *, every: int, num_examples: int) -> None:
        self.every = every
        self._path = path / store.SHARPNESS
        self._training = training
        total = training.examples.num_examples
        self._options = SharpnessOptions(num_examples=min(num_examples, total), interaction_batches=0)
        rows = store.read_sharpness(path) if training.step else []
        same = all(row["num_examples"] == self._options.num_examples for row in rows)  # else begun anew
        self._rows: list[dict[Any, Any]] = [row for row in rows if same and row["step"] <= training.step]
        self._latest: Sharpness | None = None

    @property
    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self._rows)

    @property
    def due(self) -> bool:
        """Whether the step just made is to be measured and has not been yet."""
        step = self._training.step
        measured = bool(self._rows) and self._rows[-1]["step"] == step
        return not measured and (step % self.every == 0 or self._training.finished)

    def measure(self) -> dict[str, Any]:
        """Appends a row for the present step and returns it; nan and the reason where there is no value."""
        training = self._training
        fits = training.batch_size <= (self._options.num_examples or 0)
        started = time.perf_counter()
        row: dict[str, Any] = {"step": training.step, "epoch": training.epoch}
        try:
            found = measure_sharpness(
                replace(training.problem, model=training.model, train=training.examples),
                options=replace(self._options, batch_size=training.batch_size if fits else None),
                start=self._latest,
            )
            reason = "" if fits else "batch sharpness takes a subset of at least a batch"
            row |= _numbers(found) | {"reason": reason}
            self._latest = found
        except MeasurementError as error:
            row |= {"reason": str(error)}
        row["stable_sharpness"] = (
            None if has_batch_norm(training.model) else stable_sharpness(training.config)
        )
        row["num_examples"] = self._options.num_examples
        row["seconds"] = time.perf_counter() - started
        self._rows.append({name: row.get(name, math.nan) for name in store.SHARPNESS_COLUMNS})
        store.write_table(self._path, self.table)
        return self._rows[-1]


def _numbers(found: Sharpness) -> dict[str, Any]:
    largest, batch = found.largest, found.batch_sharpness
    assert largest is not None, "one eigenvalue at least is always asked for"
    return {
        "loss": found.loss,
        "gradient_norm": found.gradient_norm,
        "largest_eigenvalue": largest.value.value,
        "largest_eigenvalue_stderr": largest.value.stderr,
        "residual": largest.residual,
        "converged": float(largest.converged),
        "batch_sharpness": batch.value if batch else math.nan,
        "batch_sharpness_stderr": batch.stderr if batch else math.nan,
        "num_matvecs": found.num_matvecs,
    }
