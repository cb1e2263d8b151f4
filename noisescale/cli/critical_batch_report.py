"""What noisescale critical-batch prints."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from noisescale.statistics.estimate import Estimate
    from noisescale.studies.critical_batch.branches import BranchResult
    from noisescale.studies.critical_batch.results import CriticalBatchResult

QUANTITIES = {"simple": "B_simple", "full": "B_noise"}
LAWS = {"noise": "ε_max/(1 + B_c/B)", "sqrt": "∝ √B", "linear": "∝ B"}
POOR_FIT = 0.01  # chance of as bad a fit, below which it deserves a word
MOSTLY = 0.75  # of the steps over which a noise scale should be resolved


def print_fits(result: CriticalBatchResult) -> None:
    """The fit for each goal, what the noise scale predicts, the learning rates, and what to know of them."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print("(S/S_min − 1)(E/E_min − 1) = 1 fitted to the fastest runs: B_crit = E_min/S_min")
    table = _table(
        "goal", "S_min", "E_min", "B_crit", "95 % interval", "20 % size", "scatter", "sizes"
    )
    for goal, fit in result.fits.items():
        reached = fit.num_batch_sizes - fit.num_censored
        table.add_row(
            "–" if math.isnan(goal) else f"{goal:g}",
            _value(fit.min_steps),
            _value(fit.min_examples),
            _value(fit.critical_batch_size) if fit.resolved else "not resolved",
            _interval(fit.critical_batch_size),
            _value(fit.overhead_batch_size),
            "–" if math.isnan(fit.scatter) else f"{100 * math.expm1(fit.scatter):.0f} %",
            f"{reached} of {fit.num_batch_sizes}",
        )
    console.print(table)
    for goal, fit in result.fits.items():
        name = "" if math.isnan(goal) else f"Goal {goal:g}: "
        if not fit.resolved:
            console.print(f"{name}not resolved, {fit.reason}.")
        if fit.lack_of_fit < POOR_FIT:
            console.print(
                f"{name}the points lie off the curve by more than the seeds explain "
                f"(p = {fit.lack_of_fit:.1g})."
            )
    if len(result.predicted):
        _print_predicted(console, result)
    _print_rates(console, result)
    for note in result.notes:
        console.print(f"Note: {note}.")


def _print_predicted(console: Console, result: CriticalBatchResult) -> None:
    """The noise scale beside B_crit."""
    rows = result.predicted.to_dict("records")
    num_runs = max(row["num_seeds"] for row in rows)
    console.print(
        f"Predicted: noise scales along {num_runs} run(s) at B = {rows[0]['batch_size']}, "
        f"lr {rows[0]['learning_rate']:.3g}, averaged up to the goal; ratio: B_crit over that by progress"
    )
    table = _table(
        "goal", "", "at the start", "mean over steps", "at the goal", "by progress", "ratio"
    )
    for row in rows:
        mark = "" if row["covered"] >= MOSTLY else "*"
        table.add_row(
            f"{row['goal']:g}",
            QUANTITIES[row["quantity"]] + mark,
            *(_short(row[name]) for name in ("start", "average", "end")),
            *(_with_interval(row, name) for name in ("by_progress", "ratio_by_progress")),
        )
    console.print(table)
    if any(row["covered"] < MOSTLY for row in rows):
        least = min(row["covered"] for row in rows)
        console.print(
            f"* resolved over {100 * least:.0f} % of the steps at least; elsewhere the curvature along the "
            "gradient is not above zero, and what is left out would make it larger."
        )
    if num_runs == 1:
        console.print("One run: the intervals are of the measurements along it, not between runs.")


def _print_rates(console: Console, result: CriticalBatchResult) -> None:
    found = {goal: laws for goal, laws in result.laws.items() if laws}
    if not found:
        return
    console.print("Best learning rate ε(B): laws fitted, and their error at a batch size left out")
    table = _table("goal", "law", "ε_max", "B_c", "95 % interval", "B_noise", "held out")
    predicted = result.predicted[result.predicted["quantity"] == "full"].set_index("goal")[
        "by_progress"
    ]
    for goal, laws in found.items():
        for law in laws:
            noise = law.batch_size
            table.add_row(
                "–" if math.isnan(goal) else f"{goal:g}",
                LAWS[law.name],
                _short(law.scale) if noise else "–",
                _short(law.bend) if noise and not math.isnan(noise.value) else "–",
                _interval(noise) if noise else "–",
                _short(predicted.get(goal, math.nan)) if noise else "–",
                f"±{100 * math.expm1(law.held_out_error):.0f} %",
            )
    console.print(table)


def print_branches(result: BranchResult) -> None:
    """Each batch size's loss after equal examples, and the critical one."""
    from noisescale.statistics.critical_batch.branches import branch_means

    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    summary = result.summary
    console.print(
        f"Branches of {summary['examples']:,} examples from a loss of {summary['start_loss']:.4g}; "
        f"learning rate scaled: {summary['scaling']}"
    )
    table = _table("batch size", "learning rate", "loss", "± stderr", "seeds")
    for row in branch_means(result.table).to_dict("records"):
        diverged = math.isnan(row["loss"])
        table.add_row(
            f"{row['batch_size']:,}",
            f"{row['learning_rate']:.3g}",
            "diverged" if diverged else f"{row['loss']:.4g}",
            "–" if math.isnan(row["loss_stderr"]) else f"{row['loss_stderr']:.2g}",
            str(row["num_seeds"]),
        )
    console.print(table)
    for note in summary["notes"]:
        console.print(f"Note: {note}.")
    found = result.critical_batch_size
    if summary["resolved"]:
        console.print(
            f"Critical batch size here ≈ {_short(found.value)} ({_interval(found)}): the largest whose loss "
            f"is within {summary['tolerance']:.2g} of every smaller one's."
        )
    else:
        console.print(
            f"Critical batch size not resolved: above {_short(found.low)}, up to which losses are within "
            f"{summary['tolerance']:.2g} of every smaller batch size's; give larger ones."
        )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("", "law") else "right", no_wrap=True)
    return table


def _value(estimate: Estimate) -> str:
    """The value or, where there is none, its bound."""
    if not math.isnan(estimate.value):
        return _short(estimate.value)
    if estimate.low > 0:
        return f"> {_short(estimate.low)}"
    return f"< {_short(estimate.high)}" if estimate.high < math.inf else "–"


def _interval(estimate: Estimate) -> str:
    low, high = estimate.low, estimate.high
    if math.isnan(low) or (low == 0 and math.isinf(high)):
        return "–"
    return f"{_short(low)}–{'∞' if math.isinf(high) else _short(high)}"


def _with_interval(row: dict[Any, Any], name: str) -> str:
    if math.isnan(row[name]):
        return "–"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if math.isnan(low):
        return _short(row[name])
    return f"{_short(row[name])} ({_short(low)}–{'∞' if math.isinf(high) else _short(high)})"


def _short(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
