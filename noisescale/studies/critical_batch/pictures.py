"""The pictures of a measurement and of branches, drawn from the tables and JSON in their folder."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from noisescale.plots.critical_batch import branch_figure, critical_figure
from noisescale.plots.style import image
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
from noisescale.training.records.folder import (
    read_json,
    write_atomically,
)
from noisescale.training.records.names import describe_problem
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
    paths = []
    if (folder / STEPS_TO_GOAL).exists():
        paths.append(draw_front(folder, out=out, format=format))
    if (folder / BRANCHES).exists() and (summary := read_json(folder / BRANCH_RESULT)) is not None:
        examples, loss = summary["examples"], summary["start_loss"]
        title = f"Branches from a loss of {loss:.3g}, {examples:,} examples each"
        table = pd.read_csv(folder / BRANCHES)
        figure = branch_figure(table, branch_means(table), summary, title=title)
        paths.append(_save(figure, out or folder, f"branches.{format}"))
    return paths


def draw_front(
    folder: Path, *, title: str | None = None, out: Path | None = None, format: str = "png"
) -> Path:
    """The file drawn: Pareto fronts, critical batch sizes and best rates, as in `draw_pictures`.

    title: None: what was measured, or the folder's name where that is not noted.
    """
    table = pd.read_csv(folder / STEPS_TO_GOAL)
    fits, rates = remembered_fits(folder, table), best_rates(table)
    has_prediction = (folder / PREDICTED).exists()
    figure = critical_figure(
        fastest_runs(table),
        fits_table(fits),
        rates,
        laws_table({goal: fit_laws(rates, goal) for goal in fits}),
        pd.read_csv(folder / PREDICTED) if has_prediction else pd.DataFrame(),
        title=title or study_title(folder),
    )
    return _save(figure, out or folder, f"pareto.{format}")


def study_title(folder: Path) -> str:
    """What was measured of which problem; the folder's name where it does not say."""
    settings = read_json(folder / SETTINGS)
    if settings is None:
        return folder.absolute().name
    problem = describe_problem(parse_problem(settings["problem"]))
    return f"{problem}, {settings['training']['optimizer']}, {settings['split']} loss"


def _save(figure: Figure, folder: Path, name: str) -> Path:
    path = folder / name
    write_atomically(path, image(figure, path.suffix.removeprefix(".")))
    return path
