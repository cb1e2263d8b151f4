"""What noisescale sweep-lr prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from noisescale.cli.printing.tables import or_dash, plain_table, stdout_console
from noisescale.statistics.estimate import estimate_of, jsonable

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


def print_sweep(result: SweepResult) -> None:
    """The measured edge beside the predictions, how well these meet it, and what the cells were."""
    console = stdout_console()
    summary, boundary = result.summary, result.boundary
    curves = [name for name in NAMES if name in boundary]
    headings = ("batch size", "η_max", "95 % interval", "seeds")
    table = plain_table(*headings, *(NAMES[name] for name in curves))
    for row in boundary.to_dict("records"):
        edge = estimate_of(row, "lr_max", num_samples=row["num_seeds"])
        table.add_row(
            str(row["batch_size"]),
            edge.text("value", unknown="not found"),
            edge.text("interval"),
            str(row["num_seeds"]),
            *(or_dash(row[name]) for name in curves),
        )
    if scores := summary["scores"]:
        table.add_section()
        shares = [or_dash(scores[name]["cells_right"], _per_cent) for name in curves]
        errors = [or_dash(scores[name]["log2_error"]) for name in curves]
        table.add_row("cells right", "", "", "", *shares)
        table.add_row("|log₂ error|", "", "", "", *errors)
    verb = "diverge" if result.config.start is None else "leave the minimum"
    console.print(
        f"η_max, the learning rate at which half of the seeds {verb}, and its predictions"
    )
    console.print(table)
    labels = ", ".join(f"{count} {label}" for label, count in summary["labels"].items() if count)
    console.print(f"{summary['num_cells']} cells: {labels or 'none finished'}.")
    training = result.config.training
    if training.optimizer != "sgd" or training.momentum or training.weight_decay:
        console.print(
            "No predicted edges: the predictions are of plain SGD, without momentum and weight "
            "decay."
        )
    if summary["constants"] is not None:
        console.print(_constants_text(summary["constants"]))


def sweep_record(result: SweepResult) -> dict[str, Any]:
    """The boundary and the summary for strict JSON."""
    return {"boundary": jsonable(result.boundary), "summary": result.summary}


def _constants_text(constants: dict[str, Any]) -> str:
    """What the predictions were made of."""
    sharpness = constants["sharpness"]
    return (
        f"Gauss–Newton matrix at the start: λ_max = {or_dash(sharpness)}, "
        f"2/λ_max = {or_dash(2 / sharpness)}, κ = {or_dash(constants['concentration'])}, "
        f"β/λ_max = {or_dash(constants['largest_example'] / sharpness)}, "
        f"tr/λ_max = {or_dash(constants['trace'] / sharpness)} "
        f"({constants['num_examples']:,} examples)."
    )


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f} %"
