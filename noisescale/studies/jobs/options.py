"""How a study is carried out, whatever it studies."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from noisescale.errors import SettingError
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.statistics.display import Settings
from noisescale.studies.jobs.cell import Cell
from noisescale.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True, repr=False)
class StudyOptions(Settings):
    """How a study is carried out; nothing here changes its results.

    Attributes:
        device: where the runs compute, "cpu" or "cuda".
        data_dir: where data sets lie; None: in $NOISESCALE_DATA, else in the user's cache.
        console: where progress and failures are printed; None: nowhere.
        notes: for the record of the study and of each of its runs.
        pictures: whether the study's pictures are drawn at its end, from its tables.
    """

    device: str = "cpu"
    data_dir: Path | str | None = None
    console: Console | None = None
    notes: tuple[str, ...] = ()
    pictures: bool = True


Options = TypeVar("Options", bound=StudyOptions)


def common_options(options: StudyOptions | None) -> StudyOptions:
    """The options of a study without any of its own; SettingError for those of another study."""
    if options is None:
        return StudyOptions()
    common = {field.name for field in fields(StudyOptions)}
    foreign = [
        field.name
        for field in fields(options)
        if field.name not in common and getattr(options, field.name) != field.default
    ]
    if foreign:
        raise SettingError(
            f"{', '.join(foreign)} of {type(options).__name__}: this study takes no such option; "
            "leave it out, or give StudyOptions"
        )
    return options


def with_notes(options: Options, notes: tuple[str, ...]) -> Options:
    """The options with further notes for the record, which are also said on the console.

    Args:
        options: of a study.
        notes: sentences without a full stop.
    """
    if options.console is not None:
        from noisescale.training.console import NOTE_STYLE

        for note in notes:
            options.console.print(f"NOTE: {note}", style=NOTE_STYLE, markup=False)
    return replace(options, notes=(*options.notes, *notes))


def make_cell(
    options: StudyOptions,
    path: Path,
    problem: ProblemConfig | FactoryConfig,
    training: TrainConfig,
    *,
    start: Path | str | None = None,
) -> Cell:
    """A run in the folder `path`, carried out by these options wherever a worker is at home."""
    return Cell(
        path=path.absolute(),
        problem=problem,
        training=training,
        start=None if start is None else Path(start).absolute(),
        device=options.device,
        data_dir=options.data_dir and Path(options.data_dir).absolute(),
        notes=options.notes,
    )
