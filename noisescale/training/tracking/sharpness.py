"""Sharpness along a training run."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.objective.preconditioner import has_second_moments, preconditioner_of
from noisescale.measure.sharpness import (
    Sharpness,
    SharpnessOptions,
    measure_sharpness,
    preconditioned_columns,
)
from noisescale.problems.models import has_batch_norm
from noisescale.training.config import stable_sharpness
from noisescale.training.records.tables import SHARPNESS, SHARPNESS_COLUMNS, read_sharpness
from noisescale.training.tracking.rows import Every, Rows, is_due, num_due
from noisescale.training.trainer import Training

CARRIED = "sharpness"  # the name of what the next measurement goes on from


class SharpnessTracker:
    """A run's λ_max and batch sharpness, in sharpness.csv; under Adam λ_max(P^½HP^½) too.

    Args:
        training: the run.
        path: its folder.
        every: steps between two measurements, or "log".
        num_examples: the size of the random subset measured on, the same throughout; all examples
            where there are fewer.
    """

    def __init__(self, training: Training, path: Path, *, every: Every, num_examples: int) -> None:
        self._training = training
        self._every = every
        total = training.examples.num_examples
        self._options = SharpnessOptions(
            num_examples=min(num_examples, total), interaction_batches=0
        )
        rows = read_sharpness(path)
        # a table of another subset is begun anew
        same_subset = all(row["num_examples"] == self._options.num_examples for row in rows)
        self._rows = Rows(
            training,
            path / SHARPNESS,
            columns=SHARPNESS_COLUMNS,
            rows=rows if same_subset else [],
        )

    def is_at(self, step: int) -> bool:
        return is_due(step, self._every)

    @property
    def due(self) -> bool:
        return self._rows.due(now=self.is_at(self._training.step))

    def num_left(self, last: int) -> int:
        return num_due(self._training.step, last, self._every)

    def flush(self) -> None:
        self._rows.flush()

    def measure(self) -> dict[str, Any]:
        training = self._training
        fits = training.batch_size <= (self._options.num_examples or 0)
        started = time.perf_counter()
        in_force = training.config.at_rate(training.learning_rate)
        row: dict[str, Any] = {
            "step": training.step,
            "epoch": training.epoch,
            "learning_rate": in_force.learning_rate,
        }
        adaptive, refusal = self._adaptive()
        try:
            sharpness = measure_sharpness(
                replace(training.problem, model=training.model, train=training.examples),
                options=replace(self._options, batch_size=training.batch_size if fits else None),
                preconditioner=adaptive,
                start=training.carried.get(CARRIED),
            )
            reasons = [
                "" if fits else "batch sharpness takes a subset of at least a batch",
                refusal,
            ]
            row |= _sharpness_numbers(sharpness) | {"reason": "; ".join(filter(None, reasons))}
            # the eigenvectors, which a run that is continued starts the next search from too
            training.carried[CARRIED] = sharpness.starts
        except (MeasurementError, SettingError) as error:  # the training itself goes on
            row |= {"reason": str(error)}
        row["stable_sharpness"] = (
            None if has_batch_norm(training.model) else stable_sharpness(in_force)
        )
        row["num_examples"] = self._options.num_examples
        row["seconds"] = time.perf_counter() - started
        return self._rows.add(row)

    def _adaptive(self) -> tuple[Optimizer | None, str]:
        """The optimizer where it has a preconditioner by now; else None, and perhaps why."""
        training = self._training
        is_muon = training.config.optimizer == "muon"  # which has no P
        if is_muon or not has_second_moments(training.optimizer.state_dict()):
            return None, ""
        try:
            preconditioner_of(training.optimizer, training.model)
        except SettingError as error:  # as of second moments that have overflowed
            return None, str(error)
        return training.optimizer, ""

    def describe(self, row: dict[str, Any]) -> str:
        if math.isnan(row["largest_eigenvalue"]):
            return f"sharpness not measured: {row['reason']}"
        largest = f"{row['largest_eigenvalue']:.4g}"
        if row["largest_eigenvalue_stderr"]:
            largest += f" ± {row['largest_eigenvalue_stderr']:.2g}"
        text = f"λ_max {largest:<7}"  # as wide as most, so that columns stay in line
        if not row["converged"]:
            text += f" (not converged, residual {row['residual']:.2g})"
        if not math.isnan(row["batch_sharpness"]):
            batch = f"{row['batch_sharpness']:.4g} ± {row['batch_sharpness_stderr']:.2g}"
            text += f"  batch {batch:<14}"
        if row["stable_sharpness"] is not None:
            text += f"  limit {row['stable_sharpness']:.4g}"
        if not math.isnan(row["preconditioned_eigenvalue"]):
            text += f"  under P {row['preconditioned_eigenvalue']:.4g}"
            if not math.isnan(row["preconditioned_stable"]):
                text += f", limit {row['preconditioned_stable']:.4g}"
        return f"{text}  {row['seconds']:.1f} s"

    def scalars(self, row: dict[str, Any]) -> dict[str, float]:
        names = ("largest_eigenvalue", "batch_sharpness", "preconditioned_eigenvalue")
        return {f"sharpness/{name}": row[name] for name in names}


def _sharpness_numbers(sharpness: Sharpness) -> dict[str, Any]:
    """The columns of sharpness.csv that a measurement fills."""
    largest, batch = sharpness.largest, sharpness.batch_sharpness
    assert largest is not None, "one eigenvalue at least is measured by default"
    return {
        "loss": sharpness.loss,
        "gradient_norm": sharpness.gradient_norm,
        "largest_eigenvalue": largest.value.value,
        "largest_eigenvalue_stderr": largest.value.stderr,
        "residual": largest.residual,
        "converged": float(largest.converged),
        "batch_sharpness": batch.value if batch else math.nan,
        "batch_sharpness_stderr": batch.stderr if batch else math.nan,
        "num_matvecs": sharpness.num_matvecs,
    } | (
        {} if sharpness.preconditioned is None else preconditioned_columns(sharpness.preconditioned)
    )
