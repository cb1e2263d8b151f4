"""The ten lines that a command which measures ends in: which batch size, which learning rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescale.cli.printing.tables import stdout_console
from noisescale.statistics.critical_batch.advice import WIDTH

if TYPE_CHECKING:
    from noisescale.statistics.critical_batch.advice import Advice


def print_advice(advice: Advice | None, notes: tuple[str, ...] = ()) -> None:
    """The notes, and the block after them, at the width of the terminal."""
    console = stdout_console()
    width = min(console.width, WIDTH)
    for note in notes:
        print_folded(f"Note: {note}.", width)
    for line in [] if advice is None else advice.block(width):
        console.out(line, highlight=False)  # a command to be copied is not folded


def print_folded(text: str, width: int) -> None:
    """A sentence in lines of at most so many columns."""
    import textwrap

    lines = textwrap.wrap(text, width, break_on_hyphens=False)
    stdout_console().out("\n".join(lines), highlight=False)
