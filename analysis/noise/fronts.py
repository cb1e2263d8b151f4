"""Does one run's noise scale tell B_crit of a task not seen? Fronts, models and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, get_args

import numpy as np
import pandas as pd

from analysis.noise.critical_batch import branch_rows
from analysis.tables import Committed, Runs, analysis
from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.advice import rate_between
from noisescale.statistics.critical_batch.branches import BRANCH_COLUMNS
from noisescale.statistics.critical_batch.calibration.model import Scale
from noisescale.statistics.critical_batch.calibration.shipped import (
    FRONTS,
    Geometry,
    OptimizerKind,
)
from noisescale.statistics.critical_batch.calibration.tasks import (
    FEWEST_TASKS,
    TaskModel,
    coverage,
    is_near,
    leave_one_task_out,
    usable_regressors,
)
from noisescale.statistics.critical_batch.curves.steps_to_goal import smoothed_losses, steps_to_goal
from noisescale.statistics.critical_batch.goal_table import (
    best_rates,
    fit_goals,
    fit_laws,
    fits_table,
    of_goal,
)
from noisescale.statistics.critical_batch.progress import course_of, up_to
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.statistics.estimate import CONFIDENCE, estimate_of, estimate_row, from_samples
from noisescale.training.records.tables import BRANCHES, STEPS_TO_GOAL, read_losses, read_noise

FRONT, BESIDE = "front", "beside"  # the folders of a task
MEASURED = ("steps_to_goal", "beside", "branch_losses")  # what the other tables are made of
ROW = ["task", "goal", "quantity", "geometry", "batch_size"]
CRITICAL = [f"critical_batch_size{end}" for end in ("", "_low", "_high")]
OF_CURVES = ["held_out_error", "exponent", "exponent_held_out_error"]
VERSION = 2  # of the calibration; 1 is that of one task
LEVEL = 0.9  # of the intervals whose coverage is the primary statistic
# what a run knows: everything, with its rate known by a search, by its own start or not; and what
# the commands know, recommend, which measures no curvature, and critical-batch, of its fastest runs
KINDS = ("momentum", "adaptive")
OF_RUN = ("log_batch", "negative_curvature", "log_loss", *KINDS)
MODELS = {
    "search": ("log_rate", *OF_RUN),
    "recommend": ("log_rate", "log_batch", "log_loss", *KINDS),
    "critical-batch": ("log_rate", "log_batch", *KINDS),
    "one run": ("log_decrease", *OF_RUN),
    "no rate": OF_RUN,
    "no rate, no curvature": ("log_batch", "log_loss", *KINDS),
    "constant": (),
}
TWO_BATCH = "two-batch estimator"
OF_TWO_BATCH = ("search", "constant")  # models that are fitted to it as well
CLOSED_FORM = ("quadratic", "regression")  # how the names of such tasks begin


def beside_table(runs: Runs) -> pd.DataFrame:
    """A row per run beside a front, goal that it reached, noise scale and geometry.

    noise_scale: 𝓑 averaged by progress up to the goal. two_batch: what the two-batch estimator
    comes to along the run, the mean of tr Σ over that of |G|². geometry: "plain", or of adaptive
    optimizers "optimizer" besides.
    units_per_example: tokens, and sign: B_ℓ1 averaged by progress, of language models alone.
    """
    rows = []
    for folder, record in runs:
        if folder.parent.name != BESIDE:
            continue
        losses, noise = read_losses(folder), pd.DataFrame(read_noise(folder))
        smoothed = smoothed_losses(losses["step"].to_numpy(), losses["loss"].to_numpy())
        task = folder.parent.parent
        for goal in pd.read_csv(task / FRONT / STEPS_TO_GOAL)["goal"].unique().tolist():
            steps = steps_to_goal(*smoothed, goal)
            if steps is None:
                continue
            until = up_to(noise, steps)
            row = {"task": task.name, "goal": goal, "learning_rate": record["learning_rate"]}
            row |= {"seed": record["seed"], "two_batch": _two_batch(until), "sign": _sign(until)}
            row["units_per_example"] = record.get("context") or math.nan  # tokens of a sequence
            rows += [row | found for found in _found(until, record)]
    return pd.DataFrame(rows).sort_values([*ROW, "learning_rate", "seed"], ignore_index=True)


def _found(until: pd.DataFrame, record: dict[str, Any]) -> list[dict[str, Any]]:
    """What each noise scale that is resolved along a run says, in either geometry."""
    kind = kind_of(record)
    rows = []
    for geometry in get_args(Geometry) if kind == "adaptive" else get_args(Geometry)[:1]:
        for quantity in get_args(Scale):
            try:
                found = recommend(
                    until,
                    quantity=quantity,
                    learning_rate=record["learning_rate"] if kind == "sgd" else None,
                    geometry=geometry,
                    optimizer=kind,
                )
            except MeasurementError:  # too early, or without B_noise
                continue
            facts = {
                name: math.nan if value is None else value
                for name, value in vars(found.facts).items()
                if name != "rate_over_best"  # which the front says
            }
            row = {"quantity": quantity, "geometry": geometry, **facts}
            rows.append(row | {"noise_scale": found.by_progress.value})
    return rows


def kind_of(record: dict[str, Any]) -> OptimizerKind:
    """Of which kind a run's optimizer is."""
    if record["optimizer"] != "sgd":
        return "adaptive"
    return "momentum" if record["momentum"] else "sgd"


def _sign(until: pd.DataFrame) -> float:
    """B_ℓ1 averaged by progress; nan where it was not measured."""
    known = until[until["sign_simple"] > 0]
    if len(known) < 2:
        return math.nan
    return course_of(known, 1 / known["sign_simple"].to_numpy()).critical_batch_size


def _two_batch(until: pd.DataFrame) -> float:
    """The mean of tr Σ over that of |G|², over the steps; nan where that is not above zero."""
    steps = until["step"].to_numpy(dtype=float)
    variance, square = (
        float(np.trapezoid(until[name].to_numpy(dtype=float), steps))
        for name in ("gradient_variance", "squared_gradient_norm")
    )
    return variance / square if square > 0 else math.nan


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from, and the table that comes with the package."""
    fronts = sorted(
        {
            front
            for folder, _ in runs
            for front in folder.parents
            if front.name == FRONT and (front / STEPS_TO_GOAL).exists()
        }
    )
    steps = pd.concat(
        pd.read_csv(front / STEPS_TO_GOAL).assign(task=front.parent.name) for front in fronts
    )
    measured = {
        "steps_to_goal": steps[["task", *(name for name in steps if name != "task")]],
        "beside": beside_table(runs),
        "branch_losses": branch_losses_table(runs),
    }
    return measured | derived(measured)


def branch_losses_table(runs: Runs) -> pd.DataFrame:
    """A row per branch from a run beside a front, where that reached a goal."""
    folders = {parent for folder, _ in runs for parent in folder.parents}
    tables = [
        pd.read_csv(folder / BRANCHES).assign(
            task=folder.parent.parent.name, goal=float(folder.name.removeprefix("goal"))
        )
        for folder in sorted(folders)
        if (folder / BRANCHES).exists()
    ]
    columns = ["task", "goal", *BRANCH_COLUMNS]
    return pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)


def derived(measured: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """What is made of the measurements."""
    fits, predictions = [], []
    for task, table in measured["steps_to_goal"].groupby("task", sort=False):
        steps = table.drop(columns="task").reset_index(drop=True)
        found = fits_table(fit_goals(steps))
        fits.append(found.assign(task=task))
        beside = measured["beside"][measured["beside"]["task"] == task]
        predictions += _with_front(beside, steps, found)
    all_fits = pd.concat(fits)
    rows = pd.concat(predictions, ignore_index=True) if predictions else measured["beside"][:0]
    made = {
        "fits": all_fits[["task", *(name for name in all_fits if name != "task")]],
        "predictions": rows,
    }
    if len(measured["branch_losses"]):
        made["branches"] = branches_table(measured["branch_losses"], made["fits"])
    if rows["units_per_example"].notna().any():
        made["language"] = language_table(made["fits"], rows)
        tasks = made["language"]["task"].unique().tolist()
        made["growth"] = growth_table(measured["steps_to_goal"], tasks)
    if rows["task"].nunique() >= FEWEST_TASKS:
        made |= {
            "coverage": coverage_table(rows),
            "intervals": intervals_table(rows),
            "models": models_table(rows),
        }
    return made


def _with_front(
    beside: pd.DataFrame, steps: pd.DataFrame, fits: pd.DataFrame
) -> list[pd.DataFrame]:
    """A task's rows of each goal that resolves B_crit, with that and the rate over the best one."""
    rates = best_rates(steps)
    rows: list[pd.DataFrame] = []
    for goal, fit in fits.set_index("goal").iterrows():
        own = beside[beside["goal"] == goal]
        best = of_goal(rates, float(str(goal))).dropna(subset="learning_rate")
        if not fit["resolved"] or best.empty or own.empty:
            continue
        best = best.sort_values("batch_size")
        law = next(iter(fit_laws(rates, float(str(goal)))), None)
        rate = rate_between(
            best["batch_size"].astype(float).tolist(), best["learning_rate"].tolist(), law
        )
        at_sizes = np.array([rate(round(size)) for size in own["batch_size"]])
        over = own["learning_rate"] / at_sizes
        rows.append(own.assign(rate_over_best=over, **{name: fit[name] for name in CRITICAL}))
    return rows


def language_table(fits: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """A row per language model and loss: B_crit in sequences and tokens, and scales beside it.

    plain, optimizer, sign: B_simple, B^P_simple and B_ℓ1 averaged by progress, geometric means over
    the runs within a factor of two of the best rate; ratio_plain, ratio_optimizer, ratio_sign:
    B_crit over them. The fit has the curve with a free exponent and the errors of both on batch
    sizes left out.
    """
    rows = predictions[predictions["units_per_example"].notna()]
    rows = rows[(rows["quantity"] == "simple") & rows["rate_over_best"].between(0.5, 2)]
    means = rows.assign(log=np.log(rows["noise_scale"])).pivot_table(
        index=["task", "goal"], columns="geometry", values="log"
    )
    scales = means.reindex(columns=list(get_args(Geometry))).map(math.exp)
    of_runs = rows[rows["geometry"] == "plain"].groupby(["task", "goal"])["sign"]
    scales["sign"] = of_runs.agg(lambda values: math.exp(np.log(values).mean()))
    units = rows.groupby(["task", "goal"])["units_per_example"].first()
    shown = fits.set_index(["task", "goal"])[[*CRITICAL, *OF_CURVES]]
    table = shown.join(units, how="inner").join(scales)
    for end in CRITICAL:
        table[f"{end}_tokens"] = table[end] * table["units_per_example"]
    for name in scales:
        table[f"ratio_{name}"] = table["critical_batch_size"] / table[name]
    return table.reset_index()


def branches_table(losses: pd.DataFrame, fits: pd.DataFrame) -> pd.DataFrame:
    """A row per task, goal and tolerance: the critical size by branches, beside the front's."""
    rows = []
    for (task, goal), own in losses.groupby(["task", "goal"], sort=False):
        fit = fits[(fits["task"] == task) & (fits["goal"] == goal)].iloc[0]
        of_goal = estimate_of(fit.to_dict(), "critical_batch_size", num_samples=len(own))
        rows += [{"task": task, "goal": goal, **row} for row in branch_rows(own, of_goal)]
    return pd.DataFrame(rows)


def growth_table(steps: pd.DataFrame, tasks: Iterable[str]) -> pd.DataFrame:
    """A row per language model: the exponent a of B_crit ∝ D^a over its goals.

    D is the examples seen where B = B_crit, which is 2·E_min. The goals of a task share their runs:
    the error is the jackknife's over the seeds.
    """
    rows = []
    for task in tasks:
        own = steps[steps["task"] == task].drop(columns="task").reset_index(drop=True)
        seeds = own["seed"].unique()
        whole = _exponent(own)
        without = np.array([_exponent(own[own["seed"] != seed]) for seed in seeds])
        # pseudo-values, whose mean and spread are the jackknife's
        found = from_samples(len(seeds) * whole - (len(seeds) - 1) * without)
        rows.append({"task": task, **estimate_row("exponent", found), "num_seeds": len(seeds)})
    return pd.DataFrame(rows)


def _exponent(steps: pd.DataFrame) -> float:
    """The slope of log B_crit against log D; nan of fewer than two goals that resolve it."""
    fits = fits_table(fit_goals(steps))
    fits = fits[fits["resolved"]]
    if len(fits) < 2:
        return math.nan
    logs = np.log(fits[["min_examples", "critical_batch_size"]].to_numpy(dtype=float))
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def coverage_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """A row per model, noise scale, geometry and tasks: how often and how far intervals reach.

    coverage: of 90 % intervals, by models that have not seen the task, with its error over tasks;
    coverage_95 likewise of 95 %. factor: to which those of 90 % reach either way, the median;
    factor_near: of SGD within a factor of two of the best rate. off: the factor by which the
    prediction itself is off, the median of either way. terms: of the model, those that enough tasks
    have; a model that has the terms of one before it is left out. tasks: "all" of those that have
    the scale, "sgd", "momentum" or "adaptive" ones of them, or those "no closed form" is known of.

    The two-batch estimator has models of its own, fitted and held out alike, which tell what of
    the gain is the calibration's. The last rows are peers' practice, the two-batch estimator read
    as B_crit, which has no interval, and 𝓑 itself so read.
    """
    rows = []
    for what, group, usable in _models(predictions):
        found = leave_one_task_out(group, usable, level=LEVEL)
        wider = leave_one_task_out(group, usable, level=CONFIDENCE)
        terms = " ".join(usable)
        for tasks, chosen in _parts(found).items():
            if chosen.any():
                of_part = _coverage_row(found[chosen], wider[chosen])
                rows.append({**what, "tasks": tasks, "terms": terms, **of_part})
    for (quantity, geometry), group in predictions.groupby(["quantity", "geometry"]):
        for read in ("noise_scale", "two_batch"):
            if read == "two_batch" and (quantity, geometry) != ("simple", "plain"):
                continue
            scale = TWO_BATCH if read == "two_batch" else quantity
            for tasks, chosen in _parts(group).items():
                own = group[chosen]
                if own.empty or (geometry == "optimizer" and tasks != "adaptive"):
                    continue
                rows.append(
                    {
                        **{"model": "as it is", "quantity": scale, "geometry": geometry},
                        **{"tasks": tasks, "num_tasks": own["task"].nunique()},
                        **{"num_rows": len(own), "off": _off(own, read)},
                        **{"off_near": _off(own[is_near(own)], read)},
                    }
                )
    return pd.DataFrame(rows)


def _parts(rows: pd.DataFrame) -> dict[str, pd.Series[bool]]:
    """Which rows are of which tasks."""
    kinds = {kind: rows["optimizer"] == kind for kind in get_args(OptimizerKind)}
    everything = pd.Series(True, rows.index)
    return {"all": everything, **kinds, "no closed form": ~rows["task"].str.startswith(CLOSED_FORM)}


def _coverage_row(found: pd.DataFrame, wider: pd.DataFrame) -> dict[str, Any]:
    near = found[is_near(found)]
    return {
        **estimate_row("coverage", coverage(found)),
        **{"coverage_95": coverage(wider).value, "num_tasks": found["task"].nunique()},
        **{"num_rows": len(found), "factor": _reach(found), "factor_near": _reach(near)},
        **{"off": _off(found, "predicted"), "off_near": _off(near, "predicted")},
    }


Fitted = tuple[dict[str, Any], pd.DataFrame, list[str]]


def _models(predictions: pd.DataFrame) -> Iterator[Fitted]:
    """What each model is called and of, its rows, and those regressors that enough tasks have."""
    for (quantity, geometry), group in predictions.groupby(["quantity", "geometry"]):
        what = {"quantity": quantity, "geometry": geometry}
        seen: list[list[str]] = []
        for name, names in MODELS.items():
            usable = usable_regressors(group, names)
            if usable is None or usable in seen:
                continue
            seen.append(usable)
            yield {"model": name, **what}, group, usable
    plain = _plain(predictions)
    known = plain[plain["two_batch"] > 0]
    for name in OF_TWO_BATCH:
        usable = usable_regressors(known, MODELS[name])
        if usable is not None:
            what = {"model": name, "quantity": TWO_BATCH, "geometry": "plain"}
            yield what, known.assign(noise_scale=known["two_batch"]), usable


def _plain(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows of the plain B_simple."""
    is_plain = (predictions["quantity"] == "simple") & (predictions["geometry"] == "plain")
    return predictions[is_plain]


def _reach(found: pd.DataFrame) -> float:
    return float((found["high"] / found["predicted"]).median())


def _off(rows: pd.DataFrame, column: str) -> float:
    """The median factor between a column and B_crit, 1 or above; nan without rows."""
    logs = (rows[column] / rows["critical_batch_size"]).map(math.log)
    return math.exp(logs.abs().median())


def intervals_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """What the figure shows: B_crit by the plain B_simple, with a search, each task left out."""
    rows = _plain(predictions)
    found = leave_one_task_out(rows, usable_regressors(rows, MODELS["search"]) or [], level=LEVEL)
    shown = ["task", "goal", "optimizer", "batch_size", "learning_rate", "seed", "rate_over_best"]
    return found[[*shown, "two_batch", *CRITICAL, "predicted", "low", "high", "covered"]]


def models_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """A row per model, noise scale, geometry and term: its coefficient and standard error."""
    rows = []
    for what, group, usable in _models(predictions):
        model = TaskModel.fitted(group, usable)
        beside = {"between": model.between, "within": model.within}
        beside |= {"spread": model.spread, "num_tasks": model.num_tasks}
        for term, value, error in zip(
            ("offset", *model.names), model.coefficients, model.errors, strict=True
        ):
            rows.append({**what, "term": term, "coefficient": value, "stderr": error} | beside)
    return pd.DataFrame(rows)


def again(committed: Committed) -> dict[str, pd.DataFrame]:
    """What is made of the committed measurements, by the fits and models as they are now."""
    measured = {name: committed(name) for name in MEASURED}
    return derived(
        {
            name: table.assign(batch_size=pd.to_numeric(table["batch_size"]))
            for name, table in measured.items()
        }
    )


fronts = analysis(
    "fronts",
    tables,
    help="Tables of the fronts of many tasks, and the calibration that comes with the package; "
    "without RUNS, from the committed measurements.",
    reuses="steps_to_goal",
    again=again,
    parts=("task", MEASURED),
    ships={"predictions": FRONTS},
    version=VERSION,
)
