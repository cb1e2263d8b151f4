"""The picture of a sweep, drawn from the tables in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from matplotlib.figure import Figure

from noisescale.errors import DataError
from noisescale.plots.stability_map import map_figure
from noisescale.problems.config import ProblemConfig, parse_problem
from noisescale.studies.stability_map.config import SETTINGS
from noisescale.training.records.folder import read_json
from noisescale.training.records.names import describe_problem
from noisescale.training.records.pictures import save_figures
from noisescale.training.records.tables import BOUNDARY, CELLS, read_boundary, read_cells

STUDY_WIDTHS = (None, 1024)  # of the three-case study's network; None: the default, which is its


def draw_pictures(folder: Path, *, out: Path | None = None, format: str = "png") -> list[Path]:
    """The files drawn: the map of a sweep, from its cells.csv and boundary.csv.

    Args:
        folder: of the sweep.
        out: where the picture goes, made where it is missing; None: beside the tables.
        format: "png", "pdf" or "svg", which also ends the file's name.

    Returns:
        The path of the map; none for a folder without these tables.

    Raises:
        RunFolderError: sweep.json is damaged.
    """
    return save_figures(figures(folder), out or folder, format=format)


def figures(folder: Path) -> Iterator[tuple[str, Figure]]:
    """The name of the map and the map; nothing for a folder without its tables."""
    if not all((folder / name).exists() for name in (CELLS, BOUNDARY)):
        return
    settings = read_json(folder / SETTINGS)
    problem = None if settings is None else parse_problem(settings["problem"])
    minimum = settings is not None and settings["start"] is not None
    figure = map_figure(
        read_cells(folder),
        read_boundary(folder),
        title=sweep_title(folder),
        minimum=minimum,
        cases=isinstance(problem, ProblemConfig) and _is_the_study(problem) and not minimum,
    )
    yield "map", figure


def _is_the_study(problem: ProblemConfig) -> bool:
    """Whether the problem is that of the three-case study, whose cases the map then marks."""
    return problem.pixel_scale == "raw" and problem.width in STUDY_WIDTHS


def sweep_title(folder: Path) -> str:
    """What a sweep trains, from where and how long; the folder's name where it does not say."""
    settings = read_json(folder / SETTINGS)
    if settings is None:
        return folder.absolute().name
    start = "from initialisation" if settings["start"] is None else "from a checkpoint"
    lengths = [(unit, amount) for unit, amount in settings["horizon"].items() if amount is not None]
    if not lengths:
        raise DataError(
            f"{folder / SETTINGS}: says neither steps nor epochs in its horizon, so that it is not "
            "as it was written; run the same command anew to another folder"
        )
    unit, amount = lengths[0]
    length = f"{amount:,} {unit if amount > 1 else unit.removesuffix('s')}"
    return f"{describe_problem(parse_problem(settings['problem']))}, {start}, {length}"
