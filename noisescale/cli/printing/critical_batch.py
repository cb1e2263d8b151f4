"""What noisescale critical-batch prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Console

from noisescale.cli.printing.recommend import print_advice
from noisescale.cli.printing.tables import (
    NumberTable,
    Screen,
    or_dash,
    plain_table,
    stdout_console,
)
from noisescale.statistics.display import counted
from noisescale.statistics.estimate import Estimate, estimate_of, written_out as _number

if TYPE_CHECKING:
    from noisescale.statistics.critical_batch.learning_rate_law import LearningRateLaw
    from noisescale.studies.critical_batch.branches import BranchResult
    from noisescale.studies.critical_batch.results import CriticalBatchResult

QUANTITIES = {"simple": "B_simple", "full": "B_noise"}
LAWS = {
    "noise": "ε_max/(1 + B_c/B)",
    "capped": "ε_max·min(B/B_c, 1)",
    "power": "∝ B^{:.2f}",
    "sqrt": "∝ √B",
    "linear": "∝ B",
}
MOSTLY = 0.75  # of the steps over which a noise scale should be resolved


def print_fits(result: CriticalBatchResult, console: Screen | None = None) -> None:
    """The fit for each goal, what the noise scale predicts, the learning rates, and notes."""
    console = console or stdout_console()
    console.print("(S/S_min − 1)(E/E_min − 1) = 1 fitted to the fastest runs: B_crit = E_min/S_min")
    console.print(_fits(result))
    for assumed in dict.fromkeys(fit.assumes for fit in result.fits.values() if fit.assumes):
        console.print(f"The intervals assume that {assumed}.")
    console.print(
        "How well it fits, and a bend of another exponent: S = S_min(1 + (B_crit/B)^a)^(1/a)"
    )
    console.print(_goodness(result))
    for goal, fit in result.fits.items():
        remarks = [] if fit.resolved else [f"not resolved, {fit.reason}"]
        if remarks := remarks + fit.remarks():
            name = "" if math.isnan(goal) else f"Goal {goal:g}: "
            console.print(f"{name}{'; '.join(remarks)}.")
    if len(result.predicted):
        _print_predicted(console, result)
    laws = {goal: of_goal for goal, of_goal in result.laws.items() if of_goal}
    if laws:
        console.print(
            "Best learning rate ε(B): laws fitted, and their error at a batch size left out"
        )
        console.print(_laws(laws, result))
    # the study's own, such as what its seeds share, and the fits'
    notes = dict.fromkeys([*(result.summary or {}).get("notes", ()), *result.notes])
    print_advice(result.advice, tuple(notes), console)


def _fits(result: CriticalBatchResult) -> NumberTable:
    """A row per goal."""
    from noisescale.studies.critical_batch.results import FIT_HEADINGS, fit_cells

    table = plain_table(*FIT_HEADINGS, less=("sizes", "S_min", "E_min"), where="fit.json has them")
    for goal, fit in result.fits.items():
        table.add_row(*fit_cells(goal, fit))
    return table


def _goodness(result: CriticalBatchResult) -> NumberTable:
    """A row per goal: how the points lie about the curve, and which curve predicts better."""
    headings = ("scatter", "misfit p", "corr.", "held out", "with a", "a")
    table = plain_table("goal", *headings, less=("corr.", "scatter"), where="fit.json has them")
    for goal, fit in result.fits.items():
        table.add_row(
            _goal(goal),
            or_dash(fit.scatter, _per_cent),
            or_dash(fit.lack_of_fit, "{:.2g}".format),
            or_dash(fit.residual_correlation, "{:.2f}".format),
            or_dash(fit.held_out_error, _plus_minus),
            or_dash(fit.exponent_held_out_error, _plus_minus),
            fit.exponent.text(number=_number),
        )
    return table


def _print_predicted(console: Console, result: CriticalBatchResult) -> None:
    """The noise scale beside B_crit."""
    rows = result.predicted.to_dict("records")
    num_runs = max(row["num_seeds"] for row in rows)
    console.print(
        f"Predicted: noise scales along {counted(num_runs, 'run')} at B = {rows[0]['batch_size']}, "
        f"lr {rows[0]['learning_rate']:.3g}, averaged up to the goal; ratio: B_crit over that by "
        "progress"
    )
    headings = ("at the start", "mean over steps", "at the goal", "by progress", "ratio")
    table = plain_table(
        *("goal", "", *headings), left=("",), less=headings[:3], where="predicted.csv has them"
    )
    for row in rows:
        mark = "" if row["covered"] >= MOSTLY else "*"
        table.add_row(
            f"{row['goal']:g}",
            QUANTITIES[row["quantity"]] + mark,
            *(_number(row[name]) for name in ("start", "average", "end")),
            *(_with_interval(row, name) for name in ("by_progress", "ratio_by_progress")),
        )
    console.print(table)
    least = min(row["covered"] for row in rows)
    if least < MOSTLY:
        console.print(
            f"* resolved over {100 * least:.0f} % of the steps at least; elsewhere the curvature "
            "along the gradient is not above zero, and what is left out would make it larger."
        )
    if num_runs == 1:
        console.print("One run: the intervals are of the measurements along it, not between runs.")


def _laws(laws: dict[float, list[LearningRateLaw]], result: CriticalBatchResult) -> NumberTable:
    """A row per goal and law."""
    headings = ("ε_max", "B_c", "95 % interval", "B_noise", "held out")
    table = plain_table("goal", "law", *headings, words=("law",), less=("B_noise",))
    full = result.predicted[result.predicted["quantity"] == "full"]
    predicted = full.set_index("goal")["by_progress"]
    for goal, of_goal in laws.items():
        for law in of_goal:
            numbers = ["–"] * 4
            if (critical := law.batch_size) is not None:
                numbers = [
                    _number(law.scale),
                    "–" if math.isnan(critical.value) else _number(law.bend),
                    critical.text("interval", number=_number),
                    _number(predicted.get(goal, math.nan)),
                ]
            table.add_row(
                _goal(goal),
                LAWS[law.name].format(law.power),
                *numbers,
                _plus_minus(law.held_out_error),
            )
    return table


def print_branches(result: BranchResult, console: Screen | None = None) -> None:
    """Each batch size's loss after equal examples, and the critical one."""
    from noisescale.statistics.critical_batch.branches import BRANCH_HEADINGS, branch_cells

    console = console or stdout_console()
    summary, critical = result.summary, result.critical_batch_size
    console.print(
        f"Branches of {summary['examples']:,} examples from a loss of {summary['start_loss']:.4g}; "
        f"learning rate scaled: {summary['scaling']}"
    )
    table = plain_table(*BRANCH_HEADINGS, less=("seeds",), where="branches.csv has them")
    for row in result.to_frame().to_dict("records"):
        table.add_row(*branch_cells(row))
    console.print(table)
    for note in summary["notes"]:
        console.print(f"Note: {note}.")
    tolerance = f"{summary['tolerance']:.2g}"
    smallest = min(summary["batch_sizes"])
    if summary["resolved"]:
        interval = critical.text("interval", number=_number)
        console.print(
            f"Critical batch size here ≈ {_number(critical.value)} ({interval}): the largest whose "
            f"loss is within {tolerance} of every smaller one's."
        )
    elif result.at_base:
        console.print(
            f"Critical batch size ≤ {_number(critical.high)}: not resolved, as no loss beyond the "
            f"smallest batch size's, {smallest}, is within {tolerance} of it; give smaller ones."
        )
    else:
        console.print(
            f"Critical batch size not resolved: above {_number(critical.low)}, up to which losses "
            f"are within {tolerance} of every smaller batch size's; give larger ones."
        )
    sizes = ", ".join(
        f"{100 * share:g} %: {_at_most(size)}" for share, size in result.by_tolerance.items()
    )
    console.print(f"By tolerance, as a share of the loss at B = {smallest}: {sizes}.")


def _at_most(critical: Estimate) -> str:
    """A critical batch size in a line, which has an upper bound where only the smallest passes."""
    from noisescale.statistics.critical_batch.branches import at_base

    bounded = at_base(critical)
    return f"≤ {_number(critical.high)}" if bounded else critical.text(number=_number)


def _goal(goal: float) -> str:
    """The goal, which is nan where a table has one alone."""
    return or_dash(goal, "{:g}".format)


def _with_interval(row: dict[Any, Any], name: str) -> str:
    """A value with its interval, also where one run's exact values give it no width."""
    estimate: Estimate = estimate_of(row, name)
    if estimate.kind not in ("exact", "interval"):
        return estimate.text("value", number=_number)
    return f"{_number(estimate.value)} ({estimate.text('interval', number=_number)})"


def _per_cent(log_error: float) -> str:
    """A deviation of a logarithm, in per cent of the quantity."""
    return f"{100 * math.expm1(log_error):.0f} %"


def _plus_minus(log_error: float) -> str:
    return f"±{_per_cent(log_error)}"
