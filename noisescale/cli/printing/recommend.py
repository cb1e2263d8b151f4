"""The ten lines that a command which measures ends in: which batch size, which learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescale.cli.printing.tables import Screen, fold, stdout_console
from noisescale.statistics.critical_batch.advice import WIDTH

if TYPE_CHECKING:
    from noisescale.statistics.critical_batch.advice import Advice


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
