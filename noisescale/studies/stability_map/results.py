"""What a sweep leaves: its tables and, last, its summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from noisescale.errors import RunFolderError
from noisescale.problems.config import FactoryConfig, ObjectConfig, ProblemConfig, parse_problem
from noisescale.statistics.critical_batch.advice import Advice
from noisescale.statistics.display import Shown, Summary
from noisescale.statistics.estimate import estimate_of, jsonable
from noisescale.statistics.scores.cross_validation import CrossValidation
from noisescale.statistics.stability.curves import StabilityConstants
from noisescale.statistics.stability.edge import LABELS
from noisescale.studies.critical_batch.config import firmer_command
from noisescale.studies.jobs.cell import count_units
from noisescale.studies.jobs.folder import changes, closing
from noisescale.studies.jobs.options import StudyOptions
from noisescale.studies.recommend.measured import advise_on_map
from noisescale.studies.stability_map.config import BatchSize, Horizon, SweepConfig
from noisescale.studies.stability_map.tables import (
    boundary_table,
    cells_table,
    counted_once,
    in_order,
    rates_by_folds,
    score_of_folds,
    scores,
)
from noisescale.training.config import TrainConfig
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    SUMMARY,
    may_write,
    read_json,
    write_json,
    write_table,
)
from noisescale.training.records.tables import (
    BOUNDARY,
    CELLS,
    MOVE_AWAY,
    read_boundary,
    read_cells,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEADING = "A batch size by the loss at the end of the runs:"
EDGE_HEADINGS = ("batch size", "η_max", "95 % interval", "seeds", "not monotone")


def edge_cells(row: Mapping[Any, Any]) -> tuple[str, ...]:
    """A row of boundary.csv, its measured edge, under `EDGE_HEADINGS`."""
    edge = estimate_of(row, "lr_max", num_samples=row["num_seeds"])
    return (
        str(row["batch_size"]),
        edge.text("value", unknown="not found"),
        edge.text("interval"),
        str(row["num_seeds"]),
        str(row["num_not_monotone"]),
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepResult(Shown):
    """What a sweep has come to.

    Attributes:
        config: the sweep, with the ends of its learning rates.
        cells: the rows of cells.csv, one for each run.
        boundary: the rows of boundary.csv: of each batch size the measured edge η_max with its
            95 % interval, and the predicted ones.
        summary: the content of summary.json.
        advice: which batch size and learning rate follow from it; None: not asked.
    """

    config: SweepConfig
    cells: pd.DataFrame
    boundary: pd.DataFrame
    summary: dict[str, Any]
    advice: Advice | None = None

    @property
    def cross_validation(self) -> dict[BatchSize, CrossValidation]:
        """Of a sweep with folds, the rate they choose at each batch size at which all train."""
        return rates_by_folds(self.cells)

    @property
    def verb(self) -> str:
        """What runs above the edge do."""
        return "diverge" if self.config.start is None else "leave the minimum"

    def to_frame(self) -> pd.DataFrame:
        """The rows of boundary.csv, one for each batch size: a copy of `boundary`."""
        return self.boundary.copy()

    def _summary(self) -> Summary:
        counts = {label: count for label, count in self.summary["labels"].items() if count}
        cells = ", ".join(f"{count} {label}" for label, count in counts.items())
        return Summary(
            title=f"η_max, the learning rate at which half of the seeds {self.verb}; "
            f"{self.summary['num_cells']} cells: {cells or 'none finished'}",
            headings=EDGE_HEADINGS,
            rows=[edge_cells(row) for row in self.boundary.to_dict("records")],
            numeric=True,
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the map: accuracy or loss by batch size and learning rate, and the edges over it.

        Args:
            ax: drawn on, beside which a colour bar takes its place; None: new ones, in a figure of
                pyplot's.

        Returns:
            The Axes of the map.
        """
        from noisescale.plots.stability_map import draw_map  # matplotlib takes 0.8 s to load

        return draw_map(self.cells, self.boundary, minimum=self.config.start is not None, axes=ax)


def read_sweep(folder: Path) -> SweepResult | None:
    """The result in a sweep's folder, None where it has not finished; RunFolderError: damaged."""
    summary = read_json(folder / SUMMARY)
    if summary is None:
        return None
    try:
        config = SweepConfig(
            problem=_of_sweep(summary["problem"]),
            training=TrainConfig(**summary["training"]),
            batch_sizes=tuple(summary["batch_sizes"]),
            lr_min=summary["lr_min"],
            lr_max=summary["lr_max"],
            num_lr=None if summary["bisected"] else summary["num_lr"],
            num_seeds=summary["num_seeds"],
            horizon=Horizon(**summary["horizon"]),
            start=summary["start"],
            folds=summary.get("folds"),
        )
        advice = Advice.of_summary(summary, HEADING)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunFolderError(
            f"{folder / SUMMARY} is no sweep's summary ({error}): {MOVE_AWAY}"
        ) from error
    return SweepResult(
        config=config,
        cells=read_cells(folder),
        boundary=read_boundary(folder),
        summary=summary,
        advice=advice,
    )


def _folds_record(cells: pd.DataFrame) -> list[dict[str, Any]]:
    """What folds choose, for summary.json; empty without folds."""
    return [
        {
            "batch_size": size,
            "score": score_of_folds(cells),
            **chosen.to_dict(),
        }
        for size, chosen in rates_by_folds(cells).items()
    ]


def _of_sweep(stored: dict[str, Any]) -> ProblemConfig | FactoryConfig:
    """The problem of a sweep, which no object's is."""
    problem = parse_problem(stored)
    if isinstance(problem, ObjectConfig):
        raise TypeError("its problem is an object of Python")
    return problem


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a sweep has come to.

    rows: of cells.csv. constants: measured where the runs start; None: they were not. predictions:
    each batch size's predicted edges, by curve. num_examples: N, in the training set. failures: a
    line for each. seconds: that it took.
    """

    rows: list[dict[str, Any]]
    constants: StabilityConstants | None
    predictions: dict[BatchSize, dict[str, float]]
    num_examples: int
    failures: list[str]
    seconds: float


def write_results(
    config: SweepConfig, out: Path, outcome: Outcome, options: StudyOptions
) -> SweepResult:
    """Writes the files of a sweep to its folder: tables, picture and, last, summary.json."""
    cells = cells_table(outcome.rows)
    seeds_alike = [
        size
        for size in in_order(cells["batch_size"])
        if config.seeds_alike(size, num_examples=outcome.num_examples)
    ]
    boundary = boundary_table(cells, outcome.predictions, seeds_alike=seeds_alike)
    distinct = counted_once(cells, seeds_alike=seeds_alike)
    prediction_scores = scores(distinct, boundary) if outcome.predictions else {}
    labels = cells["label"].value_counts()
    constants = outcome.constants
    advice = _advice(config, cells, outcome)
    summary = {
        **config.identity(),
        "batch_sizes": boundary["batch_size"].tolist(),
        "lr_min": config.lr_min,
        "lr_max": config.lr_max,
        "num_lr": len(config.learning_rates),
        "bisected": config.num_lr is None,
        "num_seeds": config.num_seeds,
        "num_cells": len(cells),
        "seeds_alike": seeds_alike,
        "num_not_monotone": int(boundary["num_not_monotone"].sum()),
        "labels": {label: int(labels.get(label, 0)) for label in LABELS},
        "failures": outcome.failures,
        "constants": constants and {**jsonable(constants), "notes": list(constants.notes)},
        "scores": jsonable(prediction_scores),
        "cross_validation": _folds_record(cells),
        "recommendation": jsonable(advice.sizes),
        "advice": advice.to_dict(),
        **closing(outcome.seconds, options.notes, environment(options.device)),
    }
    result = SweepResult(
        config=config, cells=cells, boundary=boundary, advice=advice, summary=summary
    )
    if not may_write(out):
        return result
    has_changed = changes(out, CELLS, BOUNDARY)
    write_table(out / CELLS, cells)
    write_table(out / BOUNDARY, boundary)
    if options.pictures and (has_changed() or not any(out.glob("*.png"))):
        from noisescale.studies.stability_map.pictures import draw_pictures

        draw_pictures(out)
    write_json(out / SUMMARY, summary)
    return result


def _advice(config: SweepConfig, cells: pd.DataFrame, outcome: Outcome) -> Advice:
    """What the losses at the ends of the runs say of the batch size to use."""
    cost = f"Cost: {len(cells)} runs."
    if config.start is not None:
        return Advice(
            heading=HEADING,
            cost=cost,
            reason=(
                "they start in a minimum, where the loss tells what is stable and nothing of "
                "training; leave out --from"
            ),
        )
    ((unit, amount),) = ((name, n) for name, n in vars(config.horizon).items() if n is not None)
    advice = advise_on_map(
        cells,
        horizon=f"{amount:,} {unit.removesuffix('s') if amount == 1 else unit}",
        equal_steps=unit == "steps",
        num_examples=outcome.num_examples,
        folds=None if config.folds is None else rates_by_folds(cells),
        score=score_of_folds(cells),
    )
    firmer = firmer_command(config.problem, config.training)
    units = count_units(config.problem)
    return replace(advice, cost=cost, firmer=firmer, units_per_example=units)
