"""What a recommendation leaves: its advice, tables, report, picture and, last, its summary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from noisescale.errors import MeasurementError, NoProgressError, RunFolderError
from noisescale.problems.config import AnyConfig, parse_problem
from noisescale.statistics.critical_batch.advice import (
    Advice,
    aimed_sizes,
    in_use_text,
    interval_text,
    number_text,
)
from noisescale.statistics.critical_batch.calibration.shipped import calibrated_on
from noisescale.statistics.critical_batch.recommendation import Recommendation, recommend
from noisescale.statistics.display import Shown, Summary
from noisescale.statistics.estimate import Estimate, jsonable
from noisescale.studies.critical_batch.config import firmer_command
from noisescale.studies.jobs.cell import count_units
from noisescale.studies.jobs.short_run import ShortRun
from noisescale.studies.recommend.config import RecommendConfig
from noisescale.studies.recommend.look import Look, Plan
from noisescale.studies.recommend.optimizer import (
    caveat,
    scaling_rules,
)
from noisescale.training.console import duration_text
from noisescale.training.records.folder import (
    SUMMARY,
    read_json,
    write_atomically,
    write_json,
    write_table,
)
from noisescale.training.records.names import describe_problem
from noisescale.training.records.tables import LOSSES, NOISE, read_noise

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT, PICTURE, TRIED = "report.md", "recommendation.png", "learning_rates.csv"
ROSE = 1.5  # times its average, from which on B_simple at the end says that it goes on to rise
FAR = 8.0  # times B_crit, or a fraction of it: the run's course may then be another


@dataclass(frozen=True, kw_only=True, repr=False)
class RecommendResult(Shown):
    """A batch size and a learning rate for each aim, and what they follow from.

    Attributes:
        advice: the answer: sizes with intervals and rates, what they are worth, what it cost.
        summary: the content of summary.json: `recommendation`, a list of aim, batch_size, low, high
            and learning_rate, and the measurements.
    """

    advice: Advice
    summary: dict[str, Any]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know."""
        return tuple(self.summary["notes"])

    def to_frame(self) -> pd.DataFrame:
        """A row for each aim: batch size, its interval and the learning rate."""
        return pd.DataFrame(self.summary["recommendation"])

    def _summary(self) -> Summary:
        advice = self.advice
        columns = advice.table() if advice.sizes else {}
        return Summary(
            title=advice.heading,
            headings=tuple(columns),
            rows=list(zip(*columns.values(), strict=True)),
            notes=tuple(sentence.rstrip(".") for sentence in advice.sentences),
            numeric=True,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the phases have come to.

    tried: the rates, with the loss reached and the steps. best: of them. best_rate: its
    value or, where that lies beyond those tried, the best of them. run: the tracked one.
    seconds: that all of it took.
    """

    config: RecommendConfig
    look: Look
    plan: Plan
    tried: pd.DataFrame
    best: Estimate
    best_rate: float
    run: ShortRun
    seconds: float


def advise(outcome: Outcome) -> tuple[Advice, Recommendation | None]:
    """The advice, and the recommendation that its sizes follow from; None where there is none."""
    config, look, run = outcome.config, outcome.look, outcome.run
    size, rate = look.batch_size, run.summary["learning_rate"]
    cost = _cost(outcome)
    where = f"a run at B = {size:,}, lr {rate:g}"
    try:
        found = recommend(
            pd.DataFrame(read_noise(run.path)),
            # of a search that ended early the best rate tried is no known one
            rate_over_best=None if math.isnan(outcome.best.value) else rate / outcome.best_rate,
            optimizer=config.training.optimizer_kind,
        )
    except MeasurementError as error:
        few = (
            f"|G|² along the run cannot be told from zero on {outcome.plan.noise_examples:,} "
            "examples; give more --minutes with --force, or measure more examples where the "
            "data set has them"
        )
        advice = Advice(
            heading=f"B_crit by the noise scale of {where}:",
            cost=cost,
            worth=(f"Best learning rate at B = {size:,}: {rate:g}.",),
            firmer=firmer_command(config.problem, config.training),
            reason=str(error) if isinstance(error, NoProgressError) else few,
        )
        return advice, None
    critical = found.critical_batch_size
    trained = outcome.tried.loc[np.isfinite(outcome.tried["loss"]), "learning_rate"]
    rules = scaling_rules(
        config.training,
        batch_size=size,
        learning_rate=rate,
        critical=critical.value,
        largest_rate=max(rate, *trained),
    )
    sizes = aimed_sizes(
        critical,
        population_size=look.num_examples,
        rate=rules.rate_at,
        measured_at=[size],
        beta2=rules.beta2_at,
        weight_decay=rules.weight_decay_at,
    )
    bound = any(rules.is_bound_at(aimed.batch_size) for aimed in sizes)
    advice = Advice(
        heading=(
            f"B_crit ≈ {number_text(critical.value)} ({interval_text(critical)}), by the noise of "
            f"{where}:"
        ),
        sizes=sizes,
        rules=rules.rules,
        in_use=None if config.batch_size is None else in_use_text(config.batch_size, critical),
        worth=_worth(
            outcome,
            in_geometry=found.geometry == "optimizer",
            bound=rules.largest_rate if bound else None,
        ),
        cost=cost,
        firmer=firmer_command(
            config.problem, config.training, critical=critical, num_examples=look.num_examples
        ),
    )
    return advice, found


def _worth(outcome: Outcome, *, in_geometry: bool, bound: float | None) -> tuple[str, ...]:
    """What the numbers are worth: the error of the model, and the law of the rates.

    bound: the largest rate that trained, where the law goes beyond it; else None.
    """
    size, training = outcome.look.batch_size, outcome.config.training
    said = caveat(training.optimizer, in_geometry=in_geometry)
    at_most = "" if bound is None else f", at most {bound:.2g}, the largest that trained"
    if said is not None:
        return said, f"Rates: tried at B = {size:,}{at_most}."
    return (
        f"Sizes: calibrated on {calibrated_on()}. Rates: tried at B = {size:,}, else ∝ "
        f"1/(1+B_crit/B){at_most}.",
    )


def _notes(found: Recommendation, size: int) -> list[str]:
    """What the recommendation itself warns of, and what the way of the noise scale tells."""
    notes = list(found.warnings)
    if found.end.value > ROSE * found.average.value:
        notes.append(
            f"B_simple still rose, from {number_text(found.average.value)} on the average step to "
            f"{number_text(found.end.value)} at the end: for longer training larger sizes pay"
        )
    critical = found.critical_batch_size.value
    if max(critical / size, size / critical) > FAR:
        notes.append(
            f"the run is at B = {size:,}, far from B_crit: give --bs "
            f"{number_text(critical).replace(',', '')} for one near it"
        )
    return notes


def _cost(outcome: Outcome) -> str:
    run = outcome.run.summary
    loss = outcome.run.losses["loss"].iloc[-1]
    return (
        f"Cost: {duration_text(outcome.seconds)} of {outcome.config.minutes:g} min: "
        f"{len(outcome.tried)} rates, and {run['steps']:,} steps to loss {loss:.3g}."
    )


def read_result(out: Path) -> RecommendResult | None:
    """The finished result in a folder, None where there is none."""
    summary = read_json(out / SUMMARY)
    if summary is None:
        return None
    try:
        return RecommendResult(advice=Advice.from_dict(summary["advice"]), summary=summary)
    except (KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{out / SUMMARY} is no recommendation's summary ({error}): delete it and run again"
        ) from error


def write_results(
    out: Path, outcome: Outcome, closing: dict[str, Any], *, title: str, pictures: bool
) -> RecommendResult:
    """Writes tables, report, picture and, last, summary.json.

    closing: what every summary ends in. title: of the report and the picture.
    """
    advice, found = advise(outcome)
    advice = replace(advice, units_per_example=count_units(outcome.config.problem))
    noise = pd.DataFrame(read_noise(outcome.run.path))
    if found is not None:
        closing = {
            **closing,
            "notes": [
                *closing["notes"],
                *_notes(found, outcome.look.batch_size),
            ],
        }
    summary = {
        **outcome.config.identity(),
        "recommendation": jsonable(advice.sizes),
        "reason": advice.reason,
        "measurements": jsonable(
            {
                "critical_batch_size": found and found.critical_batch_size,
                "noise": found,
                "learning_rate": outcome.best,
                "learning_rates": outcome.tried,
                "start": outcome.look,
                "plan": outcome.plan.to_dict(),
                "run": outcome.run.summary,
            }
        ),
        "advice": advice.to_dict(),
        "minutes": outcome.config.minutes,
        **closing,
    }
    write_table(out / TRIED, outcome.tried)
    write_table(out / NOISE, noise)
    write_table(out / LOSSES, outcome.run.losses)
    picture = f"![Learning rates, the noise scale and the sizes]({PICTURE})" if pictures else ""
    _write_report(out / REPORT, title, advice, summary["notes"], outcome.tried, picture)
    if pictures:
        from noisescale.plots.style import image

        figure = _figure(outcome.tried, noise, summary, title=title)
        write_atomically(out / PICTURE, image(figure))
    write_json(out / SUMMARY, summary)
    return RecommendResult(advice=advice, summary=summary)


def draw_pictures(folder: Path, *, out: Path | None = None, format: str = "png") -> list[Path]:
    """The file drawn: the picture of a finished recommendation, from the tables in its folder.

    Args:
        folder: of the recommendation.
        out: where the picture goes, made where it is missing; None: beside the tables.
        format: "png", "pdf" or "svg", which also ends the file's name.

    Returns:
        The path of the picture; none where the folder holds no answer yet.

    Raises:
        RunFolderError: summary.json is damaged.
    """
    from noisescale.training.records.pictures import save_figures  # loads matplotlib

    return save_figures(figures(folder), out or folder, format=format)


def figures(folder: Path) -> Iterator[tuple[str, Figure]]:
    """The name of the picture and the picture; nothing where the folder holds no answer yet."""
    if (result := read_result(folder)) is None:
        return
    tried, noise = pd.read_csv(folder / TRIED), pd.DataFrame(read_noise(folder))
    title = title_of(parse_problem(result.summary["problem"]))
    yield Path(PICTURE).stem, _figure(tried, noise, result.summary, title=title)


def title_of(problem: AnyConfig) -> str:
    """The title of the report and the picture."""
    return f"A batch size for {describe_problem(problem)}"


def _figure(
    tried: pd.DataFrame, noise: pd.DataFrame, summary: dict[str, Any], *, title: str
) -> Figure:
    """The rates tried, the noise scale along the run, and the sizes that follow."""
    from noisescale.plots.recommendation import recommendation_figure  # loads matplotlib

    best = (summary["measurements"]["learning_rate"] or {}).get("value")
    return recommendation_figure(
        tried,
        noise,
        summary["recommendation"],
        best=math.nan if best is None else best,
        title=title,
    )


def _write_report(
    path: Path, title: str, advice: Advice, notes: list[str], tried: pd.DataFrame, picture: str
) -> None:
    """The block, the notes, the link to a picture, if any, and the tables as Markdown."""
    rates = "\n".join(
        f"| {row['learning_rate']:g} | {row['steps']:,} | {row['loss']:.4g} |"
        for row in tried.to_dict("records")
    )
    sections = [
        f"# {title}",
        "```\n" + "\n".join(advice.block()) + "\n```",
        *advice.worth,
        "\n".join(f"- {note}." for note in notes),
        picture,
        "## Learning rates tried",
        "The loss of each after as many steps as all have in common; inf: it diverged, or did not "
        "train.",
        f"| learning rate | steps | loss |\n|---:|---:|---:|\n{rates}",
        f"The noise scale along the run is in {NOISE}, its losses in {LOSSES}.",
    ]
    text = "\n\n".join(section for section in sections if section)
    write_atomically(path, f"{text}\n".encode())
