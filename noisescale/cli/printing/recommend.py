"""The ten lines that a command which measures ends in: which batch size, which learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from noisescale.cli.printing.tables import Screen, fold, stdout_console
from noisescale.errors import SettingError
from noisescale.statistics.critical_batch.advice import WIDTH

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Loaded
    from noisescale.statistics.critical_batch.advice import Advice, Project


def schedule_record(
    loaded: list[Loaded], project: Project | None, multiple_of: int | None
) -> dict[str, Any] | None:
    """The batch-size schedule of a tracked run as JSON has it; `text` is the project's own form.

    None where none is asked for. SettingError where there is no such run.
    """
    from noisescale.statistics.critical_batch.advice import schedule_text
    from noisescale.studies.recommend.checkpoint import schedule_of_run

    if project is None:
        if multiple_of is not None:
            raise SettingError("--multiple-of goes with --schedule: give that too")
        return None
    runs = sorted({one.run for one in loaded})
    checkpoint = loaded[-1].checkpoint
    schedule = None
    if len(runs) == 1 and checkpoint is not None:
        path = Path(runs[0])
        schedule = schedule_of_run(path, checkpoint.training, multiple_of=multiple_of or 1)
    if schedule is None:
        raise SettingError(
            f"--schedule of {', '.join(runs)}: give the folder of one run of noisescale train that "
            "was tracked, by --measure-noise-every log"
        )
    text = schedule_text(schedule, project)
    return {"project": project, "text": text, **schedule.to_dict()}


def print_schedule(record: dict[str, Any] | None, console: Screen | None = None) -> None:
    """The lines for the project to read, none of them folded."""
    from rich.text import Text

    console = console or stdout_console()
    for line in [] if record is None else record["text"].splitlines():
        console.print(Text(line), no_wrap=True, overflow="ignore", crop=False)


def print_advice(
    advice: Advice | None, notes: tuple[str, ...] = (), console: Screen | None = None
) -> None:
    """The notes, and the block after them, at the width of the terminal."""
    from rich.text import Text

    console = console or stdout_console()
    width = min(console.width, WIDTH)
    for note in notes:
        console.print(fold(f"Note: {note}.", width))
    for line in [] if advice is None else advice.block(width):
        console.print(Text(line), no_wrap=True)  # a str, a command to be copied, would be folded
