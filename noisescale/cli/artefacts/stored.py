"""Measurements read back from the JSON that measure-noise and sharpness print."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from noisescale.cli.checkpoints import Loaded, Measured
from noisescale.cli.printing.noise import NoiseReport
from noisescale.cli.printing.sharpness import SharpnessReport
from noisescale.measure.curvature.keskar import KeskarSharpness
from noisescale.measure.curvature.spectrum import SpectralMoments
from noisescale.measure.sharpness import (
    CriticalSharpness,
    Eigenvalue,
    PreconditionedSharpness,
    Sharpness,
)
from noisescale.problems.config import FactoryConfig
from noisescale.statistics.estimate import Estimate, from_record
from noisescale.statistics.gradient_noise import (
    SIGN_QUANTITIES,
    NoiseAnatomy,
    NoiseScale,
    SignNoise,
)
from noisescale.statistics.gradient_noise.anatomy import Group
from noisescale.statistics.hessian_noise import CurvatureNoise
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import Checkpoint

Entry = dict[str, Any]


def stored_noise(entries: list[Entry]) -> list[NoiseReport]:
    """What there is to say of each entry of `measure-noise --json`.

    KeyError, TypeError or ValueError for entries that it did not print.
    """
    return [
        NoiseReport(
            measured=Measured(_loaded(entry, entry["batch_size"]), None, noise, entry["reason"]),
            rates={
                rate["batch_size"]: from_record(rate)
                for rate in entry["optimal_learning_rates"] or ()
            },
            recommendation=None,
            notes=tuple(entry["notes"]),
        )
        for entry in entries
        for noise in [None if entry["reason"] else _noise(entry)]
    ]


# what is known of an optimizer beside the curvature in its geometry
UNDER_OPTIMIZER = ("optimizer", "learning_rate", "stable_sharpness", "formula")


def stored_sharpness(entries: list[Entry]) -> list[SharpnessReport]:
    """The same of `sharpness --json`."""
    return [
        SharpnessReport(
            measured=Measured(
                _loaded(entry, entry["trained_batch_size"]), None, sharpness, entry["reason"]
            ),
            learning_rate=entry["learning_rate"],
            in_batches=entry["stable_sharpness"] is None,  # for whatever reason there is no limit
        )
        for entry in entries
        for sharpness in [None if entry["reason"] else _sharpness(entry)]
    ]


@dataclass(frozen=True, kw_only=True, repr=False)
class _StoredCurvature(CurvatureNoise):
    """The estimates that were printed, of whose covariance nothing is known any more."""

    stored: dict[str, Estimate]

    @property
    def covariance_trace(self) -> Estimate:
        return self.stored["hessian_covariance_trace"]

    @property
    def gradient_curvature(self) -> Estimate:
        return self.stored["gradient_curvature"]

    @property
    def full(self) -> Estimate:
        return self.stored["full"]

    @property
    def max_learning_rate(self) -> Estimate:
        return self.stored["max_learning_rate"]


def _loaded(entry: Entry, batch_size: int | str | None) -> Loaded:
    """The checkpoint of an entry, without its parameters."""
    file, step = entry["checkpoint"], entry["step"]
    if file is None:
        return Loaded(Path(entry["run"]), None)
    if step is None:
        return Loaded(Path(file), {})
    settings = {
        name: entry[name]
        for name in ("learning_rate", "momentum", "weight_decay", "optimizer")
        if entry.get(name) is not None
    }
    if batch_size is not None:
        settings["batch_size"] = batch_size
    problem = None
    if (named := entry["problem"]) is not None:
        problem = FactoryConfig(factory=named, source="")  # in words, which is all that is said
    content = Checkpoint(
        problem=problem,
        training=TrainConfig(**settings),
        step=step,
        examples_seen=0,
        seconds=0.0,
        params={},
        buffers={},
        optimizer={},
        batches={},
    )
    return Loaded(Path(file), content)


def _noise(entry: Entry) -> NoiseScale:
    fields = ("population", "population_size", "split", "engine", "num_examples")
    common: dict[str, Any] = {name: entry[name] for name in fields}
    common |= {name: entry.get(name) for name in ("units_per_example", "amp")}
    under = entry.get("preconditioned")
    return NoiseScale(
        **common,
        **_parts(entry, of=entry),
        per_class=_frame(entry["per_class"]),
        top_examples=_frame(entry["top_examples"]),
        effective_examples=entry["effective_examples"],
        noisiest_share=entry["noisiest_share"],
        anatomy=_anatomy(entry),
        preconditioned=None if under is None else NoiseScale(**common, **_parts(under, of=entry)),
        sign=_sign(entry),
    )


def _sign(entry: Entry) -> SignNoise | None:
    record = entry.get("sign")
    if record is None:
        return None
    count = entry["num_examples"]
    return SignNoise(
        **{name: from_record(record[name], num_samples=count) for name in SIGN_QUANTITIES}
    )


def _anatomy(entry: Entry) -> NoiseAnatomy | None:
    """Who carries tr Σ, but for the single examples; None where it was not asked for."""
    record = entry.get("anatomy")
    if record is None:
        return None
    count = entry["num_examples"]
    wrong, between = record["misclassified"], record["between_classes"]
    return NoiseAnatomy(
        num_examples=count,
        population_size=entry["population_size"],
        lorenz=pd.DataFrame(record["lorenz"]),
        effective_examples=record["effective_examples"],
        sample_digest=record["sample_digest"],
        noisiest=np.array(record["noisiest"]),
        importance=from_record(record["importance"], num_samples=count),
        importance_simple=from_record(record["importance_simple"], num_samples=count),
        per_layer=pd.DataFrame(record["per_layer"]),
        per_class=_frame(record["per_class"]),
        between_classes=None if between is None else from_record(between, num_samples=count),
        misclassified=None if wrong is None else Group(**wrong),
        components=_frame(record["components"]),
    )


def _parts(record: Entry, *, of: Entry) -> dict[str, Any]:
    """What an entry has of any noise scale, under a preconditioner too."""
    count = of["num_examples"]
    estimates: dict[str, Any] = {
        name: from_record(value, num_samples=count)
        for name, value in record.items()
        if isinstance(value, dict) and "stderr" in value
    }
    curvature = None
    if "full" in estimates:
        curvature = _StoredCurvature(
            values=np.full(3, np.nan),
            covariance=np.full((3, 3), np.nan),
            dof=np.nan,
            num_examples=count,
            hessian_examples=of["hessian_examples"],
            num_matvecs=of["num_matvecs"],
            stored=estimates,
        )
    return {
        **{name: estimates[name] for name in ("squared_gradient_norm", "gradient_variance")},
        **{name: record[name] for name in ("resolved", "examples_to_resolve")},
        "simple": estimates["simple"],
        "loss": estimates.get("loss"),
        "per_layer": _frame(record["per_layer"]),
        "curvature": curvature,
        "notes": tuple(record.get("notes", ())),
    }


def _frame(rows: list[Entry] | None) -> pd.DataFrame | None:
    return None if rows is None else pd.DataFrame(rows).fillna(np.nan)


def _eigenvalue(record: Entry, num_examples: int) -> Eigenvalue:
    return Eigenvalue(
        which=record["which"],
        value=from_record(record, num_samples=num_examples),
        residual=record["residual"],
        converged=record["converged"],
    )


def _sharpness(entry: Entry) -> Sharpness:
    count = entry["num_examples"]

    def estimate(name: str) -> Estimate | None:
        record = entry[name]
        return None if record is None else from_record(record, num_samples=count)

    eigenvalues = [_eigenvalue(record, count) for record in entry["eigenvalues"]]
    preconditioned = None
    if (under := entry.get("preconditioned")) is not None:
        preconditioned = PreconditionedSharpness(
            largest=_eigenvalue(under["largest"], count),
            notes=tuple(under["notes"]),
            **{name: under[name] for name in UNDER_OPTIMIZER},
        )
    critical = None
    if (stored := entry.get("critical")) is not None:
        critical = CriticalSharpness(
            value=from_record(stored["value"], num_samples=count),
            learning_rate=from_record(stored["learning_rate"], num_samples=count),
            num_passes=stored["num_passes"],
            reason=stored["reason"] or "",
        )
    trace, frobenius = estimate("trace"), estimate("frobenius")
    moments = None
    if trace is not None and frobenius is not None:
        moments = SpectralMoments(trace=trace, squared_frobenius_norm=frobenius, num_matvecs=0)
    phi = [
        KeskarSharpness(
            space=record["space"],
            epsilon=record["epsilon"],
            history=tuple(record["history"]),
            evaluations=0,
            status=record["status"],
        )
        for record in entry["phi"]
    ]
    fields = ("split", "num_examples", "population_size", "matrix", "loss", "gradient_norm")
    return Sharpness(
        **{name: entry[name] for name in (*fields, "batch_size", "num_matvecs")},
        eigenvalues=tuple(eigenvalues),
        moments=moments,
        phi=tuple(phi),
        batch_sharpness=estimate("batch_sharpness"),
        gradient_noise_interaction=estimate("gradient_noise_interaction"),
        amp=entry.get("amp"),
        preconditioned=preconditioned,
        critical=critical,
        notes=tuple(entry["notes"]),
    )
