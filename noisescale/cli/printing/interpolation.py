"""What noisescale interpolate prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from noisescale.cli.printing.tables import plain_table, stdout_console
from noisescale.statistics.display import counted
from noisescale.statistics.estimate import three_digits

if TYPE_CHECKING:
    from noisescale.statistics.estimate import Estimate
    from noisescale.studies.interpolation import Interpolation

SHOWN = (-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5)  # of α, in the table


def print_interpolation(line: Interpolation, names: list[str]) -> None:
    """Loss and accuracy at a few points of the line, then the barrier of each split.

    Args:
        line: what was found.
        names: of the two models.
    """
    console = stdout_console()
    console.print(f"α = 0: {names[0]}")
    console.print(f"α = 1: {names[1]}")
    places = list(dict.fromkeys(line.place(alpha) for alpha in SHOWN))
    columns = []
    for split, found in line.splits.items():
        columns.append((f"{split} loss", found.losses))
        if found.accuracies:
            columns.append((f"{split} acc", found.accuracies))
    table = plain_table("α", *(name for name, _ in columns))
    for place in places:
        cells = (_cell(name, estimates[place]) for name, estimates in columns)
        table.add_row(f"{line.alphas[place]:g}", *cells)
    console.print(table)
    for split, found in line.splits.items():
        height, alpha = found.barrier
        said = height.text(number=three_digits, unknown="not finite")
        console.print(f"Barrier of the {split} loss: {said}, at α = {alpha:g}.")
        if found.accuracy_drop is not None:
            drop, alpha = found.accuracy_drop
            said = drop.text(number=three_digits)
            console.print(f"Fall of the {split} accuracy: {said}, at α = {alpha:g}.")
    console.print(
        "Both are largest distances from the straight line between α = 0 and 1, with 95 % "
        f"intervals by single examples; the models are {line.distance:.4g} apart. All "
        f"{counted(len(line.alphas), 'point')}: --json or --csv."
    )
    for note in line.notes:
        console.print(f"Note: {note}.")


def _cell(name: str, estimate: Estimate) -> str:
    if estimate.kind == "undefined":
        return "not finite"
    return f"{estimate.value:.4f}" if name.endswith("acc") else f"{estimate.value:.4g}"
