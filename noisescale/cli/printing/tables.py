"""What the printed tables share: the console, the columns, the names of checkpoints."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from noisescale.statistics.estimate import Number, three_digits

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Measured
    from noisescale.measure.sharpness import Sharpness
    from noisescale.statistics.gradient_noise import NoiseScale

AS_MADE = "as made"  # a model without a checkpoint, as its factory makes it
WIDTH = 120  # columns of output that is not to a terminal: every table fits


def stdout_console(*, soft_wrap: bool = False) -> Console:
    """The console that a command's result goes to; soft_wrap leaves long lines to the terminal."""
    width = None if sys.stdout.isatty() else WIDTH
    return Console(width=width, highlight=False, soft_wrap=soft_wrap)


def plain_table(*columns: str, left: tuple[str, ...] = (), title: str | None = None) -> Table:
    """An empty table of numbers under these headings, those of `left` flush left."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    add_columns(table, *columns, left=left)
    return table


def add_columns(table: Table, *columns: str, left: tuple[str, ...] = ()) -> None:
    """Adds columns of numbers under these headings, those of `left` flush left."""
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)


def or_dash(value: float | None, number: Number = three_digits) -> str:
    """A number as text, a dash where there is none."""
    return "–" if value is None or math.isnan(value) else number(value)


def examples_text(results: Iterable[NoiseScale | Sharpness]) -> str:
    """How many examples of how many were measured on, as far as the results agree."""
    counts = {(result.num_examples, result.population_size) for result in results}
    texts = [
        f"all {size:,}" if count == size else f"{count:,} of {size:,}"
        for count, size in sorted(counts)
    ]
    return " or ".join(texts)


def several_runs(measured: Iterable[Measured[object]]) -> bool:
    """Whether the checkpoints are of more than one run."""
    return len({one.loaded.run for one in measured}) > 1


def step_text(measured: Measured[object]) -> str:
    """The step of a checkpoint, a dash where it is not known; of none, that it is as made."""
    step = measured.loaded.step
    if measured.loaded.content is None:
        return AS_MADE
    return "–" if step is None else f"{step:,}"


def name_text(measured: Measured[object], among: Iterable[Measured[object]]) -> str:
    """What to call a checkpoint in a sentence among these."""
    loaded = measured.loaded
    if loaded.step is None:
        return loaded.title
    step = f"step {loaded.step:,}"
    return f"{loaded.run}, {step}" if several_runs(among) else step.capitalize()
