"""What a measured front, or a map of learning rates, says of the batch size to use."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from noisescale.statistics.critical_batch.advice import (
    Advice,
    AimedSize,
    aimed_sizes,
    differ,
    interval_text,
    number_text,
    rate_between,
)
from noisescale.statistics.critical_batch.calibration.shipped import (
    OptimizerKind,
    RunFacts,
    critical_batch_size,
)
from noisescale.statistics.critical_batch.fit import CriticalBatchFit
from noisescale.statistics.critical_batch.goal_table import of_goal
from noisescale.statistics.critical_batch.learning_rate_law import LearningRateLaw
from noisescale.statistics.critical_batch.recommendation import AIMS
from noisescale.statistics.estimate import Estimate, estimate_of
from noisescale.statistics.scores.cross_validation import CrossValidation
from noisescale.studies.recommend.optimizer import caveat

LITTLE, MORE = 0.05, 0.2  # of the least loss, which a balanced size and an extreme one may cost


def advise_on_front(
    table: pd.DataFrame,
    fits: dict[float, CriticalBatchFit],
    rates: pd.DataFrame,
    laws: dict[float, list[LearningRateLaw]],
    predicted: pd.DataFrame,
    *,
    population_size: int | None = None,
    optimizer: str = "sgd",
    kind: OptimizerKind | None = None,
) -> Advice:
    """The advice from runs to a goal at tuned rates: to the lowest one that resolves B_crit.

    Where none does, B_crit is what the noise scale along the runs says of it.

    Args:
        table: the rows of steps_to_goal.csv.
        fits: by goal.
        rates: the rows of learning_rates.csv.
        laws: of the best learning rates by goal, the best first.
        predicted: the rows of predicted.csv; none where the noise was not measured.
        population_size: the training examples; None: not known.
        optimizer: of the runs.
        kind: of that optimizer; None: not known.
    """
    resolved = [goal for goal, fit in fits.items() if fit.resolved]
    goal = min(resolved, default=min(fits)) if fits else math.nan
    simple = _by_noise(predicted, goal, kind)
    if not resolved:
        advice = _by_noise_alone(goal, simple, rates, laws, fits, population_size)
        said = None if simple is None else caveat(optimizer, in_geometry=False)
        return replace(advice, worth=(*filter(None, [said]), *advice.worth))
    critical = fits[goal].critical_batch_size
    to_goal = "" if math.isnan(goal) else f" to a loss of {goal:g}"
    tuned, rate = _rates(goal, rates, laws)
    reached = of_goal(table, goal)
    sizes = sorted(reached[reached["censored"] == 0]["batch_size"].unique().tolist())
    worth = [_compared(critical, simple)] if simple is not None else []
    if optimizer != "sgd":
        worth.append(f"Runs of {optimizer} at one β₂ and decay, which the rates are for.")
    if tuned:
        worth.append(
            f"Rates: tuned at B = {tuned[0]:,.0f} to {tuned[-1]:,.0f}; the best one of each size "
            "tried is in the tables."
        )
    return Advice(
        heading=(
            f"B_crit ≈ {number_text(critical.value)} ({interval_text(critical)}), by the steps of "
            f"runs{to_goal}:"
        ),
        sizes=aimed_sizes(critical, population_size=population_size, rate=rate, measured_at=sizes),
        worth=tuple(worth),
    )


def _by_noise_alone(
    goal: float,
    simple: Estimate | None,
    rates: pd.DataFrame,
    laws: dict[float, list[LearningRateLaw]],
    fits: dict[float, CriticalBatchFit],
    population_size: int | None,
) -> Advice:
    """Where no front resolves B_crit: what the noise scale says of it, or nothing."""
    why = next((fit.reason for fit in reversed(fits.values()) if fit.reason), "no run was made")
    if simple is None:
        return Advice(
            heading="B_crit by the steps of runs:",
            reason=f"{why}; give more batch sizes on either side, more seeds or a higher goal",
        )
    tuned, rate = _rates(goal, rates, laws)
    return Advice(
        heading=(
            f"B_crit ≈ {number_text(simple.value)} ({interval_text(simple)}), by the noise scale "
            "along runs:"
        ),
        sizes=aimed_sizes(simple, population_size=population_size, rate=rate, measured_at=tuned),
        worth=(f"Believe the noise scale, for the runs' own fit is not resolved: {why}.",),
    )


def _by_noise(predicted: pd.DataFrame, goal: float, kind: OptimizerKind | None) -> Estimate | None:
    """B_crit by B_simple along the runs to a goal, each at the best rate of those tried."""
    rows = predicted[(predicted["quantity"] == "simple") & (predicted["goal"] == goal)]
    if rows.empty:
        return None
    row = rows.iloc[0].to_dict()
    simple = estimate_of(row, "by_progress")
    if not simple.value > 0:
        return None
    facts = RunFacts(
        batch_size=row.get("batch_size"),
        rate_over_best=1.0,
        optimizer=kind,
    )
    return critical_batch_size(simple, facts, quantity="simple", geometry="plain")


def _compared(critical: Estimate, simple: Estimate) -> str:
    """Whether runs and noise scale agree and, where not, which to believe."""
    says = f"{number_text(simple.value)} ({interval_text(simple)})"
    if not differ(critical, simple):
        return f"The noise scale along these runs says {says}, which agrees."
    return f"The noise scale says {says}: believe the runs, whose steps were counted."


def _rates(
    goal: float, rates: pd.DataFrame, laws: dict[float, list[LearningRateLaw]]
) -> tuple[list[float], Any]:
    """The batch sizes that have a best rate for a goal, and the rate at any; None without."""
    rows = of_goal(rates, goal)
    rows = rows[rows["learning_rate"].notna()].sort_values("batch_size")
    sizes = rows["batch_size"].astype(float).tolist()
    if not sizes:
        return [], None
    law = next(iter(laws.get(goal, [])), None)
    return sizes, rate_between(sizes, rows["learning_rate"].tolist(), law)


def advise_on_map(
    cells: pd.DataFrame,
    *,
    horizon: str,
    equal_steps: bool,
    num_examples: int,
    folds: Mapping[Any, CrossValidation] | None = None,
    score: str = "loss",
) -> Advice:
    """The advice from a map of runs of one length: the best rate of each size, and their losses.

    After equal examples the least loss goes with the fewest examples, and the largest size that is
    not much worse with the fewest steps; after equal steps it is the other way round.

    Args:
        cells: the rows of cells.csv.
        horizon: what the runs' length is called: "1 epoch".
        equal_steps: whether that is a number of steps.
        num_examples: in the training set, which "full" stands for.
        folds: of a sweep with folds, by batch size, what they choose: the score of the examples
            held out then stands in the place of the runs' own losses.
        score: what that is called, "error" or "loss".
    """
    if folds is None:
        best = _best_cells(cells, num_examples)
        heading = f"By the loss after {horizon}, at the best rate tried for each batch size:"
    else:
        best = _chosen_by_folds(folds, num_examples)
        heading = f"By the held-out {score} after {horizon}, at the rates that folds choose:"
    untrained = None
    if folds is not None and best.empty:
        untrained = "there is no rate at which all folds trained"
    elif folds is None and (best.empty or not best["loss"].min() > 0):
        untrained = "no run that trains to a loss above 0 was made"
    if untrained is not None:
        return Advice(heading=heading, reason=f"{untrained}; give lower learning rates")
    least = best["loss"].min()
    kept = {
        share: best[best["loss"] <= (1 + share) * least]["batch_size"] for share in (LITTLE, MORE)
    }
    top = int(best.sort_values("loss")["batch_size"].iloc[0])
    farther = "min" if equal_steps else "max"
    chosen = [top, *(int(getattr(kept[share], farther)()) for share in (LITTLE, MORE))]
    if equal_steps:
        chosen.reverse()
    sizes = best["batch_size"].tolist()
    rates = dict(zip(sizes, best["learning_rate"].tolist(), strict=True))
    losses = dict(zip(sizes, best["loss"].tolist(), strict=True))
    aimed = []
    for aim, size in zip(AIMS, chosen, strict=True):
        place = sizes.index(size)
        is_end = place in (0, len(sizes) - 1)
        aimed.append(
            AimedSize(
                aim=aim,
                batch_size=size,
                low=sizes[max(place - 1, 0)],
                high=sizes[min(place + 1, len(sizes) - 1)],
                learning_rate=rates[size],
                worth=f"{score} {losses[size]:.3g}{', an end' if is_end else ''}",
            )
        )
    worth = [f"{score.capitalize()} 5 % above the least is balanced, 20 % the end."]
    ends = [size for size in (sizes[0], sizes[-1]) if size in chosen and 1 < size < num_examples]
    if ends:
        listed = " and ".join(f"{size:,}" for size in dict.fromkeys(ends))
        worth.append(f"No size was tried beyond {listed}, where another may do better (--bs).")
    return Advice(
        heading=heading,
        sizes=tuple(aimed),
        worth=tuple(worth),
        ends="next tried",
    )


def _chosen_by_folds(folds: Mapping[Any, CrossValidation], num_examples: int) -> pd.DataFrame:
    """Of each batch size the rate that folds choose, and its mean held-out score."""
    rows = []
    for size, found in folds.items():
        score = found.scores[found.rates.index(found.chosen)].value
        number = num_examples if isinstance(size, str) else size
        rows.append({"batch_size": number, "learning_rate": found.chosen, "loss": score})
    return pd.DataFrame(rows, columns=["batch_size", "learning_rate", "loss"])


def _best_cells(cells: pd.DataFrame, num_examples: int) -> pd.DataFrame:
    """Of each batch size the rate with the least mean loss, of those at which no seed diverged."""
    finished = cells[cells["error"] == ""].copy()
    finished["batch_size"] = [
        num_examples if size == "full" else int(size) for size in finished["batch_size"]
    ]
    rows = []
    for size, of_size in finished.groupby("batch_size"):
        trains = [
            (float(runs["final_loss"].mean()), rate)
            for rate, runs in of_size.groupby("learning_rate")
            if (runs["label"] != "diverged").all()
            and runs["final_loss"].mean() < runs["start_loss"].mean()
        ]
        if trains:
            loss, rate = min(trains)
            rows.append({"batch_size": size, "learning_rate": rate, "loss": loss})
    return pd.DataFrame(rows, columns=["batch_size", "learning_rate", "loss"])
