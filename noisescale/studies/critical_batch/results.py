"""What a measurement of the critical batch size leaves: tables, fits and, last, its summary."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from noisescale.errors import RunFolderError, SettingError
from noisescale.statistics.critical_batch.advice import Advice
from noisescale.statistics.critical_batch.calibration.shipped import OptimizerKind
from noisescale.statistics.critical_batch.fit import CriticalBatchFit
from noisescale.statistics.critical_batch.goal_table import (
    best_rates,
    fastest_runs,
    fit_goals,
    fit_laws,
    fit_record,
    fits_table,
    read_goal_table,
    rises,
)
from noisescale.statistics.critical_batch.learning_rate_law import LearningRateLaw
from noisescale.statistics.display import Shown, Summary, counted
from noisescale.statistics.estimate import jsonable, written_out
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.critical_batch.fits import remembered_fits
from noisescale.studies.critical_batch.goal_runs.goal_run import GoalRun
from noisescale.studies.critical_batch.goal_runs.noise_runs import PREDICTED_COLUMNS, predicted_rows
from noisescale.studies.critical_batch.goal_runs.start import Start
from noisescale.studies.jobs.cell import count_units
from noisescale.studies.jobs.folder import changes, closing
from noisescale.studies.jobs.options import StudyOptions
from noisescale.studies.recommend.measured import advise_on_front
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    SUMMARY,
    may_write,
    read_json,
    write_json,
    write_table,
)
from noisescale.training.records.tables import MOVE_AWAY, PREDICTED, RATES, STEPS_TO_GOAL

SHORT = 1.05  # times its mean: from here on a short last batch shows beside the error of a fit
FLAT = 0.1  # of B_crit, below which examples depend on the batch size by a tenth at most
FIT, NOISE = "fit.json", "noise.csv"
FIT_HEADINGS = ("goal", "S_min", "E_min", "B_crit", "95 % interval", "20 % size", "sizes")


def fit_cells(goal: float, fit: CriticalBatchFit) -> tuple[str, ...]:
    """A goal's fit under `FIT_HEADINGS`; a table has a goal of nan where it has one alone."""
    reached = fit.num_batch_sizes - fit.num_censored
    critical, overhead = fit.critical_batch_size, fit.overhead_batch_size
    vague = math.isnan(overhead.value) and overhead.high < math.inf
    return (
        "–" if math.isnan(goal) else f"{goal:g}",
        fit.min_steps.text("value", number=written_out),
        fit.min_examples.text("value", number=written_out),
        critical.text("value", number=written_out) if fit.resolved else "not resolved",
        critical.text("interval", number=written_out),
        "not resolved" if vague else overhead.text(number=written_out),
        f"{reached} of {fit.num_batch_sizes}",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class CriticalBatchResult(Shown):
    """Steps to the goals, what is fitted to the fastest, and how the noise scale meets it.

    Attributes:
        table: the rows of steps_to_goal.csv.
        fits: of steps against batch size, by goal, descending.
        rates: the best learning rates, the rows of learning_rates.csv.
        laws: those fitted to the best learning rates, by goal; the best law first.
        predicted: the rows of predicted.csv: the noise scale beside the critical batch size.
        notes: what a reader should know.
        summary: the content of summary.json; None for a table of others.
        advice: which batch size and learning rate follow from it; None: not asked.
    """

    table: pd.DataFrame
    fits: dict[float, CriticalBatchFit]
    rates: pd.DataFrame
    laws: dict[float, list[LearningRateLaw]]
    predicted: pd.DataFrame
    notes: tuple[str, ...]
    summary: dict[str, Any] | None = None
    advice: Advice | None = None

    def to_dict(self) -> dict[str, Any]:
        """The content of fit.json: a record for each goal, with its laws and predictions."""
        records = []
        for goal, fit in self.fits.items():
            predicted = (
                self.predicted[self.predicted["goal"] == goal]
                if len(self.predicted)
                else self.predicted
            )
            rows = jsonable(predicted.drop(columns="goal", errors="ignore"))
            records.append(fit_record(goal, fit, self.laws[goal], predicted=rows))
        return {
            "goals": records,
            "recommendation": self.advice and jsonable(self.advice.sizes),
            "notes": list(self.notes),
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each goal: the goal, and the columns of `CriticalBatchFit.to_frame`."""
        return fits_table(self.fits)

    def _summary(self) -> Summary:
        return Summary(
            title=f"Critical batch size for {counted(len(self.fits), 'goal')}, from "
            f"{len(self.table):,} runs at {self.table['batch_size'].nunique()} batch sizes",
            headings=FIT_HEADINGS,
            rows=[fit_cells(goal, fit) for goal, fit in self.fits.items()],
            notes=self.notes,
            numeric=True,
        )


def read_front(folder: Path) -> CriticalBatchResult | None:
    """The result in the folder of a measurement, or of a fit to a table of others.

    None where it has no table yet. Without a summary.json it has not finished, unless it is of a
    table of others. RunFolderError: a file is damaged.
    """
    if not (folder / STEPS_TO_GOAL).exists():
        return None
    try:
        table = read_goal_table(folder / STEPS_TO_GOAL)
    except SettingError as error:
        raise RunFolderError(f"{error}: {MOVE_AWAY}") from error
    result = analyse(table, fits=remembered_fits(folder, table, keep=False))
    if (folder / PREDICTED).exists():
        result = replace(result, predicted=pd.read_csv(folder / PREDICTED))
    summary = read_json(folder / SUMMARY)
    if summary is None:
        return result
    try:
        advice = Advice.of_summary(summary, "A batch size by the fit to the lowest goal:")
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{folder / SUMMARY} is no measurement's summary ({error}): {MOVE_AWAY}"
        ) from error
    return replace(result, summary=summary, advice=advice)


def analyse(
    table: pd.DataFrame,
    noise_runs: list[GoalRun] | None = None,
    fits: dict[float, CriticalBatchFit] | None = None,
    *,
    num_examples: int | None = None,
    optimizer: str = "sgd",
    kind: OptimizerKind | None = None,
) -> CriticalBatchResult:
    """What follows from steps_to_goal.csv and the runs along which the noise was measured.

    fits: to the table; None: they are computed. num_examples: in the training set, where that is
    known. optimizer: of the runs, and of which kind it is.
    """
    fits = fit_goals(table) if fits is None else fits
    rates = best_rates(table)
    notes = []
    fastest = fastest_runs(table)
    for goal in fits:
        # anybody's table may have one goal that it does not name
        of_goal = "" if math.isnan(goal) else f"goal {goal:g}: "
        notes += [
            f"{of_goal}steps rise from B = {small:g} to {large:g} by a factor of "
            f"{factor:.2f}: a badly tuned learning rate, or chance"
            for small, large, factor in rises(fastest, goal)
        ]
        smallest = float(table["batch_size"].min())
        if smallest > FLAT * fits[goal].critical_batch_size.value:
            notes.append(
                f"{of_goal}the smallest batch size is {smallest:g}, above a tenth of B_crit, "
                "so that the 20 % size counts from a level that is no plateau"
            )
    rows = [
        row for goal, fit in fits.items() for row in predicted_rows(goal, fit, noise_runs or [])
    ]
    laws = {goal: fit_laws(rates, goal) for goal in fits}
    predicted = pd.DataFrame(rows, columns=list(PREDICTED_COLUMNS))
    return CriticalBatchResult(
        table=table,
        fits=fits,
        rates=rates,
        laws=laws,
        predicted=predicted,
        notes=tuple(notes),
        advice=advise_on_front(
            table,
            fits,
            rates,
            laws,
            predicted,
            population_size=num_examples,
            optimizer=optimizer,
            kind=kind,
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a measurement has come to.

    table: the rows of steps_to_goal.csv. fits: to it, by goal. num_examples: in the training set.
    best_losses: of the runs, each with its batch size and rate. goals: descending. start: what is
    known where the runs start. noise_runs: those along which the noise was measured. failures: a
    line for each. seconds: that the measurement took.
    """

    table: pd.DataFrame
    fits: dict[float, CriticalBatchFit]
    num_examples: int
    best_losses: list[tuple[float, int, float]]
    goals: tuple[float, ...]
    start: Start
    noise_runs: list[GoalRun]
    failures: list[str]
    seconds: float


def write_results(
    config: CriticalBatchConfig, out: Path, outcome: Outcome, options: StudyOptions
) -> CriticalBatchResult:
    """Writes the files of a measurement: tables, fits, picture and, last, summary.json."""
    table = outcome.table
    result = analyse(
        table,
        outcome.noise_runs,
        outcome.fits,
        num_examples=outcome.num_examples,
        optimizer=config.training.optimizer,
        kind=config.training.optimizer_kind,
    )
    notes = (
        *result.notes,
        *_short_batches(table, outcome.num_examples),
        *_unreached(result, outcome.best_losses),
    )
    num_runs = len(table.groupby(["batch_size", "learning_rate", "seed"]))
    cost = f"Cost: {num_runs} runs."
    units = count_units(config.problem)
    advice = result.advice and replace(result.advice, cost=cost, units_per_example=units)
    result = replace(result, notes=notes, advice=advice)
    summary = {
        **config.identity(),
        "goals": list(outcome.goals),
        "batch_sizes": sorted(table["batch_size"].unique().tolist()),
        "num_seeds": int(table["seed"].nunique()),
        **({} if units is None else {"units_per_example": units}),
        "factor": config.factor,
        "start": jsonable(outcome.start),
        "num_runs": num_runs,
        "failures": outcome.failures,
        "recommendation": advice and jsonable(advice.sizes),
        "advice": advice and advice.to_dict(),
        **closing(outcome.seconds, [*options.notes, *result.notes], environment(options.device)),
    }
    if not may_write(out):
        return replace(result, summary=summary)
    has_changed = changes(out, RATES, FIT, NOISE, PREDICTED)
    _write_noise(out, outcome.noise_runs, result.predicted)
    write_table(out / RATES, result.rates)
    write_fits(out, result)
    if options.pictures and (has_changed() or not any(out.glob("*.png"))):
        from noisescale.studies.critical_batch.pictures import draw_pictures

        draw_pictures(out)
    write_json(out / SUMMARY, summary)
    return replace(result, summary=summary)


def _write_noise(out: Path, noise_runs: list[GoalRun], predicted: pd.DataFrame) -> None:
    if not noise_runs:  # the tables of an earlier measurement in this folder are of other goals
        (out / NOISE).unlink(missing_ok=True)
        (out / PREDICTED).unlink(missing_ok=True)
        return
    along = pd.concat(run.noise.assign(seed=run.summary["seed"]) for run in noise_runs)
    write_table(out / NOISE, along)
    write_table(out / PREDICTED, predicted)


def write_fits(out: Path, result: CriticalBatchResult) -> None:
    """Writes what every measurement has, one from a table of others too: its runs and its fits."""
    write_table(out / STEPS_TO_GOAL, result.table)
    write_json(out / FIT, result.to_dict())


def _short_batches(table: pd.DataFrame, num_examples: int) -> list[str]:
    """A note on batch sizes at which an epoch's last batch, which is short, weighs."""
    notes = []
    for size in sorted(table["batch_size"].unique()):
        mean = num_examples / math.ceil(num_examples / size)
        if size > SHORT * mean:
            notes.append(
                f"B = {size}: an epoch's last batch is short, so that E = B·S is "
                f"{100 * (size / mean - 1):.0f} % more than the examples used"
            )
    return notes


def _named(goal: float) -> str:
    """The goal in a sentence; a table of others may have one alone, without its loss."""
    return "the goal" if math.isnan(goal) else f"goal {goal:g}"


def _unreached(
    result: CriticalBatchResult, best_losses: list[tuple[float, int, float]]
) -> list[str]:
    """A note on each goal that no run reached, with the best loss seen."""
    if not best_losses:
        return []
    loss, size, rate = min(best_losses)
    return [
        f"{_named(goal)} is reached by no run: the best loss seen is {loss:.4g}, at B = {size} and "
        f"lr {rate:g}"
        for goal, fit in result.fits.items()
        if fit.num_censored == fit.num_batch_sizes
    ]
