"""Tables of runs to goals: read and checked, the fastest runs, and what is fitted to those."""

from __future__ import annotations

import io
import math
import sys
import warnings
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from noisescale.errors import SettingError, check_file
from noisescale.statistics.critical_batch.curves.runs import FEWEST_SIZES, few_sizes
from noisescale.statistics.critical_batch.fit import (
    CriticalBatchFit,
    fit_critical_batch,
    unresolved,
)
from noisescale.statistics.critical_batch.learning_rate_law import (
    LearningRateLaw,
    best_rate,
    fit_learning_rate_laws,
)
from noisescale.statistics.estimate import student_t

COLUMNS = ("goal", "batch_size", "learning_rate", "seed", "steps", "censored", "diverged")
REQUIRED = ("batch_size", "steps")
STDIN = Path("-")
LARGEST_FILE = 2**28  # bytes of a table: millions of runs
RUN = ["batch_size", "learning_rate", "seed"]  # what one run is known by
SMALLEST, LARGEST = 1e-9, 1e18  # batch size or steps: products of two stay finite
RISE = 1.1  # times the steps of a smaller batch size, more than interpolation explains


def read_goal_table(path: Path) -> pd.DataFrame:
    """A table of runs, anybody's, as the columns goal to diverged.

    Its columns `batch_size` and `steps` must be there. `goal` (nan where there is one goal alone),
    `learning_rate`, `seed`, `censored` (1: the goal was not reached in these steps) and
    `diverged` may be. A row is a run and goal. SettingError, with the row, for anything that cannot
    be.
    """
    text = _text(path)
    _check_header(text, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", pd.errors.ParserWarning
            )  # rows with more fields than the header
            table = pd.read_csv(
                io.StringIO(text), comment="#", skipinitialspace=True, index_col=False
            )
    except (ValueError, pd.errors.ParserWarning) as error:  # pandas' errors are ValueErrors
        raise SettingError(f"{path} cannot be read as CSV: {error}") from error
    missing = [name for name in REQUIRED if name not in table]
    if missing:
        raise SettingError(
            f"{path} has no column {' and no column '.join(missing)}; its columns are "
            f"{', '.join(map(str, table.columns))}. It takes batch_size and steps, and may have "
            f"{', '.join(name for name in COLUMNS if name not in REQUIRED)}"
        )
    if table.empty:
        raise SettingError(f"{path} has no rows: give one for each run and goal")
    defaults = {
        "goal": math.nan,
        "learning_rate": math.nan,
        "seed": 0,
        "censored": 0,
        "diverged": 0,
    }
    runs = pd.DataFrame(
        {name: table.get(name, defaults.get(name)) for name in COLUMNS}, index=table.index
    )
    runs = pd.DataFrame({name: _numbers(runs[name], path) for name in COLUMNS})
    if runs["goal"].isna().any() and runs["goal"].notna().any():
        raise SettingError(
            f"{path}, {_row(runs['goal'].isna())}: no goal, though other rows have one; give it to "
            "each row"
        )
    check_goal_table(runs, name=str(path))
    if ((runs["diverged"] == 1) & (runs["censored"] == 1)).all():
        raise SettingError(
            f"{path}: every run diverged before its goal, so that there is nothing to fit; give "
            "runs at smaller learning rates"
        )
    return runs


def _text(path: Path) -> str:
    """What a file holds, or stdin for "-"; SettingError where it is no text, or too much of it.

    A pipe that the shell made, as by <(command), is read like a file; a device is not.
    """
    is_pipe = path == STDIN or path.is_relative_to("/dev/fd")
    try:
        if not is_pipe:
            check_file(path, SettingError)
        with nullcontext(sys.stdin.buffer) if path == STDIN else path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise SettingError(f"{path} cannot be read as CSV: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise SettingError(f"{path} has more than {LARGEST_FILE:,} bytes: give a table of runs")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} cannot be read as CSV: it is not UTF-8 ({error})") from error


def _check_header(text: str, path: Path) -> None:
    """SettingError for two columns of one name, of which pandas would take the first alone."""
    lines = (line for line in text.splitlines() if line.split("#")[0].strip())
    names = [name.strip().strip('"') for name in next(lines, "").split("#")[0].split(",")]
    if repeated := [name for name in dict.fromkeys(names) if name and names.count(name) > 1]:
        raise SettingError(
            f"{path} has more than one column {', '.join(repeated)}: leave one of each"
        )


def _numbers(column: pd.Series[Any], path: Path) -> pd.Series[Any]:
    """The column as numbers; SettingError, with the row, for what its name does not allow."""
    name = str(column.name)
    words = column.astype(str).str.strip().str.lower()
    values = column.mask(words.isin(["true", "yes"]), 1).mask(words.isin(["false", "no"]), 0)
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = numbers.isna() & column.notna()
    allowed = "a number"
    if name in ("censored", "diverged"):
        wrong |= ~numbers.isin([0, 1])
        allowed = "0 or 1"
    elif name in REQUIRED:
        wrong |= ~((numbers >= SMALLEST) & (numbers <= LARGEST))
        allowed = "a number above 0"
    elif name == "learning_rate":
        wrong |= numbers.notna() & ~((numbers > 0) & np.isfinite(numbers))
        allowed = "a number above 0, or leave it empty"
    else:
        wrong |= np.isinf(numbers)
    if wrong.any():
        raise SettingError(
            f"{path}, {_row(wrong)}: {name} is {column[wrong].iloc[0]}; give {allowed}"
        )
    return numbers


def check_goal_table(table: pd.DataFrame, *, name: str) -> None:
    """SettingError for too few batch sizes, repeated rows, or a lower goal reached earlier."""
    keys = ["goal", *RUN]
    repeated = table.duplicated(keys)
    if repeated.any():
        raise SettingError(
            f"{name}, {_row(repeated)}: goal, batch size, learning rate and seed are those of an "
            "earlier row; number the seeds in a column seed, or leave one of the rows out"
        )
    sizes = np.sort(table["batch_size"].unique())
    for _, rows in table[table["goal"].notna()].groupby(RUN, dropna=False):
        ordered = rows.sort_values("goal", ascending=False)
        for (_, higher), (index, lower) in pairwise(ordered.iterrows()):
            if lower["censored"] == 0 and lower["steps"] < higher["steps"]:
                raise SettingError(
                    f"{name}, row {int(str(index)) + 1}: one run reaches the goal "
                    f"{lower['goal']:g} after {lower['steps']:g} steps and {higher['goal']:g} only "
                    f"after {higher['steps']:g} or more; give the steps of the same run's first "
                    "passage of each, losses that are to fall"
                )
    if len(sizes) < FEWEST_SIZES:
        raise SettingError(f"{name}: {few_sizes(sizes)}")


def fastest_runs(table: pd.DataFrame) -> pd.DataFrame:
    """Of each goal and batch size the runs of all seeds at the learning rate with the fewest steps.

    One rate for all seeds, by the geometric mean of their steps, among the rates that most seeds
    have tried: each seed's own fastest run would be a lucky one, the more so the smaller the batch.
    Where at no rate all seeds reach the goal, it is the one at which most do, and the others' steps
    are bounds; where none does, the one tried for longest. A run that diverged before the goal
    counts against its rate, and bounds nothing.
    """
    cell = ["goal", "batch_size"]
    runs = table.assign(
        cell=table.groupby(cell, dropna=False).ngroup(),
        rate=table.groupby([*cell, "learning_rate"], dropna=False).ngroup(),
        log_steps=np.log(table["steps"].where(table["censored"] == 0)),  # nan: not reached
        bound=table["steps"].where(table["diverged"] == 0, 0.0),
    )
    rates = runs.groupby("rate").agg(
        cell=("cell", "first"),
        num_runs=("cell", "size"),
        reached=("log_steps", "count"),
        log_steps=("log_steps", "mean"),
        longest=("bound", "max"),
    )
    tried = rates[rates["num_runs"] == rates.groupby("cell")["num_runs"].transform("max")]
    # the rates that reach the goal, the faster the better, come before those that do not
    ranked = tried.assign(second=tried["log_steps"].fillna(-tried["longest"])).sort_values(
        ["reached", "second"], ascending=[False, True], kind="stable"
    )
    best = ranked.groupby("cell").head(1).index
    counts = (table["diverged"] == 0) | (table["censored"] == 0)
    return table[runs["rate"].isin(best) & counts].sort_index()


def goals_of(table: pd.DataFrame) -> list[float]:
    """The goals of a table, the highest first."""
    return sorted(table["goal"].unique().tolist(), reverse=True)


def of_goal(table: pd.DataFrame, goal: float) -> pd.DataFrame:
    """The rows of a goal, which is nan where a table has one alone."""
    return table[table["goal"].isna() if math.isnan(goal) else table["goal"] == goal]


def fit_goals(table: pd.DataFrame) -> dict[float, CriticalBatchFit]:
    """The fit for each goal, descending; one that has fewer than four batch sizes is unresolved."""
    fastest = fastest_runs(table)
    fits = {}
    for goal in goals_of(table):
        rows = of_goal(fastest, goal)
        num_sizes = rows["batch_size"].nunique()
        if num_sizes < FEWEST_SIZES:
            reason = (
                f"{num_sizes} batch sizes have runs that did not diverge, and it takes "
                f"{FEWEST_SIZES}"
            )
            fits[goal] = unresolved(reason, num_batch_sizes=num_sizes, num_censored=0)
            continue
        fits[goal] = fit_critical_batch(
            rows["batch_size"].to_numpy(),
            rows["steps"].to_numpy(),
            seeds=rows["seed"].to_numpy(),
            censored=rows["censored"].to_numpy() == 1,
        )
    return fits


def rises(fastest: pd.DataFrame, goal: float) -> list[tuple[float, float, float]]:
    """Neighbouring batch sizes from which to which steps rise, and by what factor.

    fastest: the runs of `fastest_runs`.
    """
    rows = of_goal(fastest, goal)
    rows = rows[rows["censored"] == 0]
    means = np.log(rows["steps"]).groupby(rows["batch_size"]).mean()
    factors = [
        (float(small), float(large), math.exp(means[large] - means[small]))
        for small, large in pairwise(means.index)
    ]
    return [rise for rise in factors if rise[2] > RISE]


def best_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The best learning rate of each goal and batch size with its interval, see `best_rate`."""
    rows = []
    usable = table[table["learning_rate"].notna()].copy()
    usable["steps"] = usable["steps"].where(usable["censored"] == 0, math.inf)
    for (goal, size), runs in usable.groupby(["goal", "batch_size"], dropna=False):
        seeds = [
            dict(zip(of_seed["learning_rate"], of_seed["steps"], strict=True))
            for _, of_seed in runs.groupby("seed", dropna=False)  # without names they are one seed
        ]
        best = best_rate(seeds)
        rows.append(
            {
                "goal": goal,
                "batch_size": size,
                "learning_rate": best.value,
                "learning_rate_low": best.low,
                "learning_rate_high": best.high,
                "num_seeds": best.num_samples,
            }
        )
    columns = [
        "goal",
        "batch_size",
        "learning_rate",
        "learning_rate_low",
        "learning_rate_high",
        "num_seeds",
    ]
    table = pd.DataFrame(rows, columns=columns)
    return table.sort_values(["goal", "batch_size"], ascending=[False, True]).reset_index(drop=True)


def fit_laws(rates: pd.DataFrame, goal: float) -> list[LearningRateLaw]:
    """The laws of ε(B) for a goal, the best first; none where too few sizes have a best rate."""
    rows = of_goal(rates, goal)
    rows = rows[rows["learning_rate"].notna()]
    if len(rows) < 4:
        return []
    errors = [
        _log_error(low, high, num_seeds)
        for low, high, num_seeds in zip(
            rows["learning_rate_low"],
            rows["learning_rate_high"],
            rows["num_seeds"],
            strict=True,
        )
    ]
    return fit_learning_rate_laws(
        rows["batch_size"].to_numpy(), rows["learning_rate"].to_numpy(), log_errors=errors
    )


def _log_error(low: float, high: float, num_seeds: int) -> float:
    """The standard error of a best rate's log by its interval; of one seed's, uniform between."""
    if not (low > 0 and high < math.inf):
        return math.nan
    widths = 2 * student_t(num_seeds - 1) if num_seeds > 1 else math.sqrt(12)
    return math.log(high / low) / widths


def fits_table(fits: dict[float, CriticalBatchFit]) -> pd.DataFrame:
    """A row per goal: the goal, and the fit as `CriticalBatchFit.to_frame` gives it."""
    return pd.DataFrame([{"goal": goal, **fit.to_row()} for goal, fit in fits.items()])


def laws_table(laws: dict[float, list[LearningRateLaw]]) -> pd.DataFrame:
    """A row per goal and law, the best of each goal first."""
    columns = ["goal", "law", "scale", "bend", "bend_low", "bend_high", "power", "held_out_error"]
    rows = [
        {
            "goal": goal,
            "law": law.name,
            "scale": law.scale,
            "bend": law.bend,
            "bend_low": math.nan if law.batch_size is None else law.batch_size.low,
            "bend_high": math.nan if law.batch_size is None else law.batch_size.high,
            "power": law.power,
            "held_out_error": law.held_out_error,
        }
        for goal, of_goal in laws.items()
        for law in of_goal
    ]
    return pd.DataFrame(rows, columns=columns)


def fit_record(
    goal: float, fit: CriticalBatchFit, laws: list[LearningRateLaw], **more: Any
) -> dict[str, Any]:
    """An entry of fit.json, for strict JSON."""
    return {
        "goal": None if math.isnan(goal) else goal,
        **fit.to_dict(),
        "learning_rate_laws": [law.to_dict() for law in laws],
        **more,
    }


def _row(wrong: pd.Series[bool]) -> str:
    """The first row that is wrong, counted from 1 below the header."""
    return f"row {int(np.flatnonzero(wrong)[0]) + 1}"
