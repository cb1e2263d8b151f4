"""What noisescale sweep-lr prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisescale.cli.printing.recommend import print_advice
from noisescale.cli.printing.tables import Screen, or_dash, plain_table, stdout_console
from noisescale.statistics.display import counted
from noisescale.statistics.estimate import jsonable

if TYPE_CHECKING:
    from noisescale.studies.stability_map.results import SweepResult

NAMES = {
    "lower": "lower",
    "gaussian": "Gaussian",
    "wu": "Wu",
    "upper": "upper",
    "lyapunov": "Lyapunov",
    "descent": "descent",
}
# what may be left out, the least important first: of the curves, the loosest bounds
LESS = ("not monotone", "descent", "Wu", "Gaussian", "seeds", "lower", "upper")
SYMBOLS = {"sharpness": "λ_max", "concentration": "κ", "largest_example": "β", "trace": "tr H"}


def print_sweep(result: SweepResult, console: Screen | None = None) -> None:
    """The measured edge beside the predictions, how well these meet it, and what the cells were."""
    from noisescale.studies.stability_map.results import EDGE_HEADINGS, edge_cells

    console = console or stdout_console()
    summary, boundary = result.summary, result.boundary
    curves = [name for name in NAMES if name in boundary]
    table = plain_table(
        *EDGE_HEADINGS,
        *(NAMES[name] for name in curves),
        less=LESS,
        where="boundary.csv has them",
    )
    for row in boundary.to_dict("records"):
        table.add_row(*edge_cells(row), *(or_dash(row[name]) for name in curves))
    if scores := summary["scores"]:
        table.add_section()
        shares = [or_dash(scores[name]["cells_right"], _per_cent) for name in curves]
        errors = [or_dash(scores[name]["log2_error"]) for name in curves]
        table.add_row("cells right", "", "", "", "", *shares)
        table.add_row("|log₂ error|", "", "", "", "", *errors)
    console.print(
        f"η_max, the learning rate at which half of the seeds {result.verb}, and its predictions"
    )
    console.print(table)
    labels = ", ".join(f"{count} {label}" for label, count in summary["labels"].items() if count)
    console.print(f"{counted(summary['num_cells'], 'cell')}: {labels or 'none finished'}.")
    if summary["labels"]["dead"]:
        console.print(
            "Dead ones do not diverge, so that η_max may lie above their rates: they give one "
            "class to nearly all examples, at the loss of chance."
        )
    if result.config.folds is not None:
        _print_folds(result, console)
    training = result.config.training
    if training.optimizer != "sgd" or training.momentum or training.weight_decay:
        console.print(
            "No predicted edges: the predictions are of plain SGD, without momentum and weight "
            "decay."
        )
    if sizes := summary["seeds_alike"]:
        console.print(
            "Gradient descent from one checkpoint is the same run for every seed: at B = "
            f"{', '.join(map(str, sizes))} the interval lies between two of the rates tried."
        )
    if num_not_monotone := summary["num_not_monotone"]:
        console.print(
            f"{num_not_monotone} of {boundary['num_seeds'].sum()} seeds were stable again above a "
            "rate at which they were not; the intervals take each to have one threshold, and are "
            "too narrow for these."
        )
    for note in summary["notes"]:
        console.print(f"Note: {note}.")
    if constants := summary["constants"]:
        console.print(_constants_text(constants))
        for note in constants["notes"]:
            console.print(f"Note: {note}.")
    print_advice(result.advice, console=console)


def _print_folds(result: SweepResult, console: Screen) -> None:
    """The rates that folds choose, a row for each batch size."""
    from noisescale.studies.stability_map.tables import score_of_folds

    score = score_of_folds(result.cells)
    table = plain_table("batch size", "rate chosen", f"held-out {score}", "lowest at")
    for size, found in result.cross_validation.items():
        of_chosen = found.scores[found.rates.index(found.chosen)]
        table.add_row(
            str(size), f"{found.chosen:g}", of_chosen.text("value ± stderr"), f"{found.best:g}"
        )
    console.print(
        f"The learning rate by {result.config.folds} folds: of those within one standard error of "
        f"the lowest mean held-out {score}, the largest"
    )
    console.print(table)
    if without := set(result.cells["batch_size"]) - set(result.cross_validation):
        console.print(
            f"No rate at which all folds trained: B = {', '.join(sorted(map(str, without)))}."
        )


def sweep_record(result: SweepResult) -> dict[str, Any]:
    """The boundary and the summary for strict JSON."""
    return {"boundary": jsonable(result.boundary), "summary": result.summary}


def _constants_text(constants: dict[str, Any]) -> str:
    """What the predictions were made of, with 95 % intervals."""
    texts = [f"{symbol} = {_text(constants, name)}" for name, symbol in SYMBOLS.items()]
    return (
        f"Gauss–Newton matrix at the start: {', '.join(texts)} (β and tr H of "
        f"{constants['num_examples']:,} examples); 2/λ_max = {or_dash(2 / constants['sharpness'])}."
    )


def _text(constants: dict[str, Any], name: str) -> str:
    """A constant with its interval; as a bound where that is open."""
    value = or_dash(constants[name])
    estimate = constants["estimates"].get(name)
    if estimate is None or estimate["stderr"] == 0:
        return value
    if estimate["high"] is None:
        return f"{value} or more"
    return f"{value} ({or_dash(estimate['low'])}–{or_dash(estimate['high'])})"


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %"
