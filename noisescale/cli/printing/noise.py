"""The noise scale on stdout: by quantity or by checkpoint, and what it says about batch sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from noisescale.cli.printing.anatomy import OfCheckpoint, print_anatomy
from noisescale.cli.printing.recommend import print_advice
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
from noisescale.errors import MeasurementError, RunFolderError
from noisescale.statistics.estimate import Estimate, estimate_of
from noisescale.statistics.gradient_noise import PRECONDITIONED, QUANTITIES, SIGN_QUANTITIES

if TYPE_CHECKING:
    import pandas as pd

    from noisescale.cli.checkpoints import Loaded, Measured
    from noisescale.statistics.critical_batch.advice import Advice
    from noisescale.statistics.critical_batch.recommendation import Recommendation
    from noisescale.statistics.gradient_noise import NoiseScale

ALONG_TRAINING = {
    "squared_gradient_norm": "|G|²",
    "gradient_variance": "tr Σ",
    "simple": "B_simple",
    "full": "B_noise",
    "preconditioned_squared_gradient_norm": "GᵀPG",
    "preconditioned_gradient_variance": "tr(PΣ)",
    "preconditioned_simple": "B^P_simple",
    "preconditioned_full": "B^P_noise",
}
SCALES = ("simple", "full")  # whose intervals have a column of their own
INTERVAL = "95 % interval"
LESS = ("n_eff", "tr Σ", "|G|²", "loss")  # of a table of checkpoints, what may be left out
UNMEASURED = (  # what an entry lacks of a checkpoint that could not be measured
    *("split", "population", "engine", "num_examples", "population_size", "examples_to_resolve"),
    *("units_per_example", "preconditioned", "amp", "sign"),
    *("effective_examples", "noisiest_share", "gradient_norms"),
    *("hessian_examples", "num_matvecs", "per_layer", "per_class", "top_examples", "anatomy"),
    "optimal_learning_rates",
    *QUANTITIES,
)


@dataclass(frozen=True, kw_only=True)
class NoiseReport:
    """What there is to say of one checkpoint.

    Attributes:
        measured: its noise scale, or why there is none.
        rates: ε_opt by batch size, where B_noise was measured.
        recommendation: what the noise scale tracked along its run recommends, at the run's last
            checkpoint.
        notes: what a reader should know.
        advice: which batch sizes and settings follow from the recommendation, for the optimizer in
            use; None where it is not known how the run was trained.
    """

    measured: Measured[NoiseScale]
    rates: dict[int, Estimate]
    recommendation: Recommendation | None
    notes: tuple[str, ...]
    advice: Advice | None = None

    def to_dict(self) -> dict[str, Any]:
        """One entry of `noisescale measure-noise --json`."""
        noise, loaded = self.measured.result, self.measured.loaded
        training = None if loaded.checkpoint is None else loaded.checkpoint.training
        entry: dict[str, Any] = {
            "checkpoint": loaded.file,
            "run": loaded.run,
            "problem": loaded.problem_text,
            "step": loaded.step,
            "batch_size": training and training.batch_size,
            "learning_rate": loaded.checkpoint and loaded.checkpoint.learning_rate,
            "optimizer": training and training.optimizer,
            "reason": self.measured.reason,
        }
        if noise is None:
            entry |= dict.fromkeys(UNMEASURED) | {"resolved": False}
        else:
            entry |= noise.to_dict()
            entry["optimal_learning_rates"] = None
            if noise.curvature is not None:
                entry["optimal_learning_rates"] = [
                    {"batch_size": size, **rate.to_dict()} for size, rate in self.rates.items()
                ]
        recommended = self.recommendation and self.recommendation.to_dict()
        advice = self.advice and self.advice.to_dict()
        return entry | {
            "notes": list(self.notes),
            "peak_memory_bytes": self.measured.peak_bytes,
            "recommendation": recommended,
            "advice": advice,
        }


def noise_reports(
    measured: list[Measured[NoiseScale]], batch_sizes: tuple[int, ...]
) -> list[NoiseReport]:
    """A report on each checkpoint; ε_opt at each run's own batch size where none is named."""
    last_of_run = {one.loaded.run: one for one in measured}
    return [
        _report(one, batch_sizes, ends_run=last_of_run[one.loaded.run] is one) for one in measured
    ]


def _report(
    measured: Measured[NoiseScale], batch_sizes: tuple[int, ...], *, ends_run: bool
) -> NoiseReport:
    noise = measured.result
    notes = () if noise is None else noise.notes
    recommendation = advice = None
    if ends_run:
        try:
            recommendation, advice = _recommendation(measured.loaded)
        except (MeasurementError, RunFolderError) as error:
            notes = (*notes, f"no batch size is recommended: {error}")
    curvature = None if noise is None else noise.curvature
    rates = {}
    if curvature is not None:
        checkpoint = measured.loaded.checkpoint
        own_size = checkpoint and checkpoint.training.batch_size
        largest = curvature.population_size  # the split's, which may be another than trained on
        sizes = batch_sizes
        if not sizes and isinstance(own_size, int) and own_size <= (largest or own_size):
            sizes = (own_size,)
        rates = {size: curvature.optimal_learning_rate(size) for size in sizes}
    return NoiseReport(
        measured=measured, rates=rates, recommendation=recommendation, notes=notes, advice=advice
    )


def _recommendation(loaded: Loaded) -> tuple[Recommendation | None, Advice | None]:
    """What the noise scale tracked along a run recommends; None where it was not tracked."""
    import pandas as pd

    from noisescale.statistics.critical_batch.recommendation import recommend
    from noisescale.studies.recommend.checkpoint import advise_on_run
    from noisescale.training.records.tables import read_noise

    if loaded.checkpoint is not None:
        found = advise_on_run(Path(loaded.run), loaded.checkpoint.training, in_use=None)
        return (None, None) if found is None else (found[1], found[0])
    rows = read_noise(Path(loaded.run))
    return (recommend(pd.DataFrame(rows)) if rows else None), None


def print_noise(
    reports: list[NoiseReport], console: Screen | None = None, *, in_tokens: bool = False
) -> None:
    """The table, those of layers and classes, a sentence on each checkpoint, and batch sizes.

    Args:
        reports: on each checkpoint.
        console: where to; None: stdout.
        in_tokens: whether the tables' noise scales are in tokens, not examples, where it is known
            how many an example has.
    """
    console = console or stdout_console()
    results = [noise for _, noise in _results(reports)]
    first = results[0]
    engines = ", ".join(sorted({str(noise.engine) for noise in results}))
    made = [report.measured.loaded for report in reports if report.measured.loaded.content is None]
    of_model = f" of {made[0].title}," if made else ""
    console.print(
        f"Gradient noise{of_model} over {examples_text(results)} {first.split} examples, "
        f"population: {first.population}, engine: {engines}"
    )
    if len(reports) == 1:
        console.print(_quantities(reports[0], in_tokens=in_tokens))
    else:
        console.print(_along_training(reports, in_tokens=in_tokens))
    for report, noise in _results(reports):
        _print_parts(console, report, noise, reports, in_tokens=in_tokens)
    print_anatomy(
        [
            OfCheckpoint(step_text(report.measured), noise.anatomy)
            for report, noise in _results(reports)
            if noise.anatomy is not None
        ],
        console,
    )
    if in_tokens:
        units = _rounded(results[0].units_per_example or 1.0)
        console.print(f"Noise scales in the tables are in tokens, {units} an example.")
    if all(noise.simple.kind == "exact" for noise in results):
        console.print("Exact, of all examples there are: no standard errors and no intervals.")
    notes = [note for report, _ in _results(reports) for note in report.notes]
    for note in dict.fromkeys(notes):
        console.print(f"Note: {note}.")
    _print_sentences(console, reports)
    for report in reports:
        if report.recommendation is not None:
            _print_recommendation(
                console, report.measured.loaded.run, report.recommendation, report.advice
            )


def growth_text(recommendation: Recommendation) -> str:
    """How the noise scale went along a run."""
    name = ALONG_TRAINING[recommendation.column]
    start, end, average = (
        estimate.text(number=_rounded)
        for estimate in (recommendation.start, recommendation.end, recommendation.average)
    )
    return f"{name} goes from {start} to {end}, {average} on the average step"


def _results(reports: list[NoiseReport]) -> Iterator[tuple[NoiseReport, NoiseScale]]:
    """The reports that have a noise scale, with it."""
    for report in reports:
        if report.measured.result is not None:
            yield report, report.measured.result


def _quantities(report: NoiseReport, *, in_tokens: bool) -> NumberTable:
    """One checkpoint: a row per quantity."""
    table = plain_table("quantity", "value", "± stderr", INTERVAL, words=("quantity",))
    for _, noise in _results([report]):
        for name, label in QUANTITIES.items():
            if (estimate := _shown(noise, name, in_tokens=in_tokens)) is not None:
                table.add_row(label, *estimate.cells())
        under = noise.preconditioned
        for name, label in PRECONDITIONED.items() if under is not None else ():
            if (estimate := _shown(under, name, in_tokens=in_tokens)) is not None:
                table.add_row(label, *estimate.cells())
        for name, label in SIGN_QUANTITIES.items() if noise.sign is not None else ():
            of_sign: Estimate = getattr(noise.sign, name)
            units = noise.units_per_example if in_tokens and name == "simple" else None
            table.add_row(label, *of_sign.scaled(units or 1.0).cells())
        for size, rate in report.rates.items():
            table.add_row(f"ε_opt(B = {size:,})", *rate.cells())
        effective, noisiest = _concentration(noise)
        table.add_row("n_eff of the examples", effective, "", "")
        table.add_row("noisiest 1 %, of tr Σ", noisiest, "", "")
    return table


def _along_training(reports: list[NoiseReport], *, in_tokens: bool) -> NumberTable:
    """Several checkpoints: a row each."""
    with_runs = several_runs(report.measured for report in reports)
    results = [noise for _, noise in _results(reports)]
    shown = [name for name in ALONG_TRAINING if any(name in noise.estimates for noise in results)]
    table = plain_table(less=LESS)
    if with_runs:
        table.add_column("run", words=True)
    add_columns(table, "step", "loss")
    for name in shown:
        add_columns(table, ALONG_TRAINING[name], *((INTERVAL,) if name in SCALES else ()))
    has_preconditioned = any(noise.preconditioned is not None for noise in results)
    if has_preconditioned:
        add_columns(table, "B^P_simple", INTERVAL)
    add_columns(table, "n_eff")
    for report in reports:
        measured = report.measured
        row = [measured.loaded.run] if with_runs else []
        row.append(step_text(measured))
        row += _cells_along_training(measured.result, shown, in_tokens=in_tokens)
        if has_preconditioned:
            under = measured.result and measured.result.preconditioned
            estimate = _shown(under, "simple", in_tokens=in_tokens)
            row += _value_and_interval(estimate) if estimate else ("", "")
        row.append(_concentration(measured.result)[0] if measured.result else "")
        table.add_row(*row)
    return table


def _shown(noise: NoiseScale | None, name: str, *, in_tokens: bool) -> Estimate | None:
    """A quantity in the unit of the table; None where it was not measured."""
    if noise is None:
        return None
    estimate = noise.estimates.get(name)
    if estimate is None or not in_tokens or name not in SCALES:
        return estimate
    return estimate.scaled(noise.units_per_example or 1.0)


def _cells_along_training(
    noise: NoiseScale | None, shown: list[str], *, in_tokens: bool
) -> list[str]:
    """The loss and the quantities of one checkpoint, empty where it was not measured."""
    loss = noise and noise.loss
    cells = [f"{loss.value:.4g}" if loss else ""]
    for name in shown:
        estimate = noise and _shown(noise, name, in_tokens=in_tokens)
        value, interval = _value_and_interval(estimate) if estimate else ("", "")
        cells.append(value)
        if name in SCALES:
            cells.append(interval)
    return cells


def _concentration(noise: NoiseScale) -> tuple[str, str]:
    """n_eff and the share of tr Σ that the noisiest hundredth of the examples hold."""
    if noise.effective_examples is None or noise.noisiest_share is None:
        return "", ""
    return _rounded(noise.effective_examples), f"{noise.noisiest_share:.1%}"


def _value_and_interval(estimate: Estimate) -> tuple[str, str]:
    """The value with its stderr, as one cell, and the interval as another."""
    value, stderr, interval = estimate.cells()
    return f"{value} ± {stderr}" if stderr else value, interval


def _print_parts(
    console: Console,
    report: NoiseReport,
    noise: NoiseScale,
    among: list[NoiseReport],
    *,
    in_tokens: bool,
) -> None:
    """The tables of layers, of classes and, beside these, of the noisiest examples."""
    parts = {"parameter": noise.per_layer, "class": noise.per_class}
    present = {key: rows for key, rows in parts.items() if rows is not None and len(rows)}
    if len(among) > 1 and present:
        console.print(name_text(report.measured, [other.measured for other in among]))
    for key, rows in present.items():
        units = (noise.units_per_example or 1.0) if in_tokens else 1.0
        console.print(_parts(key, rows, whole=noise.gradient_variance.value, units=units))
    if "class" in present:
        assert noise.top_examples is not None
        console.print(_noisiest(noise.top_examples))


def _parts(key: str, rows: pd.DataFrame, *, whole: float, units: float) -> NumberTable:
    """A row per parameter tensor or class; tensors with their share of tr Σ, `whole`.

    units: by which the noise scales are multiplied.
    """
    middle = "share of tr Σ" if key == "parameter" else "examples"
    headings = (key, "|G|²", "tr Σ", middle, "B_simple", INTERVAL)
    table = plain_table(*headings, words=(key,), less=(middle, "|G|²", "tr Σ"))
    for row in rows.to_dict("records"):
        norm, variance = (
            _value_and_interval(estimate_of(row, name))
            for name in ("squared_gradient_norm", "gradient_variance")
        )
        simple = _value_and_interval(estimate_of(row, "simple").scaled(units))
        share = f"{row['gradient_variance'] / whole:.1%}" if whole else ""
        between = share if key == "parameter" else f"{row['num_examples']:,}"
        table.add_row(str(row[key]), norm[0], variance[0], between, *simple)
    return table


def _noisiest(rows: pd.DataFrame) -> NumberTable:
    """The examples with the largest shares of tr Σ."""
    table = plain_table(*map(str, rows), title="Largest shares of tr Σ")
    for row in rows.to_dict("records"):
        cells = {**row, "share": f"{row['share']:.3%}", "loss": f"{row['loss']:.4g}"}
        table.add_row(*(str(cell) for cell in cells.values()))
    return table


def _print_sentences(console: Console, reports: list[NoiseReport]) -> None:
    """What the last noise scale means, and each that is not resolved or not measured."""
    every = [report.measured for report in reports]
    last_measured = [report for report, _ in _results(reports)][-1]
    for report in reports:
        measured, noise = report.measured, report.measured.result
        name = ""
        if len(reports) > 1 or measured.loaded.step is not None:
            name = f"{name_text(measured, every)}: "
        if noise is None:
            console.print(f"{name}not measured. {measured.reason}")
        elif report is last_measured or not noise.resolved:
            checkpoint = measured.loaded.checkpoint
            batch_size = None if checkpoint is None else checkpoint.training.batch_size
            console.print(name + _sentence(noise, batch_size))
            if noise.preconditioned is not None:
                console.print(_of_optimizer(noise.preconditioned, measured.loaded.optimizer_name))
            if noise.full is not None:
                console.print(_prediction(report, noise, noise.full))


def _beside(batch_size: object, simple: float) -> str:
    """The batch size that was trained with, where it is a number, beside B_simple."""
    if not isinstance(batch_size, int):
        return ""
    return f" Trained with B = {batch_size:,}, {batch_size / simple:.2g} times it."


def _sentence(noise: NoiseScale, batch_size: object) -> str:
    """What B_simple means for the choice of a batch size, and for the one in use."""
    simple = noise.simple
    if noise.resolved:
        value = f"{_rounded(simple.value)} ({_before(simple)}{noise.population})"
        return (
            f"B_simple ≈ {value}: below it, doubling the batch about halves the steps; far above "
            f"it, it buys little.{_in_units(simple, noise.units_per_example)}"
            f"{_beside(batch_size, simple.value)}"
        )
    bound = f" > {_rounded(simple.low)}, but" if simple.kind == "bound" else ""
    needed = noise.examples_to_resolve
    advice = "" if needed is None else f": {_rounded(needed)} or more would"
    is_distribution = noise.population == "distribution"
    if needed is not None and is_distribution and needed > noise.population_size:
        advice += ", more than the split has"
    unresolved = f"{noise.num_examples:,} examples cannot tell |G|² from zero{advice}"
    return f"B_simple{bound} is not resolved ({noise.population}): {unresolved}."


def _of_optimizer(under: NoiseScale, optimizer: str) -> str:
    """What the noise scale under the optimizer's preconditioner is for."""
    simple = under.simple
    found = "is not resolved"
    if under.resolved:
        found = f"≈ {_rounded(simple.value)} ({_before(simple)}{under.population})"
    elif simple.kind == "bound":
        found = f"> {_rounded(simple.low)}, but is not resolved"
    units = _in_units(simple, under.units_per_example) if under.resolved else ""
    return (
        f"B^P_simple {found}, in the geometry of {optimizer}, B_simple in that of the plain "
        f"gradient: which of them lies nearer to B_crit is another from task to task.{units}"
    )


def _in_units(scale: Estimate, units: float | None) -> str:
    """A noise scale in tokens as well, where it is known how many an example has."""
    if units is None:
        return ""
    return f" That is {_rounded(scale.value * units)} tokens, {_rounded(units)} an example."


def _prediction(report: NoiseReport, noise: NoiseScale, full: Estimate) -> str:
    """What B_noise says of the learning rate."""
    assert noise.curvature is not None
    if math.isnan(full.value):
        if noise.curvature.gradient_curvature.high < 0:
            return (
                "GᵀHG is negative: the loss curves down along its gradient, so no step length is "
                "the best."
            )
        return "B_noise is not resolved: GᵀHG cannot be told from zero; raise --num-examples."
    text = f"B_noise ≈ {_rounded(full.value)} ({_before(full)}{noise.population})"
    for size, rate in report.rates.items():
        if not math.isnan(rate.value):
            text += f"; the one step that lowers the loss most at B = {size:,} has "
            text += f"lr {rate.value:.3g}"
    checkpoint = report.measured.loaded.checkpoint
    if checkpoint is not None:
        text += f" (trained with {checkpoint.learning_rate:.3g})"
    return f"{text}."


def _print_recommendation(
    console: Screen, run: str, recommendation: Recommendation, advice: Advice | None
) -> None:
    """How the noise scale went, where B_crit lies by it, batch sizes, and what γ would be."""
    from noisescale.statistics.critical_batch.calibration.shipped import calibrated_by

    by_progress = recommendation.by_progress.text(number=_rounded)
    text = f"Along {run}, {growth_text(recommendation)}, {by_progress} weighted by progress"
    if recommendation.full_by_progress is not None:
        full = recommendation.full_by_progress.text(number=_rounded)
        text += f" ({ALONG_TRAINING[recommendation.column_of('full')]} {full})"
    if recommendation.num_unresolved:
        text += (
            f" ({recommendation.num_unresolved} of {recommendation.num_measurements} measurements "
            f"were not resolved; {100 * recommendation.covered:.0f} % of the steps lie between "
            "others)"
        )
    critical = recommendation.critical_batch_size
    console.print(
        f"{text}. For another run like it, at the best rate for its batch size, B_crit lies "
        f"between {_rounded(critical.low)} and {_rounded(critical.high)}, about "
        f"{_rounded(critical.value)} (95 %, {calibrated_by(recommendation.geometry)}):"
    )
    if advice is None:
        console.print(_batch_sizes(recommendation))
    else:
        print_advice(advice, console=console)
    gain = recommendation.course.gain
    console.print(
        f"A batch size that follows the noise scale (--bs adaptive): γ = {gain:.2f}, so at best "
        f"{1 + math.sqrt(gain):.2f} times the least of both where a fixed one takes 2."
    )
    for warning in recommendation.warnings:
        console.print(f"Note: {warning}.")


def _batch_sizes(recommendation: Recommendation) -> NumberTable:
    """A row per aim: the batch size, and what it takes."""
    from noisescale.statistics.critical_batch.recommendation import SIZE_HEADINGS, size_cells

    table = plain_table(*SIZE_HEADINGS, words=("aim",))
    for row in recommendation.sizes:
        table.add_row(*size_cells(row))
    return table


def _before(estimate: Estimate) -> str:
    """The interval and a comma, to stand before more in brackets; nothing for an exact value."""
    if estimate.kind != "interval":
        return ""
    return f"{estimate.text('interval', number=_rounded)}, "


def _rounded(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{float(f'{value:.3g}'):,g}" if abs(value) < 1e6 else f"{value:.2e}"
