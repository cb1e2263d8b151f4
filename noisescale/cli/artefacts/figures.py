"""The pictures of whatever a path holds, as figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescale.cli.artefacts.sources import (
    ALLOWED,
    CRITICAL_BATCH,
    RUN,
    STABILITY_MAP,
    holds,
    kind_of,
    measurement_kind,
    read_entries,
    read_table,
    table_kind,
)
from noisescale.errors import NoisescaleError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def figures(path: Path) -> Iterator[tuple[str, Figure]]:
    """The name and the figure of each picture of one of the `sources`.

    Raises:
        NoisescaleError: there is nothing to draw, or it is damaged.
    """
    match kind_of(path):
        case "run":
            from noisescale.training.records import pictures

            yield from pictures.figures(path)
        case "sweep":
            from noisescale.studies.stability_map import pictures as of_map

            yield from of_map.figures(path)
        case "critical batch":
            from noisescale.studies.critical_batch import pictures as of_front

            yield from of_front.figures(path)
        case "recommendation":
            from noisescale.studies.recommend import results

            yield from results.figures(path)
        case _:
            yield path.stem, file_figure(path)


def file_figure(path: Path) -> Figure:
    """A measurement's JSON or a single table as a figure."""
    if path.suffix == ".json":
        return _measurements_figure(read_entries(path))
    table = read_table(path)
    kind = table_kind(table)
    if kind is None:
        raise NoisescaleError(f"there is no picture of a table with these columns; {ALLOWED}")
    if kind == "comparison":
        from noisescale.training.records.comparison import figure_of

        return figure_of(path)
    if table.empty:
        raise NoisescaleError("nothing to draw yet: it has no rows")
    try:
        return _table_figure(kind, path, table)
    except (KeyError, TypeError, ValueError) as error:
        raise NoisescaleError(f"damaged ({error}): it cannot be drawn as {kind}") from error


def _measurements_figure(entries: Any) -> Figure:
    """What `measure-noise --json` or `sharpness --json` printed, as a figure."""
    from noisescale.plots.noise import noise_figure
    from noisescale.plots.sharpness import has_picture, measurements_figure

    if measurement_kind(entries) == "sharpness":
        if not has_picture(entries):
            raise NoisescaleError(
                "one checkpoint's trace alone makes no picture: measure it with --top, --bottom, "
                "--density, --phi, --filter-normalised or --batch-sharpness"
            )
        return measurements_figure(entries)
    if all(entry["reason"] for entry in entries):
        raise NoisescaleError(f"nothing was measured: {entries[0]['reason']}")
    return noise_figure(entries)


def table_title(path: Path) -> str:
    """What a table is of, by the settings beside it, and its name."""
    from noisescale.training.records.pictures import run_title

    folder = path.absolute().parent
    if holds(folder, STABILITY_MAP[0]):
        from noisescale.studies.stability_map.pictures import sweep_title

        return f"{sweep_title(folder)}\n{path.name}"
    if holds(folder, CRITICAL_BATCH[0]):
        from noisescale.studies.critical_batch.pictures import study_title

        return f"{study_title(folder)}\n{path.name}"
    return f"{run_title(folder)}\n{path.name}" if holds(folder, RUN[0]) else path.name


def _table_figure(kind: str, path: Path, table: pd.DataFrame) -> Figure:
    from noisescale.plots.interpolation import interpolation_figure
    from noisescale.plots.noise import batch_size_figure, noise_growth_figure
    from noisescale.plots.sharpness import sharpness_figure
    from noisescale.plots.training import confusion_figure, curves_figure, losses_figure

    title = table_title(path)
    match kind:
        case "curves":
            return curves_figure(table, title=title)
        case "losses":
            return losses_figure(table, title=title)
        case "confusion":
            splits = list(table["split"])
            split = "test" if "test" in splits else splits[-1]
            return confusion_figure(table, split=split, title=f"{title}, {split} examples")
        case "sharpness":
            return sharpness_figure(table, title=title)
        case "noise":
            if "seed" in table:  # of the several runs beside a critical batch size
                table = table.assign(run="seed " + table["seed"].astype(str))
            return noise_growth_figure(table, title=title)
        case "batch_size":
            return batch_size_figure(table, title=title)
        case "line":
            return interpolation_figure(table, title=title)
        case "map":
            return _map_figure(table, title=title)
    return _pareto_figure(path, title=title)


def _map_figure(cells: pd.DataFrame, *, title: str) -> Figure:
    """The map of a sweep, its edges measured from the cells alone, without predictions."""
    from noisescale.plots.stability_map import map_figure
    from noisescale.studies.stability_map.tables import boundary_table

    return map_figure(cells, boundary_table(cells, {}), title=title)


def _pareto_figure(path: Path, *, title: str) -> Figure:
    """The fronts and what is fitted to them, of anybody's steps to a goal."""
    from noisescale.plots.critical_batch import critical_figure
    from noisescale.statistics.critical_batch.goal_table import (
        fastest_runs,
        fits_table,
        laws_table,
        read_goal_table,
    )
    from noisescale.studies.critical_batch.results import analyse

    result = analyse(read_goal_table(path))
    return critical_figure(
        fastest_runs(result.table),
        fits_table(result.fits),
        result.rates,
        laws_table(result.laws),
        result.predicted,
        title=title,
    )
