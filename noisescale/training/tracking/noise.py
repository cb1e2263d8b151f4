"""Gradient noise along a training run."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.noise import hessian_sample_size, measure_noise
from noisescale.problems.problem import Problem
from noisescale.statistics.estimate import Estimate, estimate_row
from noisescale.statistics.gradient_noise import NoiseScale
from noisescale.training.records.tables import (
    NOISE,
    NOISE_COLUMNS,
    NOISE_LAYER_COLUMNS,
    NOISE_LAYERS,
    read_noise,
    read_noise_layers,
)
from noisescale.training.tracking.rows import Every, Rows, is_due, short
from noisescale.training.trainer import Training


@dataclass(frozen=True, kw_only=True)
class NoiseTracking:
    """What is measured of the gradient noise along a run; nothing here changes the run.

    Attributes:
        every: steps between two measurements, or "log" for eight in each decade of steps.
        num_examples: the size of the random training subset measured on, the same throughout, 3 or
            more; all examples where there are fewer.
        hessian: whether B_noise is measured as well, see `measure_noise`.
        num_probes: random probes of the Hessian, for B_noise.
        hessian_examples: the size of the subset that the Hessian is taken over; None: the default
            of `measure_noise`.
        per_layer: whether there is a row for each parameter tensor as well, in noise_layers.csv.
        seed: of the subset and the probes.

    Raises:
        SettingError: for a value out of its range.
    """

    every: Every = "log"
    num_examples: int = 10_000
    hessian: bool = False
    num_probes: int = 32
    hessian_examples: int | None = None
    per_layer: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.every != "log" and (not isinstance(self.every, int) or self.every < 1):
            raise SettingError(f"every {self.every!r}: give a number of steps, 1 or more, or log")
        if self.num_examples < 3:
            raise SettingError(f"noise examples {self.num_examples}: errors take 3 or more")


class NoiseTracker:
    """A run's |G|², tr Σ and noise scales, in noise.csv and, by parameter, in noise_layers.csv.

    They are of the population "dataset", the noise of the run's own batches, and of a copy of the
    model in evaluation mode.
    """

    def __init__(self, training: Training, path: Path, options: NoiseTracking) -> None:
        self._training = training
        self._options = options
        total = training.examples.num_examples
        if total < 4:
            raise SettingError(
                f"{total} training examples: the noise of their gradients takes 4 or more"
            )
        self._settings = {
            "num_examples": min(options.num_examples, total),
            "population_size": total,
            "num_probes": 0,
            "hessian_examples": 0,
        }
        if options.hessian:
            sample = (
                hessian_sample_size(total)
                if options.hessian_examples is None
                else options.hessian_examples
            )
            self._settings |= {"num_probes": options.num_probes, "hessian_examples": sample}
        rows, layers = read_noise(path), read_noise_layers(path)
        same = all(row[name] == value for row in rows for name, value in self._settings.items())
        if options.per_layer:
            same &= {row["step"] for row in rows if not row["reason"]} <= {
                row["step"] for row in layers
            }
        self._rows = Rows(
            training,
            path / NOISE,
            columns=NOISE_COLUMNS,
            rows=rows if same else [],  # else begun anew
        )
        steps = set(self._rows.table["step"])
        self._layers = Rows(
            training,
            path / NOISE_LAYERS,
            columns=NOISE_LAYER_COLUMNS,
            rows=[row for row in layers if row["step"] in steps],
        )

    @property
    def due(self) -> bool:
        return self._rows.due(now=is_due(self._training.step, self._options.every))

    def measure(self) -> dict[str, Any]:
        training, options = self._training, self._options
        started = time.perf_counter()
        at = {"step": training.step, "epoch": training.epoch}
        row: dict[str, Any] = {
            **at,
            "batch_size": training.batch_size,
            **self._settings,
            "reason": "",
        }
        problem = Problem(
            model=copy.deepcopy(training.model).eval(),
            loss=training.problem.loss,
            train=training.examples,
        )
        try:
            found = measure_noise(
                problem,
                num_examples=self._settings["num_examples"],
                hessian=options.hessian,
                num_probes=options.num_probes,
                hessian_examples=self._settings["hessian_examples"] or None,
                per_layer=options.per_layer,
                generator=torch.Generator().manual_seed(options.seed),
            )
        except MeasurementError as error:
            row["reason"] = str(error)
        else:
            if found.per_layer is not None:
                self._layers.add(*({**at, **layer} for layer in found.per_layer.to_dict("records")))
            row |= _noise_numbers(found)
        row["seconds"] = time.perf_counter() - started
        return self._rows.add(row)

    def describe(self, row: dict[str, Any]) -> str:
        if row["reason"]:
            return f"noise not measured: {row['reason']}"
        text = []
        for name, label in (("simple", "B_simple"), ("full", "B_noise")):
            value, stderr, low = row[name], row[f"{name}_stderr"], row[f"{name}_low"]
            if not math.isnan(value):
                text.append(f"{label} {value:.4g}" + (f" ± {short(stderr)}" if stderr else ""))
            elif not math.isnan(low):
                text.append(f"{label} > {low:.3g}, not resolved")
            elif name == "simple" or self._options.hessian:
                text.append(f"{label} not resolved")
        return f"{'  '.join(text)}  (loss {row['loss']:.4g})  {row['seconds']:.1f} s"

    def scalars(self, row: dict[str, Any]) -> dict[str, float]:
        names = ("squared_gradient_norm", "gradient_variance", "simple", "full")
        return {f"noise/{name}": row[name] for name in names if not math.isnan(row[name])}


def _noise_numbers(found: NoiseScale) -> dict[str, Any]:
    """The estimates as columns name, name_stderr, name_low, name_high; exact ones have stderr 0."""
    curvature = found.curvature
    estimates: dict[str, Estimate | None] = {
        "loss": found.loss,
        "squared_gradient_norm": found.squared_gradient_norm,
        "gradient_variance": found.gradient_variance,
        "simple": found.simple,
        "full": found.full,
    }
    if curvature is not None:
        estimates["hessian_covariance_trace"] = curvature.covariance_trace
        estimates["gradient_curvature"] = curvature.gradient_curvature
        estimates["max_learning_rate"] = curvature.max_learning_rate
    numbers: dict[str, Any] = {}
    for name, estimate in estimates.items():
        if estimate is not None:
            numbers |= estimate_row(name, estimate)
    return numbers
