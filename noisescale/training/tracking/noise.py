"""Gradient noise along a training run."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noisescale.errors import MeasurementError, SettingError, check_count
from noisescale.measure.noise import measure_noise
from noisescale.measure.noise_parts.options import (
    Geometry,
    NoiseOptions,
    hessian_sample_size,
    with_settings,
)
from noisescale.measure.objective.preconditioner import preconditioner_of
from noisescale.problems.models import copy_of
from noisescale.problems.problem import Params, Problem
from noisescale.statistics.estimate import estimate_columns, estimate_of
from noisescale.statistics.gradient_noise import (
    CURVATURE_NOISE,
    GRADIENT_NOISE,
    SIGN_QUANTITIES,
    UNDER_PRECONDITIONER,
    NoiseScale,
    of_sign,
    under_preconditioner,
)
from noisescale.training.config import OptimizerName, TrainConfig
from noisescale.training.records.tables import (
    NOISE,
    NOISE_COLUMNS,
    NOISE_LAYER_COLUMNS,
    NOISE_LAYERS,
    PRECONDITIONED_COLUMNS,
    PRECONDITIONED_LAYER_COLUMNS,
    PRECONDITIONED_REASON,
    SIGN_COLUMNS,
    read_noise,
    read_noise_layers,
)
from noisescale.training.tracking.rows import Every, Rows, is_due, num_due
from noisescale.training.trainer import Training

NUM_EXAMPLES = 10_000  # resolve B_simple along most of a run, in seconds for a measurement
DIAGONAL: tuple[OptimizerName, ...] = ("adam", "adamw", "rmsprop")  # with a preconditioner
PLAIN_COLUMNS = estimate_columns(*GRADIENT_NOISE, *CURVATURE_NOISE)
FEWEST_EXAMPLES = 4  # that B_noise takes; one limit, whether it is measured or not
CARRIED = "noise"  # the name of what a run that goes on compares its settings with


@dataclass(frozen=True, init=False)
class NoiseTracking:
    """What is measured of the gradient noise along a run; nothing here changes the run.

    Attributes:
        every: steps between two measurements, or "log" for eight in each decade of steps.
        options: what is measured each time. The random subset of the training examples is the same
            throughout; all of them where there are fewer. The population is "dataset". Its geometry
            says which scales are recorded: "plain", B_simple; "optimizer", B^P_simple under the
            optimizer's own preconditioner, from its first step on; "both". None: both for Adam,
            AdamW and RMSprop, since one pass gives both, and plain for SGD and Muon, which have no
            diagonal preconditioner. With its sign, B_ℓ1 of sign descent beside them.
        seed: of the subset and the probes.
    """

    every: Every
    options: NoiseOptions
    seed: int

    def __init__(
        self,
        *,
        every: Every = "log",
        options: NoiseOptions | None = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        """A plan of measurements.

        Args:
            every: as the attribute.
            options: as the attribute; None: `NoiseOptions` on 10,000 examples.
            seed: as the attribute.
            **settings: fields of `NoiseOptions` one by one, such as `hessian=True`.

        Raises:
            SettingError: a setting is out of its range, given twice, or of other than the training
                examples as a whole.
        """
        if options is None:
            settings = {"num_examples": NUM_EXAMPLES} | settings
        options = with_settings(options or NoiseOptions(), settings)
        if every != "log":
            check_count("every", every, instead=', or "log"')
            every = int(every)
        if options.num_examples is not None and options.num_examples < 3:
            raise SettingError(f"noise examples {options.num_examples}: errors take 3 or more")
        if options.split != "train" or options.population == "distribution":
            raise SettingError(
                "noise along a run is that of its training examples as a data set: leave out "
                "split and population"
            )
        if options.per_class or options.anatomy:
            raise SettingError(
                "noise.csv has no columns for classes and anatomy: leave out per_class and "
                "anatomy, and measure them from the run's checkpoints"
            )
        for name, value in (("every", every), ("options", options), ("seed", seed)):
            object.__setattr__(self, name, value)

    @property
    def num_examples(self) -> int | None:
        """That of the options, like those below; they can be read here too."""
        return self.options.num_examples

    @property
    def hessian(self) -> bool:
        return self.options.hessian

    @property
    def num_probes(self) -> int:
        return self.options.num_probes

    @property
    def hessian_examples(self) -> int | None:
        return self.options.hessian_examples

    @property
    def per_layer(self) -> bool:
        return self.options.per_layer

    def check(self, training: Training) -> None:
        """SettingError where a run has nothing of what is to be measured along it.

        Args:
            training: the run.
        """
        self.geometry_for(training.config)
        total = training.examples.num_examples * self.options.augmentations
        if total < FEWEST_EXAMPLES:
            raise SettingError(
                f"{total} training examples: the noise of their gradients takes {FEWEST_EXAMPLES} "
                "or more"
            )

    def geometry_for(self, config: TrainConfig) -> Geometry:
        """Which scales are recorded along a run.

        Args:
            config: of the run, whose optimizer has a geometry of its own or none.

        Raises:
            SettingError: the options name one that the optimizer lacks.
        """
        geometry, is_plain = self.options.geometry, config.optimizer not in DIAGONAL
        if is_plain and geometry in ("optimizer", "both"):
            raise SettingError(
                f"noise geometry {geometry} with {config.optimizer}: it multiplies the gradient by "
                "no diagonal matrix, so that it has no such geometry; leave it out, or train with "
                f"{', '.join(DIAGONAL)}"
            )
        return geometry or ("plain" if is_plain else "both")


class NoiseTracker:
    """A run's |G|², tr Σ and noise scales, in noise.csv and, by parameter, in noise_layers.csv.

    They are of the population "dataset", the noise of the run's own batches where these are drawn
    evenly, and of a copy of the model in evaluation mode; of an adaptive optimizer also under its
    preconditioner, and in the geometry of sign descent where that is asked for.
    """

    def __init__(self, training: Training, path: Path, tracking: NoiseTracking) -> None:
        self._training = training
        self._every, self._seed = tracking.every, tracking.seed
        tracking.check(training)
        total = training.examples.num_examples * tracking.options.augmentations
        self._geometry = tracking.geometry_for(training.config)
        self._options = _resolved(tracking.options, total)
        self._settings = {
            "num_examples": self._options.num_examples,
            "population_size": total,
            "num_probes": self._options.num_probes if self._options.hessian else 0,
            "hessian_examples": self._options.hessian_examples or 0,
        }
        rows, layers = read_noise(path), read_noise_layers(path)
        is_other = training.carried.get(CARRIED, self._how) != self._how
        if is_other or not self._same(rows, layers):
            rows = []  # begun anew
        training.carried[CARRIED] = self._how
        columns, of_layers = NOISE_COLUMNS, NOISE_LAYER_COLUMNS
        if self._geometry != "plain":
            columns += PRECONDITIONED_COLUMNS
            of_layers += PRECONDITIONED_LAYER_COLUMNS
        if self._options.sign:
            columns += SIGN_COLUMNS
        self._rows = Rows(training, path / NOISE, columns=columns, rows=rows)
        steps = set(self._rows.table["step"])
        self._layers = Rows(
            training,
            path / NOISE_LAYERS,
            columns=of_layers,
            rows=[row for row in layers if row["step"] in steps],
        )

    def _same(self, rows: list[dict[Any, Any]], layers: list[dict[Any, Any]]) -> bool:
        """Whether the folder's rows are of this measurement, with layers and sign as it has.

        A geometry that was not asked for is no reason to begin anew: tables of before there was one
        go on with it.
        """
        same = all(row[name] == value for row in rows for name, value in self._settings.items())
        if self._options.geometry is not None:
            same &= all(_geometry_of(row) == self._geometry for row in rows if not row["reason"])
        has_sign = [not math.isnan(row["sign_noise_norm"]) for row in rows if not row["reason"]]
        same &= all(each == self._options.sign for each in has_sign)
        if self._options.per_layer:
            measured = {row["step"] for row in rows if not row["reason"]}
            same &= measured <= {row["step"] for row in layers}
        return same

    @property
    def _how(self) -> dict[str, Any]:
        """What else the rows are measured by, which the table has no columns for."""
        options = self._options
        chosen = options.param_filter
        return {
            "seed": self._seed,
            "param_filter": None if chosen is None else list(chosen),
            "dtype": None if options.dtype is None else str(options.dtype),
            "amp": options.amp,
            "augmentations": options.augmentations,
        }

    def is_at(self, step: int) -> bool:
        return is_due(step, self._every)

    @property
    def due(self) -> bool:
        return self._rows.due(now=self.is_at(self._training.step))

    def num_left(self, last: int) -> int:
        return num_due(self._training.step, last, self._every)

    def flush(self) -> None:
        self._rows.flush()
        self._layers.flush()

    def measure(self) -> dict[str, Any]:
        training = self._training
        started = time.perf_counter()
        position = {"step": training.step, "epoch": training.epoch}
        row: dict[str, Any] = {
            **position,
            "batch_size": training.batch_size,
            "learning_rate": training.learning_rate,
            **self._settings,
            "reason": "",
        }
        problem = Problem(
            model=copy_of(training.model).eval(),
            loss=training.problem.loss,
            train=training.examples,
            weights=training.problem.weights,
            units=training.problem.units,
        )
        preconditioner, row[PRECONDITIONED_REASON] = self._preconditioner()
        options = self._options
        if preconditioner is None:
            options = replace(options, geometry=None)
            if self._geometry == "optimizer":  # what is left is the loss
                options = replace(options, hessian=False)
        try:
            noise = measure_noise(
                problem, options=options, preconditioner=preconditioner, seed=self._seed
            )
        except MeasurementError as error:
            row["reason"] = str(error)
        else:
            left_out = dict.fromkeys(
                PLAIN_COLUMNS if self._geometry == "optimizer" else (), math.nan
            )
            if noise.per_layer is not None:
                layers = _layer_rows(noise)
                self._layers.add(*({**position, **layer, **left_out} for layer in layers))
            row |= noise.to_row() | self._settings | left_out
        row["seconds"] = time.perf_counter() - started
        return self._rows.add(row)

    def _preconditioner(self) -> tuple[Params | None, str]:
        """P of the run's optimizer as it is now; None, and perhaps why there is none."""
        training = self._training
        if self._geometry == "plain":
            return None, ""
        if not training.step:
            return None, f"{training.config.optimizer} has made no step"
        try:
            return preconditioner_of(training.optimizer, training.model), ""
        except SettingError as error:  # of second moments that are not finite, as in a divergence
            return None, str(error)

    def describe(self, row: dict[str, Any]) -> str:
        if row["reason"]:
            return f"noise not measured: {row['reason']}"
        scales = {"simple": "B_simple"} if self._geometry != "optimizer" else {}
        if self._options.hessian and scales:
            scales["full"] = "B_noise"
        if row.get(PRECONDITIONED_REASON) == "":
            scales["preconditioned_simple"] = "B^P_simple"
            if self._options.hessian:
                scales["preconditioned_full"] = "B^P_noise"
        if self._options.sign:
            scales["sign_simple"] = "B_ℓ1"
        texts = []
        for name, label in scales.items():
            scale = estimate_of(row, name)
            if scale.kind == "bound":
                text = f"> {scale.low:.3g}"
            elif scale.kind == "undefined":
                text = "not resolved"
            else:
                text = scale.text("value ± stderr", number="{:.4g}".format)
            texts.append(f"{label} {text:<12}")  # as wide as most, so that columns stay in line
        if reason := row.get(PRECONDITIONED_REASON):
            texts.append(f"no B^P_simple: {reason}")
        return f"{'  '.join(texts)}  loss {row['loss']:.4f}  {row['seconds']:.1f} s"

    def scalars(self, row: dict[str, Any]) -> dict[str, float]:
        names = ["squared_gradient_norm", "gradient_variance", "simple", "full"]
        names += under_preconditioner(*names) if self._geometry != "plain" else []
        names += of_sign(*SIGN_QUANTITIES) if self._options.sign else []
        return {f"noise/{name}": row[name] for name in names if not math.isnan(row[name])}


def _geometry_of(row: dict[Any, Any]) -> Geometry:
    """Which noise scales a row of noise.csv has, or says why it lacks them."""
    under = f"{UNDER_PRECONDITIONER}gradient_variance"
    if math.isnan(row[under]) and not row[PRECONDITIONED_REASON]:
        return "plain"
    return "optimizer" if math.isnan(row["gradient_variance"]) else "both"


def _layer_rows(noise: NoiseScale) -> list[dict[Any, Any]]:
    """The columns of noise_layers.csv that a measurement fills, by parameter."""
    assert noise.per_layer is not None, "it is asked for"
    layers = noise.per_layer
    if noise.preconditioned is not None and noise.preconditioned.per_layer is not None:
        under = noise.preconditioned.per_layer[estimate_columns(*GRADIENT_NOISE)]
        layers = layers.join(under.add_prefix(UNDER_PRECONDITIONER))
    return layers.to_dict("records")


def _resolved(options: NoiseOptions, total: int) -> NoiseOptions:
    """The options with their numbers of examples, out of `total`; none for H without B_noise."""
    hessian_examples = None
    if options.hessian:
        hessian_examples = options.hessian_examples
        if hessian_examples is None:
            hessian_examples = hessian_sample_size(total)
    return replace(
        options,
        num_examples=min(options.num_examples or total, total),
        hessian_examples=hessian_examples,
    )
