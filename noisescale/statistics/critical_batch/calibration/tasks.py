"""B_crit of a task not seen, from what one run of it knows and the fronts of many other tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from noisescale.statistics.estimate import CONFIDENCE, Estimate, from_samples, student_t

FEWEST_TASKS = 10  # of which an error has a t of 1.8 for 90 %, and not 6.3 as of two
# times the best rate, or half of it: a run within that counts as tuned; and what three digits of a
# rate, of a run at just twice the best one, make of its logarithm
NEAR, ROUNDED = 2.0, 0.01
# what is known of a run -> how it is called in print
REGRESSORS = {
    "log_rate": "log(ε/ε_opt)",
    "log_decrease": "log(ε·E|g_B|²/L_0)",
    "log_batch": "log(B/𝓑)",
    "negative_curvature": "share of GᵀHG < 0",
    "log_loss": "log(L/L_0)",
    "momentum": "momentum",
    "adaptive": "adaptive",
}
OF_OPTIMIZER = ("momentum", "adaptive")  # 1 of that kind, else 0
EVEN = 1e-9  # of the largest eigenvalue: below, rows say nothing of a combination of regressors
RATIOS = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 26)])  # of σ_u²/σ_e² that are tried


def regressors(rows: pd.DataFrame) -> pd.DataFrame:
    """What each row of a table of fronts knows, nan where it does not (n, 7).

    Args:
        rows: with batch_size, noise_scale, rate_over_best, relative_decrease, negative_curvature,
            relative_loss and optimizer, "sgd", "momentum" or "adaptive".
    """
    return pd.DataFrame(
        {
            "log_rate": np.log(rows["rate_over_best"]),
            "log_decrease": np.log(rows["relative_decrease"]),
            "log_batch": np.log(rows["batch_size"] / rows["noise_scale"]),
            "negative_curvature": rows["negative_curvature"],
            "log_loss": np.log(rows["relative_loss"]),
            **{kind: (rows["optimizer"] == kind).astype(float) for kind in OF_OPTIMIZER},
        },
        index=rows.index,
    )


def usable_regressors(rows: pd.DataFrame, names: Sequence[str]) -> list[str] | None:
    """Those of the regressors that enough tasks have; None where too few tasks have all of these.

    Without those that are the same in all rows.

    Args:
        rows: as of `regressors`, with `task`.
        names: of the regressors.
    """
    values = regressors(rows)
    usable = [
        name for name in names if rows.loc[values[name].notna(), "task"].nunique() >= FEWEST_TASKS
    ]
    complete = values[usable].notna().all(axis=1)
    if rows.loc[complete, "task"].nunique() < FEWEST_TASKS:
        return None
    # of a kind of optimizer that none of these, or all of them, have, nothing follows
    return [name for name in usable if np.ptp(values.loc[complete, name]) > 0]


def is_near(rows: pd.DataFrame) -> np.ndarray:
    """Which rows are of SGD, with momentum or without, within `NEAR` of the best rate (n,).

    Args:
        rows: as of `regressors`.
    """
    logs = np.log(rows["rate_over_best"].to_numpy(dtype=float))
    tuned = np.abs(logs) <= math.log(NEAR) + ROUNDED
    near: np.ndarray = tuned & (rows["optimizer"] != "adaptive").to_numpy()
    return near


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskModel:
    """log(B_crit/𝓑) = offset + Σ coefficient·regressor + u + e, over runs of many tasks.

    u is a task's own, of variance σ_u², and e a row's, of variance σ_e². The coefficients are those
    of generalised least squares at the σ_u²/σ_e² of the greatest restricted likelihood (Patterson
    and Thompson 1971), so that what differs within tasks counts for more than what differs between
    them.

    A prediction for a task not seen has the error that the same fit without a task makes on that
    task's rows: s² is the mean over tasks of the mean over the rows of each, and s·t_{T−1} the
    half-width in logs. It assumes that the new task is drawn from where the T tasks were, and that
    what is left of each is normal. Of the coefficients' own errors s² has the part that they have
    for the table's rows; a run farther out than these has what is more of it on top. Beyond the
    rows' range a regressor counts as at its end: how B_crit goes on there is not known.

    The coefficients' errors are the jackknife's over the tasks, since rows of a task are not
    independent given u: its goals share their runs.

    Attributes:
        names: of the regressors, see `REGRESSORS`.
        lowest, highest: of each, among the rows (p,).
        coefficients: the offset, then one for each (1 + p,).
        errors: their standard errors (1 + p,).
        covariance: of the coefficients (1 + p, 1 + p).
        leverage: xᵀ·covariance·x, the mean over tasks of the mean over the rows of each.
        between: σ_u.
        within: σ_e.
        spread: s over all rows.
        spread_near: s over the rows of SGD, with momentum or without, within `NEAR` of the best
            rate; None where fewer than `FEWEST_TASKS` have such.
        num_tasks: T.
        num_near: those with such rows.
    """

    names: tuple[str, ...]
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    coefficients: tuple[float, ...]
    errors: tuple[float, ...]
    covariance: np.ndarray
    leverage: float
    between: float
    within: float
    spread: float
    spread_near: float | None
    num_tasks: int
    num_near: int

    @classmethod
    def fitted(cls, rows: pd.DataFrame, names: Sequence[str]) -> TaskModel:
        """The model of these rows.

        Args:
            rows: of a table of fronts, of three tasks or more, with `task`, `critical_batch_size`
                and what `regressors` takes. Those that lack a regressor are left out.
            names: of the regressors.
        """
        known, x, y = _design(rows, names)
        tasks = known["task"].to_numpy()
        sums = _Sums.of(x, y, tasks)
        ratio = max(RATIOS, key=lambda ratio: sums.likelihood(float(ratio)))
        coefficients, within = sums.solved(float(ratio))
        every = np.unique(tasks)
        without = np.array(
            [sums.without(place).solved(float(ratio))[0] for place in range(len(every))]
        )  # (T, 1 + p)
        differences = without - coefficients
        covariance = (1 - 1 / len(every)) * differences.T @ differences
        errors = y - np.einsum("np,np->n", x, without[np.searchsorted(every, tasks)])
        near = is_near(known)
        num_near = len(np.unique(tasks[near]))
        return cls(
            names=tuple(names),
            lowest=tuple(x[:, 1:].min(0).tolist()),
            highest=tuple(x[:, 1:].max(0).tolist()),
            coefficients=tuple(coefficients.tolist()),
            errors=tuple(np.sqrt(covariance.diagonal()).tolist()),
            covariance=covariance,
            leverage=_over_tasks(np.einsum("np,pq,nq->n", x, covariance, x), tasks),
            between=within * math.sqrt(ratio),
            within=within,
            spread=math.sqrt(_over_tasks(errors**2, tasks)),
            spread_near=math.sqrt(_over_tasks(errors[near] ** 2, tasks[near]))
            if num_near >= FEWEST_TASKS
            else None,
            num_tasks=len(sums.counts),
            num_near=num_near,
        )

    def log_ratio(self, known: Mapping[str, float]) -> float:
        """log(B_crit/𝓑) of a run.

        Args:
            known: the value of each regressor.
        """
        return float(self._row(known) @ np.array(self.coefficients))

    def outside(self, known: Mapping[str, float]) -> list[str]:
        """The regressors that lie beyond those of the rows, as they are called in print.

        Args:
            known: the value of each regressor.
        """
        given = [known[name] for name in self.names]
        moved = ~np.isclose(self._row(known)[1:], given)
        return [REGRESSORS[name] for name, out in zip(self.names, moved, strict=True) if out]

    def _row(self, known: Mapping[str, float]) -> np.ndarray:
        """1 and each regressor, where it lies beyond the rows at their end (1 + p,)."""
        given = [known[name] for name in self.names]
        return np.array([1.0, *np.clip(given, self.lowest, self.highest)])

    def half_width(
        self, known: Mapping[str, float], *, near: bool, level: float = CONFIDENCE
    ) -> float:
        """How far the interval of log B_crit reaches either way.

        Args:
            known: the value of each regressor.
            near: whether the run is of SGD within `NEAR` of the best rate.
            level: how often it is to hold B_crit.
        """
        x = self._row(known)
        farther = max(float(x @ self.covariance @ x) - self.leverage, 0.0)
        spread, num_tasks = self.spread, self.num_tasks
        if near and self.spread_near is not None:
            spread, num_tasks = self.spread_near, self.num_near
        return student_t(num_tasks - 1, confidence=level) * math.hypot(spread, math.sqrt(farther))

    def critical_batch_size(
        self, noise_scale: Estimate, known: Mapping[str, float], *, near: bool
    ) -> Estimate:
        """B_crit of a run with this noise scale, with a 95 % interval for a task not seen.

        Args:
            noise_scale: 𝓑 averaged by progress. Its error of measurement is part of the interval
                already as far as the runs of the table have one, and is added all the same: it may
                be larger than theirs.
            known: the value of each regressor.
            near: whether the run is of SGD within `NEAR` of the best rate.
        """
        model = self.half_width(known, near=near)
        ends = [
            math.hypot(model, math.log(high / low)) if low > 0 and high < math.inf else math.inf
            for low, high in (
                (noise_scale.low, noise_scale.value),
                (noise_scale.value, noise_scale.high),
            )
        ]
        value = noise_scale.value * math.exp(self.log_ratio(known))
        return Estimate.from_interval(
            value,
            value * math.exp(-ends[0]),
            value * math.exp(ends[1]),
            num_samples=self.num_tasks,
        )

    def __str__(self) -> str:
        terms = [f"{self.coefficients[0]:.2g}"]
        for name, slope in zip(self.names, self.coefficients[1:], strict=True):
            terms.append(f"{'−' if slope < 0 else '+'} {abs(slope):.2g}·{REGRESSORS[name]}")
        return (
            f"log(B_crit/𝓑) = {' '.join(terms)}; ×/÷ {math.exp(self.between):.2f} between tasks, "
            f"×/÷ {math.exp(self.within):.2f} within; {self.num_tasks} tasks"
        )


def leave_one_task_out(
    rows: pd.DataFrame, names: Sequence[str], *, level: float = 0.9
) -> pd.DataFrame:
    """The rows with B_crit predicted by a model that has not seen their task, and its interval.

    Everything of the model, its spread too, is of the other tasks. Columns predicted, low, high and
    covered, 1 where the interval holds the measured B_crit, else 0.

    Args:
        rows: as of `TaskModel.fitted`.
        names: of the regressors.
        level: of the intervals.
    """
    known, x, _ = _design(rows, names)
    near = is_near(known) & ("log_rate" in names)  # which a model without it cannot tell
    parts = []
    for task in known["task"].unique():
        held_out = (known["task"] == task).to_numpy()
        model = TaskModel.fitted(known[~held_out], names)
        of_runs = [dict(zip(names, row[1:], strict=True)) for row in x[held_out].tolist()]
        log = np.log(known.loc[held_out, "noise_scale"].to_numpy())
        log = log + [model.log_ratio(run) for run in of_runs]
        width = np.array(
            [
                model.half_width(run, near=bool(each), level=level)
                for run, each in zip(of_runs, near[held_out], strict=True)
            ]
        )
        own = known[held_out].assign(
            predicted=np.exp(log), low=np.exp(log - width), high=np.exp(log + width)
        )
        holds = own["critical_batch_size"].between(own["low"], own["high"])
        parts.append(own.assign(covered=holds.astype(int)))
    together: pd.DataFrame = pd.concat(parts)
    return together.sort_index()


def coverage(left_out: pd.DataFrame) -> Estimate:
    """The share of rows whose interval holds B_crit, every task counting the same.

    Its error is that of a mean over tasks.

    Args:
        left_out: what `leave_one_task_out` gives.
    """
    return from_samples(left_out.groupby("task")["covered"].mean().to_numpy())


@dataclass(frozen=True)
class _Sums:
    """Of each of T tasks the number of rows and the sums that the fits are made of."""

    counts: np.ndarray  # (T,)
    xx: np.ndarray  # (T, p, p)
    xy: np.ndarray  # (T, p)
    yy: np.ndarray  # (T,)
    x: np.ndarray  # (T, p)
    y: np.ndarray  # (T,)

    @classmethod
    def of(cls, x: np.ndarray, y: np.ndarray, tasks: np.ndarray) -> _Sums:
        parts = [(x[tasks == task], y[tasks == task]) for task in np.unique(tasks)]
        return cls(
            *(
                np.array(values)
                for values in zip(
                    *((len(b), a.T @ a, a.T @ b, b @ b, a.sum(0), b.sum()) for a, b in parts),
                    strict=True,
                )
            )
        )

    def without(self, place: int) -> _Sums:
        """Those of the other tasks."""
        return _Sums(*(np.delete(values, place, 0) for values in vars(self).values()))

    def _weighted(self, ratio: float) -> tuple[np.ndarray, np.ndarray, float]:
        """XᵀWX, XᵀWy and yᵀWy, W the inverse of 1 + ratio·11ᵀ in every task."""
        shrunk = ratio / (1 + self.counts * ratio)  # (T,)
        return (
            self.xx.sum(0) - np.einsum("t,tp,tq->pq", shrunk, self.x, self.x),
            self.xy.sum(0) - np.einsum("t,tp,t->p", shrunk, self.x, self.y),
            float(self.yy.sum() - shrunk @ self.y**2),
        )

    def solved(self, ratio: float) -> tuple[np.ndarray, float]:
        """The coefficients (p,) and σ_e at σ_u²/σ_e².

        A combination that rows say nothing of, as of an optimizer that none has, is 0.
        """
        matrix, vector, square = self._weighted(ratio)
        coefficients = np.linalg.pinv(matrix, rcond=EVEN, hermitian=True) @ vector
        dof = max(int(self.counts.sum()) - len(vector), 1)
        return coefficients, math.sqrt(max(square - coefficients @ vector, 0.0) / dof)

    def likelihood(self, ratio: float) -> float:
        """The logarithm of the restricted likelihood, up to a constant."""
        matrix, _, _ = self._weighted(ratio)
        values = np.linalg.eigvalsh(matrix)
        dof = max(int(self.counts.sum()) - len(values), 1)
        _, within = self.solved(ratio)
        determinants = np.log1p(self.counts * ratio).sum()
        determinants += np.log(values[values > EVEN * values[-1]]).sum()
        return -0.5 * float(2 * dof * math.log(max(within, 1e-300)) + determinants)


def _design(
    rows: pd.DataFrame, names: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """The rows that know all regressors, these after a 1 (n, 1 + p), and log(B_crit/𝓑) (n,)."""
    values = regressors(rows)[list(names)].to_numpy(dtype=float)
    y = np.log((rows["critical_batch_size"] / rows["noise_scale"]).to_numpy(dtype=float))
    usable = np.isfinite(values).all(1) & np.isfinite(y)
    x = np.hstack([np.ones((len(values), 1)), values])
    return rows[usable], x[usable], y[usable]


def _over_tasks(values: np.ndarray, tasks: np.ndarray) -> float:
    """The mean over tasks of the mean of each."""
    return float(pd.Series(values).groupby(tasks).mean().mean())
