"""The pictures of a measurement and of branches, drawn from the tables and JSON in their folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from noisescale.plots.critical_batch import branch_figure, critical_figure
from noisescale.problems.config import parse_problem
from noisescale.statistics.critical_batch.branches import branch_means
from noisescale.statistics.critical_batch.goal_table import (
    best_rates,
    fastest_runs,
    fit_laws,
    fits_table,
    laws_table,
)
from noisescale.studies.critical_batch.config import BRANCH_RESULT, SETTINGS
from noisescale.studies.critical_batch.fits import remembered_fits
from noisescale.training.records.folder import read_json
from noisescale.training.records.names import describe_problem
from noisescale.training.records.pictures import save_figures
from noisescale.training.records.tables import BRANCHES, PREDICTED, STEPS_TO_GOAL


def draw_pictures(folder: Path, *, out: Path | None = None, format: str = "png") -> list[Path]:
    """The files drawn: the fronts of a measurement's folder, the branches of one of branches.

    Args:
        folder: of the measurement, of a fit to a table of others, or of branches.
        out: where the pictures go, made where it is missing; None: beside the tables.
        format: "png", "pdf" or "svg", which also ends the files' names.

    Returns:
        The paths of pareto and branches, as far as there are tables for them.

    Raises:
        RunFolderError: a JSON file in the folder is damaged.
    """
    return save_figures(figures(folder), out or folder, format=format)


def figures(folder: Path) -> Iterator[tuple[str, Figure]]:
    """The names and the figures of pareto and branches, as far as there are tables for them."""
    if (folder / STEPS_TO_GOAL).exists():
        yield "pareto", _front_figure(folder, title=study_title(folder))
    if (folder / BRANCHES).exists() and (summary := read_json(folder / BRANCH_RESULT)) is not None:
        examples, loss = summary["examples"], summary["start_loss"]
        title = f"Branches from a loss of {loss:.3g}, {examples:,} examples each"
        table = pd.read_csv(folder / BRANCHES)
        yield "branches", branch_figure(table, branch_means(table), summary, title=title)


def draw_front(folder: Path, *, title: str) -> Path:
    """The file drawn: pareto.png in the folder of a fit to a table of others, under this title."""
    (path,) = save_figures([("pareto", _front_figure(folder, title=title))], folder, format="png")
    return path


def _front_figure(folder: Path, *, title: str) -> Figure:
    """Pareto fronts, critical batch sizes and best rates."""
    table = pd.read_csv(folder / STEPS_TO_GOAL)
    fits, rates = remembered_fits(folder, table, keep=False), best_rates(table)
    has_prediction = (folder / PREDICTED).exists()
    return critical_figure(
        fastest_runs(table),
        fits_table(fits),
        rates,
        laws_table({goal: fit_laws(rates, goal) for goal in fits}),
        pd.read_csv(folder / PREDICTED) if has_prediction else pd.DataFrame(),
        title=title,
    )


def study_title(folder: Path) -> str:
    """What was measured of which problem; the folder's name where it does not say."""
    settings = read_json(folder / SETTINGS)
    if settings is None:
        return folder.absolute().name
    problem = describe_problem(parse_problem(settings["problem"]))
    return f"{problem}, {settings['training']['optimizer']}, {settings['split']} loss"
