"""What a batch size that follows the noise saves against fixed ones, in steps and examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import interpolate, optimize

from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import Estimate, estimate_row, from_samples, from_stderr
from noisescale.training.records.tables import read_noise

GOALS = (0.3, 0.2, 0.15)  # training loss
SETTING = ["batch_size", "exchange_rate", "lr_scaling"]
RUN = [*SETTING, "learning_rate", "seed"]


def reached_table(runs: Runs) -> pd.DataFrame:
    """A row per run and goal: steps and examples to the first passage, interpolated in log–log.

    nan where the goal was not reached.
    """
    rows = []
    for folder, record in runs:
        table = pd.DataFrame(read_noise(folder))
        setting = {name: record[name] for name in RUN} | {"batch_size": str(record["batch_size"])}
        per_epoch = table["population_size"].max()
        gain = (record.get("predicted") or {}).get("gain", np.nan)
        for goal in GOALS:
            steps, epochs = (_passage(table, name, goal) for name in ("step", "epoch"))
            reached = {
                "goal": goal,
                "steps": steps,
                "examples": epochs * per_epoch,
                "predicted_gain": gain,
            }
            rows.append(setting | reached)
    return pd.DataFrame(rows)


def _passage(table: pd.DataFrame, name: str, goal: float) -> float:
    """Where the loss first passes the goal."""
    below = np.flatnonzero(table["loss"] <= goal)
    if not len(below) or table[name].iloc[max(below[0] - 1, 0)] <= 0:
        return np.nan
    last = below[0]
    pair = table.iloc[[last - 1, last]]
    share = np.log(pair["loss"].iloc[0] / goal) / np.log(
        pair["loss"].iloc[0] / pair["loss"].iloc[1]
    )
    return float(
        np.exp(np.log(pair[name].iloc[0]) + share * np.log(pair[name].iloc[1] / pair[name].iloc[0]))
    )


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
    size for it.
    measured_gain: (S/S_min − 1)(E/E_min − 1), S_min and E_min fitted to the fixed ones;
    predicted_gain: γ of the run's own noise scale. Errors by the jackknife over seeds, of the
    savings in logarithms.
    """
    rows = []
    for goal, runs in tuned.groupby("goal"):
        fixed = runs[runs["batch_size"] != "adaptive"]
        for key, adaptive in runs[runs["batch_size"] == "adaptive"].groupby(SETTING):
            row: dict[str, Any] = {"goal": goal, **dict(zip(SETTING, key, strict=True))}
            for name, logarithm in LOGARITHMS.items():
                row |= estimate_row(name, _saved(_jackknife(logarithm, fixed, adaptive)))
            row |= estimate_row("measured_gain", _jackknife(_gain, fixed, adaptive))
            predicted = adaptive["predicted_gain"]
            rows.append(
                row | {"predicted_gain": predicted.mean(), "predicted_gain_std": predicted.std()}
            )
    return pd.DataFrame(rows)


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
    steps, examples = _means(adaptive)
    all_steps, all_examples = _front(fixed)
    return float(np.log((examples + rate * steps) / (all_examples + rate * all_steps).min()))


def _gain(fixed: pd.DataFrame, adaptive: pd.DataFrame) -> float:
    """With log S = log(S_min(1 + B_crit/B)) fitted to all fixed batch sizes."""
    sizes = fixed["batch_size"].astype(float).to_numpy()
    logs = np.log(fixed["steps"].to_numpy())

    def misfit(logarithms: np.ndarray) -> np.ndarray:
        min_steps, critical = np.exp(logarithms)
        residuals: np.ndarray = np.log(min_steps * (1 + critical / sizes)) - logs
        return residuals

    min_steps, critical = np.exp(optimize.least_squares(misfit, [logs.min(), np.log(100.0)]).x)
    steps, examples = _means(adaptive)
    return float((steps / min_steps - 1) * (examples / (min_steps * critical) - 1))


LOGARITHMS = {"steps_saved": _steps, "examples_saved": _examples, "cost_saved": _cost}


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    reached = reached_table(runs)
    tuned = tuned_table(reached)
    return {"reached": reached, "front": front_table(tuned), "comparison": comparison_table(tuned)}


adaptive_batch = analysis(
    "adaptive_batch",
    tables,
    help="Tables of steps and examples to a loss, adaptive against fixed ones.",
)
