"""What a batch size that follows the noise saves against fixed ones, in steps and examples.

Goals are of the smoothed loss, rates those of the fewest steps by the seeds' geometric mean. Seeds
are the blocks: an error is the jackknife's over them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import interpolate, optimize, stats

from analysis.batches.intervals import holm
from analysis.tables import Committed, Runs, analysis
from noisescale.errors import MeasurementError
from noisescale.statistics.critical_batch.curves.steps_to_goal import smoothed_losses, steps_to_goal
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.statistics.estimate import Estimate, estimate_row, from_samples, from_stderr
from noisescale.training.records.tables import read_losses, read_noise

GOALS = (0.3, 0.2, 0.15)  # training loss
SETTING = ["batch_size", "exchange_rate", "lr_scaling"]
RUN = [*SETTING, "learning_rate", "seed"]


def reached_table(runs: Runs) -> pd.DataFrame:
    """A row per run and goal: steps and examples to the passage of the smoothed loss.

    predicted_gain: γ of the noise scale B_simple measured along the run, up to that passage. All
    are nan where the goal was not reached.
    """
    rows = []
    for folder, record in runs:
        losses, noise = read_losses(folder), pd.DataFrame(read_noise(folder))
        smoothed = smoothed_losses(losses["step"].to_numpy(), losses["loss"].to_numpy())
        setting = {name: record[name] for name in RUN} | {"batch_size": str(record["batch_size"])}
        for goal in GOALS:
            steps = steps_to_goal(*smoothed, goal) or np.nan
            reached = {
                "goal": goal,
                "steps": steps,
                "examples": _examples_after(steps, noise),
                "predicted_gain": _predicted_gain(noise[noise["step"] <= steps]),
            }
            rows.append(setting | reached)
    return pd.DataFrame(rows)


def _examples_after(steps: float, noise: pd.DataFrame) -> float:
    """Examples seen by then; from each row on, batches are as large as there."""
    before = noise[noise["step"] <= steps]
    if before.empty:
        return np.nan
    row = before.iloc[-1]
    since = (steps - row["step"]) * row["batch_size"]
    return float(row["epoch"] * row["population_size"] + since)


def _predicted_gain(noise: pd.DataFrame) -> float:
    """γ of the noise scale along these rows; nan where there are not two."""
    try:
        return recommend(noise, quantity="simple").course.gain
    except MeasurementError:
        return np.nan


def tuned_table(reached: pd.DataFrame) -> pd.DataFrame:
    """The rows of each setting's best rate, least in mean log steps where all seeds arrive."""
    means = (
        reached.assign(log_steps=np.log(reached["steps"]))
        .groupby(["goal", *SETTING, "learning_rate"])["log_steps"]
        .agg(lambda values: values.mean(skipna=False))
        .dropna()
        .reset_index()
    )
    best = means.loc[means.groupby(["goal", *SETTING])["log_steps"].idxmin()]
    return reached.merge(best.drop(columns="log_steps"), on=["goal", *SETTING, "learning_rate"])


def front_table(tuned: pd.DataFrame) -> pd.DataFrame:
    """A row per goal and setting: steps and examples, geometric means and their 95 % intervals."""
    rows = []
    for key, runs in tuned.groupby(["goal", *SETTING, "learning_rate"]):
        row: dict[str, Any] = dict(zip(["goal", *SETTING, "learning_rate"], key, strict=True))
        for name in ("steps", "examples"):
            logs = from_samples(np.log(runs[name]))
            ends = (logs.value, logs.low, logs.high)
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), np.exp(ends), strict=True))
        rows.append(row | {"num_seeds": len(runs)})
    return pd.DataFrame(rows)


def comparison_table(tuned: pd.DataFrame) -> pd.DataFrame:
    """A row per goal and adaptive setting: what it saves against fixed batch sizes.

    steps_saved: 1 − S/S_fixed at as many examples, S_fixed interpolated on the front of fixed ones.
    examples_saved: 1 − E/E_fixed at as many steps. Either is nan beyond the front's ends, where no
    fixed one gets there at all. cost_saved: 1 − C/C_fixed with C = E + r·S and the best fixed batch
    size for it; cost_p: two-sided, that nothing is saved, and cost_p_holm for all rows together.
    measured_gain: (S/S_min − 1)(E/E_min − 1), S_min and E_min fitted to the fixed ones.
    fixed_gain: what a fixed batch size of as many examples per step scores by the same formula, 1
    if the hyperbola held; gain_over_fixed: the ratio of the two.
    predicted_gain: γ of the run's own noise scale up to the goal. Errors by the jackknife over
    seeds, of the savings in logarithms.
    """
    rows = []
    for goal, runs in tuned.groupby("goal"):
        fixed = runs[runs["batch_size"] != "adaptive"]
        for key, adaptive in runs[runs["batch_size"] == "adaptive"].groupby(SETTING):
            row: dict[str, Any] = {"goal": goal, **dict(zip(SETTING, key, strict=True))}
            for name, logarithm in LOGARITHMS.items():
                row |= estimate_row(name, _saved(_jackknife(logarithm, fixed, adaptive)))
            row["cost_p"] = _p_value(_jackknife(_cost, fixed, adaptive))
            for name, gain in GAINS.items():
                row |= estimate_row(name, _jackknife(gain, fixed, adaptive))
            predicted = adaptive["predicted_gain"]
            rows.append(
                row | {"predicted_gain": predicted.mean(), "predicted_gain_std": predicted.std()}
            )
    return pd.DataFrame(rows).assign(cost_p_holm=lambda table: holm(table["cost_p"].tolist()))


def control_table(tuned: pd.DataFrame) -> pd.DataFrame:
    """A row per goal and fixed batch size: its γ by the formula for adaptive ones, measured alike.

    It is 1 if the fixed ones lie on their hyperbola. predicted_gain: as if the batch size had
    followed the noise scale along these runs.
    """
    rows = []
    for goal, runs in tuned.groupby("goal"):
        fixed = runs[runs["batch_size"] != "adaptive"]
        for batch_size, own in fixed.groupby("batch_size"):
            row = {"goal": goal, "batch_size": batch_size}
            predicted = {"predicted_gain": own["predicted_gain"].mean(), "num_seeds": len(own)}
            rows.append(
                row | estimate_row("measured_gain", _jackknife(_gain, fixed, own)) | predicted
            )
    return pd.DataFrame(rows)


def pooled_table(reached: pd.DataFrame) -> pd.DataFrame:
    """One test of the whole comparison: a row for both rules of the rate, and for each alone.

    cost_saved: 1 − exp of the mean of log C/C_fixed over goals and exchange rates, each as in
    `comparison_table`; its error is the jackknife's with the rates chosen anew on the seeds that
    are left. held_out_saved: rates and best fixed batch size chosen on all seeds but one and scored
    on that one, the mean over seeds with Student's t; the choice flatters neither side.
    """
    seeds = sorted(reached["seed"].unique())
    left = [reached[reached["seed"] != seed] for seed in seeds]
    rows = []
    for rule in (
        "all",
        *sorted(reached.loc[reached["batch_size"] == "adaptive", "lr_scaling"].unique()),
    ):
        without = [_mean_log_cost(runs, rule) for runs in left]
        stderr = float(np.std(without)) * np.sqrt(len(seeds) - 1)
        pooled = from_stderr(_mean_log_cost(reached, rule), stderr, num_samples=len(seeds))
        held_out = from_samples(
            [
                _mean_log_cost(runs, rule, scored=reached[reached["seed"] == seed])
                for seed, runs in zip(seeds, left, strict=True)
            ]
        )
        row: dict[str, Any] = {"rule": rule, "num_seeds": len(seeds)}
        for name, logarithm in (("cost", pooled), ("held_out", held_out)):
            row |= estimate_row(f"{name}_saved", _saved(logarithm))
            row[f"{name}_p"] = _p_value(logarithm)
        rows.append(row)
    return pd.DataFrame(rows)


def _mean_log_cost(
    reached: pd.DataFrame, rule: str, *, scored: pd.DataFrame | None = None
) -> float:
    """The mean over goals, exchange rates and rules of log C/C_fixed, rates chosen on `reached`.

    scored: the runs whose costs are compared, at the rates and the best fixed batch size of the
    others; None: the same. A setting that does not arrive among them is left out.
    """
    tuned = tuned_table(reached)
    logs = []
    for _, runs in tuned.groupby("goal"):
        fixed = runs[runs["batch_size"] != "adaptive"]
        for _, own in runs[runs["batch_size"] == "adaptive"].groupby(SETTING):
            if rule not in ("all", own["lr_scaling"].iloc[0]):
                continue
            exchange_rate = float(own["exchange_rate"].iloc[0])
            sizes = [of_size for _, of_size in fixed.groupby("batch_size")]
            best = sizes[int(np.argmin([_cost_of(of_size, exchange_rate) for of_size in sizes]))]
            if scored is not None:
                own, best = _same_setting(scored, own), _same_setting(scored, best)
            logs.append(np.log(_cost_of(own, exchange_rate) / _cost_of(best, exchange_rate)))
    return float(np.nanmean(logs))


def _same_setting(scored: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Those of `scored` at the goal, setting and rate of `runs`."""
    names = ["goal", *SETTING, "learning_rate"]
    return scored.merge(runs[names].drop_duplicates(), on=names)


def _cost_of(runs: pd.DataFrame, exchange_rate: float) -> float:
    """E + r·S."""
    steps, examples = _means(runs)
    return examples + exchange_rate * steps


def _p_value(logarithm: Estimate) -> float:
    """Two-sided, by Student's t, that it is zero; 0 where it is exactly something else."""
    if logarithm.stderr == 0:
        return float(logarithm.value == 0)
    return float(2 * stats.t.sf(abs(logarithm.value) / logarithm.stderr, logarithm.num_samples - 1))


def _jackknife(
    quantity: Callable[[pd.DataFrame, pd.DataFrame], float],
    fixed: pd.DataFrame,
    adaptive: pd.DataFrame,
) -> Estimate:
    """The quantity with the spread that leaving out one seed after another gives it."""
    seeds = sorted(adaptive["seed"].unique())
    without = [
        quantity(fixed[fixed["seed"] != seed], adaptive[adaptive["seed"] != seed]) for seed in seeds
    ]
    stderr = float(np.std(without)) * np.sqrt(len(seeds) - 1)
    return from_stderr(quantity(fixed, adaptive), stderr, num_samples=len(seeds))


def _saved(logarithm: Estimate) -> Estimate:
    """The share saved, from the logarithm of what is spent over what would have been."""
    left = float(np.exp(logarithm.value))
    low, high = 1 - np.exp(logarithm.high), 1 - np.exp(logarithm.low)
    stderr = left * logarithm.stderr
    return Estimate(
        value=1 - left,
        stderr=stderr,
        low=float(low),
        high=float(high),
        num_samples=logarithm.num_samples,
    )


def _means(runs: pd.DataFrame) -> tuple[float, float]:
    """Geometric means of steps and examples."""
    return float(np.exp(np.log(runs["steps"]).mean())), float(
        np.exp(np.log(runs["examples"]).mean())
    )


def _front(fixed: pd.DataFrame) -> np.ndarray:
    """Steps and examples (2, J) of the fixed sizes that none beats in both, by growing examples."""
    points = [_means(runs) for _, runs in fixed.groupby("batch_size")]
    kept = [
        point
        for point in points
        if not any(
            other[0] <= point[0] and other[1] <= point[1] and other != point for other in points
        )
    ]
    return np.array(sorted(kept, key=lambda point: point[1])).T


def _steps(fixed: pd.DataFrame, adaptive: pd.DataFrame) -> float:
    """Log S/S_fixed at as many examples."""
    (steps, examples), (all_steps, all_examples) = _means(adaptive), _front(fixed)
    return float(np.log(steps / _interpolated(examples, all_examples, all_steps)))


def _examples(fixed: pd.DataFrame, adaptive: pd.DataFrame) -> float:
    """Log E/E_fixed at as many steps."""
    (steps, examples), (all_steps, all_examples) = _means(adaptive), _front(fixed)[:, ::-1]
    return float(np.log(examples / _interpolated(steps, all_steps, all_examples)))


def _interpolated(x: float, along: np.ndarray, values: np.ndarray) -> float:
    """On the front, in log–log by monotone cubics, as chords lie above it; nan beyond its ends."""
    cubics = interpolate.PchipInterpolator(np.log(along), np.log(values), extrapolate=False)
    return float(np.exp(cubics(np.log(x))))


def _cost(fixed: pd.DataFrame, adaptive: pd.DataFrame) -> float:
    """Log C/C_fixed."""
    rate = adaptive["exchange_rate"].iloc[0]
    all_steps, all_examples = _front(fixed)
    return float(np.log(_cost_of(adaptive, rate) / (all_examples + rate * all_steps).min()))


def _gain(fixed: pd.DataFrame, runs: pd.DataFrame) -> float:
    """(S/S_min − 1)(E/E_min − 1) of the hyperbola of all fixed batch sizes."""
    return _product(_means(runs), _hyperbola(fixed))


def _fixed_gain(fixed: pd.DataFrame, adaptive: pd.DataFrame) -> float:
    """That of fixed ones, interpolated to the adaptive one's mean batch size; nan beyond them."""
    ends = _hyperbola(fixed)
    points = [_means(runs) for _, runs in fixed.groupby("batch_size")]
    scores = sorted(
        (examples / steps, _product((steps, examples), ends)) for steps, examples in points
    )
    sizes, gains = np.array(scores).T
    steps, examples = _means(adaptive)
    return float(np.interp(np.log(examples / steps), np.log(sizes), gains, np.nan, np.nan))


def _gain_over_fixed(fixed: pd.DataFrame, adaptive: pd.DataFrame) -> float:
    return _gain(fixed, adaptive) / _fixed_gain(fixed, adaptive)


def _product(point: tuple[float, float], ends: tuple[float, float]) -> float:
    return (point[0] / ends[0] - 1) * (point[1] / ends[1] - 1)


def _hyperbola(fixed: pd.DataFrame) -> tuple[float, float]:
    """S_min and E_min, with log S = log(S_min(1 + B_crit/B)) fitted to all fixed batch sizes."""
    sizes = fixed["batch_size"].astype(float).to_numpy()
    logs = np.log(fixed["steps"].to_numpy())

    def misfit(logarithms: np.ndarray) -> np.ndarray:
        min_steps, critical = np.exp(logarithms)
        residuals: np.ndarray = np.log(min_steps * (1 + critical / sizes)) - logs
        return residuals

    min_steps, critical = np.exp(optimize.least_squares(misfit, [logs.min(), np.log(100.0)]).x)
    return float(min_steps), float(min_steps * critical)


LOGARITHMS = {"steps_saved": _steps, "examples_saved": _examples, "cost_saved": _cost}
GAINS = {
    "measured_gain": _gain,
    "fixed_gain": _fixed_gain,
    "gain_over_fixed": _gain_over_fixed,
}


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    reached = reached_table(runs)
    return {"reached": reached, **derived(reached)}


def derived(reached: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """What is made of the passages."""
    tuned = tuned_table(reached)
    return {
        "front": front_table(tuned),
        "comparison": comparison_table(tuned),
        "control": control_table(tuned),
        "pooled": pooled_table(reached),
    }


def again(committed: Committed) -> dict[str, pd.DataFrame]:
    """What is made of the committed passages."""
    return derived(committed("reached"))


adaptive_batch = analysis(
    "adaptive_batch",
    tables,
    help="Tables of steps and examples to a loss, adaptive against fixed ones; without RUNS, from "
    "the committed passages.",
    reuses="reached",
    again=again,
)
