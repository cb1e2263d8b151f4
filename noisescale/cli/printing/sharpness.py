"""Sharpness on stdout: a row per quantity, and what λ_max says about stability."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from noisescale.cli.printing.tables import (
    NumberTable,
    Screen,
    add_columns,
    examples_text,
    name_text,
    plain_table,
    several_runs,
    stdout_console,
    step_text,
)
from noisescale.statistics.stability.curves import side_of
from noisescale.training.config import TrainConfig, stable_sharpness
from noisescale.training.console import NOTE_STYLE

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Measured
    from noisescale.measure.sharpness import (
        CriticalSharpness,
        Eigenvalue,
        PreconditionedSharpness,
        Sharpness,
    )

PAPER_ITERATIONS = 10  # after which Keskar et al. 2017 stop their search for φ
UNMEASURED: dict[str, Any] = {  # what an entry holds of a measurement that failed
    "split": None,
    "num_examples": None,
    "population_size": None,
    "matrix": None,
    "amp": None,
    "loss": None,
    "gradient_norm": None,
    "eigenvalues": [],
    "trace": None,
    "notes": [],
    "frobenius": None,
    "batch_size": None,
    "batch_sharpness": None,
    "gradient_noise_interaction": None,
    "preconditioned": None,
    "critical": None,
    "phi": [],
    "density": None,
    "num_matvecs": None,
}


@dataclass(frozen=True, kw_only=True)
class SharpnessReport:
    """What there is to say of one checkpoint.

    Attributes:
        measured: its sharpness, or why there is none.
        learning_rate: of plain SGD, to hold the curvature against where the checkpoint does not say
            how it was trained; None: against none.
        in_batches: whether the model normalises over batches; training then descends another loss
            than the one measured, in evaluation mode, and 2/η is no limit for this one.
    """

    measured: Measured[Sharpness]
    in_batches: bool
    learning_rate: float | None = None

    @property
    def training(self) -> TrainConfig | None:
        """What it was trained with, or is to be, where that is known."""
        checkpoint, rate = self.measured.loaded.checkpoint, self.learning_rate
        if checkpoint is not None:
            return checkpoint.training_in_force
        return None if rate is None else TrainConfig(learning_rate=rate)

    @property
    def limit(self) -> float | None:
        """The largest λ_max at which full-batch training is stable."""
        if self.measured.result is None or self.training is None or self.in_batches:
            return None
        return stable_sharpness(self.training)

    def to_dict(self) -> dict[str, Any]:
        """One entry of `noisescale sharpness --json`."""
        loaded, sharpness, training = self.measured.loaded, self.measured.result, self.training
        return {
            "checkpoint": loaded.file,
            "run": loaded.run,
            "problem": loaded.problem_text,
            "step": loaded.step,
            "trained_batch_size": training and training.batch_size,
            "learning_rate": training and training.learning_rate,
            "momentum": training and training.momentum,
            "weight_decay": training and training.weight_decay,
            "stable_sharpness": self.limit,
            "peak_memory_bytes": self.measured.peak_bytes,
            "reason": self.measured.reason,
            **(UNMEASURED if sharpness is None else sharpness.to_dict()),
        }


def print_sharpness(reports: list[SharpnessReport], console: Screen | None = None) -> None:
    """A table of all checkpoints' quantities, then a sentence on each λ_max against 2/η."""
    console = console or stdout_console()
    every = [report.measured for report in reports]
    results = [measured.result for measured in every if measured.result is not None]
    matrix = "Gauss–Newton matrix" if results[0].matrix == "ggn" else "Hessian"
    console.print(
        f"{matrix} of the mean loss over {examples_text(results)} {results[0].split} examples"
    )
    console.print(_table(every))
    if any(result.num_examples < result.population_size for result in results):
        console.print(
            "Eigenvalues are estimates of the whole split's: half-way between the subset's own, "
            "which err outwards, and those that its halves give each other's vectors, which err "
            "inwards; residuals are of the subset's own. Errors of the trace, the norm and the "
            "batch quantities are of their probes and batches alone, on these examples."
        )
    for note in dict.fromkeys(note for result in results for note in _notes(result)):
        console.print(f"Note: {note}.")
    for report in reports:
        name = name_text(report.measured, every)
        if report.measured.result is None:
            console.print(f"{name}: not measured. {report.measured.reason}")
            continue
        largest, under = report.measured.result.largest, report.measured.result.preconditioned
        critical = report.measured.result.critical
        for sentence in (
            _verdict(report, largest),
            under and _under_optimizer(under),
            critical and _of_next_step(critical),
        ):
            if sentence:
                console.print(f"{name}: {sentence}")
    if not all(eigenvalue.converged for result in results for eigenvalue in result.eigenvalues):
        console.print(
            "Not converged: the residual is above its tolerance. Some eigenvalue lies that near "
            "the value, but which one is open: raise --max-matvecs.",
            style=f"bold {NOTE_STYLE}",
        )


def _notes(sharpness: Sharpness) -> tuple[str, ...]:
    """What a reader should know, of the optimizer's geometry too."""
    under = sharpness.preconditioned
    return sharpness.notes + (() if under is None else under.notes)


def _table(every: list[Measured[Sharpness]]) -> NumberTable:
    """A section per checkpoint, a row per quantity."""
    with_runs = several_runs(every)
    table = plain_table(less=("loss", "± stderr", "residual"))
    if with_runs:
        table.add_column("run", words=True)
    add_columns(table, "step", "loss")
    table.add_column("quantity", words=True)
    add_columns(table, "value", "± stderr", "95 % interval", "residual")
    for measured in every:
        if measured.result is None:
            continue
        labels = [measured.loaded.run] if with_runs else []
        labels += [step_text(measured), f"{measured.result.loss:.4g}"]
        for quantity in _quantities(measured.result):
            table.add_row(*labels, *quantity)
            labels = [""] * len(labels)
        table.add_section()
    return table


def _quantities(sharpness: Sharpness) -> list[tuple[str, ...]]:
    """Name, value, stderr, interval and residual of everything that was measured."""
    from noisescale.measure.sharpness import estimate_labels

    rows: list[tuple[str, ...]] = []
    for name, eigenvalue in sharpness.labelled():
        residual = f"{eigenvalue.residual:.2g}" + ("" if eigenvalue.converged else " NOT CONVERGED")
        rows.append((name, *eigenvalue.value.cells(), residual))
    labels = estimate_labels(sharpness.batch_size)
    for name, estimate in sharpness.estimates.items():
        rows.append((labels[name], *estimate.cells(), ""))
    for phi in sharpness.phi:
        for iterations in sorted({min(PAPER_ITERATIONS, phi.iterations), phi.iterations}):
            after = f"after {iterations} iterations"
            rows.append((phi.label, f"{phi.history[iterations]:.4g}", "", after, ""))
    return rows


def _verdict(report: SharpnessReport, largest: Eigenvalue | None) -> str | None:
    """λ_max beside the limit of stability of the learning rate, as far as its errors allow."""
    limit, training = report.limit, report.training
    if largest is None or limit is None or training is None:
        return None
    is_plain = not training.momentum and not training.weight_decay
    formula = "2/η" if is_plain else "2(1+m)/η − weight decay"
    named = (
        f"the limit of full-batch stability, {formula} = {limit:.4g} "
        f"at lr {training.learning_rate:g}"
    )
    return _beside("λ_max", largest, limit, named)


def _under_optimizer(under: PreconditionedSharpness) -> str | None:
    """λ_max(P^½HP^½) beside the limit of the optimizer that P is of; None without a limit."""
    limit = under.stable_sharpness
    if limit is None:
        return None
    named = (
        f"the limit of full-batch stability of {under.optimizer}, {under.formula} = {limit:.4g} "
        f"at lr {under.learning_rate:g}"
    )
    return _beside("λ_max(P^½HP^½)", under.largest, limit, named)


def _of_next_step(critical: CriticalSharpness) -> str:
    """From which learning rate on the next step raises the loss, or why that is not known."""
    if critical.reason:
        return f"no critical rate was found: {critical.reason}."
    rate = critical.learning_rate
    return (
        f"the optimizer's next step, on these examples as its batch, raises the loss from lr "
        f"{rate.text('value')} on (between {rate.low:.3g} and {rate.high:.3g}, "
        f"{critical.num_passes} forward passes)."
    )


def _beside(name: str, largest: Eigenvalue, limit: float, named: str) -> str:
    """An eigenvalue beside a limit that has a name, as far as its errors allow."""
    estimate, margin = largest.value, largest.residual
    if estimate.kind == "point" or not largest.converged:
        return f"{name} against {named}, cannot be judged."
    low, high = estimate.low - margin, estimate.high + margin
    ratio = f"{estimate.value / limit:.3g} ({low / limit:.3g}–{high / limit:.3g})"
    return f"{name} is {ratio} times {named}: {side_of(limit, low=low, high=high)} the edge."
