"""The critical batch size from the steps that runs at several batch sizes take to a goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import special

from noisescale.errors import SettingError, is_real
from noisescale.statistics.critical_batch.curves.exponent import sharper_bend
from noisescale.statistics.critical_batch.curves.hyperbola import FEWEST, Curve, Quantity
from noisescale.statistics.critical_batch.curves.overhead import overhead_batch_size
from noisescale.statistics.critical_batch.curves.runs import Runs, left_over, runs_of
from noisescale.statistics.critical_batch.curves.seeds import seed_spread
from noisescale.statistics.display import Shown, Summary, counted
from noisescale.statistics.estimate import (
    CONFIDENCE,
    Estimate,
    estimate_row,
    jsonable,
    undefined,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# what is fitted, by its name in records, and what it is called
QUANTITIES = {
    "critical_batch_size": "B_crit = E_min/S_min",
    "min_steps": "S_min",
    "min_examples": "E_min",
    "overhead_batch_size": "20 % size",
}
POOR_FIT = 0.01  # chance of as bad a fit, below which it deserves a word
GOOD_FIT = 0.975  # and above which it is suspicious: one fit in 40 is as good by chance
CORRELATED = 2.0  # standard errors of uncorrelated residuals' correlation, 1/√n, that are notable
APART = "deviations from the curve are independent between batch sizes"
SEEDS = "seeds are independent of one another"
ALONE = f"{APART}, as seeds are not told apart"
UNTOLD = f"{APART}, as too few of them reach the goal to tell how far seeds differ"
STORED = (  # of a fit in fit.json, in this order
    *("min_steps", "min_examples", "critical_batch_size", "overhead_batch_size"),
    *("definition", "resolved", "reason", "num_batch_sizes", "num_censored", "num_seeds"),
    *("scatter", "lack_of_fit", "residual_correlation"),
    *("exponent", "exponent_critical_batch_size", "held_out_error", "exponent_held_out_error"),
    *("better", "assumes"),
)


@dataclass(frozen=True, kw_only=True, repr=False)
class CriticalBatchFit(Shown):
    """(S/S_min − 1)(E/E_min − 1) = 1 fitted to the steps S and examples E = B·S that reach a goal.

    McCandlish et al. 2018 (arXiv 1812.06162), (2.11) and (2.12). Beside it stands the curve with a
    free exponent, ((S/S_min)^a − 1)((E/E_min)^a − 1) = 1 or S = S_min(1 + (B_crit/B)^a)^(1/a). (An
    exponent outside of the brackets, (S/S_min − 1)^a(E/E_min − 1)^a = 1, changes nothing.)

    Attributes:
        min_steps: S_min, updates. A value that the batch sizes do not settle is nan, its interval
            open.
        min_examples: E_min, examples, likewise.
        critical_batch_size: B_crit = E_min/S_min in examples, at which a run takes twice the least
            of both.
        overhead_batch_size: the definition of Zhang et al. 2024 (arXiv 2410.21676): the batch size
            from which on a run takes 20 % more examples than at the smallest ones measured, which
            should lie well below B_crit. Read from the measured curve and not from the fit, of
            which it would be just 0.2·B_crit. A value is nan where the ends of its interval lie a
            factor of ten or more apart.
        resolved: whether B_crit has an interval with two ends and batch sizes that reach the goal
            on both sides of it.
        reason: why it is not resolved; empty where it is.
        num_batch_sizes: in the fit.
        num_censored: how many of them give no more than a lower bound on the steps.
        num_seeds: that were told apart; 1 without.
        scatter: standard deviation of log S about the curve, n − 2 in its denominator.
        lack_of_fit: the probability of as bad a fit by chance. It is judged by the interaction of
            seeds and batch sizes, what is left of runs once each seed has a curve of its own; where
            seeds are not told apart, by the spread within batch sizes; nan without several. Near 1
            a fit is suspiciously good: runs that should be independent are not.
        residual_correlation: of neighbouring batch sizes' deviations from the curve (lag 1): far
            above zero where the curve is a wrong one.
        exponent: a of the curve with a free exponent; above 1 the bend is sharper than the
            hyperbola's.
        exponent_critical_batch_size: E_min/S_min of that curve.
        held_out_error: of the hyperbola, root mean square of log(S/prediction), each batch size
            predicted without its own runs and, from eight sizes on, its neighbours'.
        exponent_held_out_error: that of the curve with a free exponent.
        assumes: what the intervals assume, in words.
        definition: of B_crit, "pareto".
        runs: what was fitted, as `plot` draws it; None where that is not known.

    Examples:
        >>> from noisescale import fit_critical_batch
        >>> fit = fit_critical_batch([1, 4, 16, 64, 256], [2120, 590, 228, 131, 111])
        >>> print(fit.critical_batch_size)
        19.53 ± 0.44 (18.18–20.97)
        >>> fit.to_frame()["min_steps"].round().item()
        102.0
    """

    min_steps: Estimate
    min_examples: Estimate
    critical_batch_size: Estimate
    overhead_batch_size: Estimate
    resolved: bool
    reason: str
    num_batch_sizes: int
    num_censored: int
    num_seeds: int
    scatter: float
    lack_of_fit: float
    residual_correlation: float
    exponent: Estimate
    exponent_critical_batch_size: float
    held_out_error: float
    exponent_held_out_error: float
    assumes: str
    definition: str = "pareto"
    runs: Runs | None = field(default=None, compare=False, repr=False)

    @property
    def better(self) -> Literal["hyperbola", "exponent"]:
        """The curve with the smaller held-out error."""
        return "exponent" if self.exponent_held_out_error < self.held_out_error else "hyperbola"

    @property
    def correlated(self) -> bool:
        """Whether neighbouring deviations go together by more than chance."""
        reached = self.num_batch_sizes - self.num_censored
        return self.residual_correlation > CORRELATED / math.sqrt(max(reached, 1))

    def steps(self, batch_size: float) -> float:
        """S = S_min(1 + B_crit/B) of the most likely curve; nan where S_min or E_min has no value.

        Args:
            batch_size: B, in examples.

        Returns:
            Updates.
        """
        return self.min_steps.value + self.min_examples.value / batch_size

    def remarks(self) -> list[str]:
        """What to know of the fit before its numbers are used, in words."""
        remarks = []
        if self.lack_of_fit < POOR_FIT:
            remarks.append(
                "the points lie off the curve by more than the seeds explain "
                f"(p = {self.lack_of_fit:.1g})"
            )
        if self.lack_of_fit > GOOD_FIT:
            remarks.append(
                f"the fit is suspiciously good (p = {self.lack_of_fit:.5g}): runs that count as "
                "independent may share their chance"
            )
        if self.correlated:
            remarks.append(
                "neighbouring batch sizes deviate together (correlation "
                f"{self.residual_correlation:.2f}): the hyperbola is not quite the curve"
            )
        if self.better == "exponent" and not self.exponent.low <= 1 <= self.exponent.high:
            hyperbola, exponent = (
                100 * math.expm1(error)
                for error in (self.held_out_error, self.exponent_held_out_error)
            )
            remarks.append(
                f"a free exponent predicts batch sizes left out better, ±{exponent:.2g} % against "
                f"±{hyperbola:.2g} %: a = {self.exponent.text()}, with B_crit = "
                f"{self.exponent_critical_batch_size:.3g}"
            )
        overhead = self.overhead_batch_size
        if math.isnan(overhead.value) and overhead.high < math.inf:
            remarks.append(f"the 20 % size is not resolved: {overhead.text('interval')}")
        return remarks

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws examples against steps: the runs, the fitted curve, and B_crit upon it as a star.

        Args:
            ax: drawn on, both axes made logarithmic; None: new ones, in a figure of pyplot's.

        Returns:
            The Axes.
        """
        from noisescale.plots.critical_batch import draw_fit  # matplotlib takes 0.8 s to load

        points: dict[str, list[float]] = {"batch_sizes": [], "steps": [], "censored": []}
        if self.runs is not None:
            there = np.isfinite(self.runs.log_steps)  # (R, n)
            sizes = np.broadcast_to(self.runs.sizes, there.shape)
            points["batch_sizes"] = sizes[there].tolist()
            points["steps"] = np.exp(self.runs.log_steps[there]).tolist()
            points["censored"] = self.runs.bounds[there].astype(int).tolist()
        return draw_fit(self.to_dict() | points, ax)

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: None for what is not finite."""
        values = {name: getattr(self, name) for name in STORED}
        record: dict[str, Any] = jsonable(values | {"remarks": self.remarks()})
        return record

    def to_row(self) -> dict[str, Any]:
        """The fields in the order of fit.json, each estimate as four columns."""
        row: dict[str, Any] = {}
        for name in STORED:
            value = getattr(self, name)
            row |= estimate_row(name, value) if isinstance(value, Estimate) else {name: value}
        return row

    def to_frame(self) -> pd.DataFrame:
        """One row, of the fields of fit.json: each estimate with its _stderr, _low and _high."""
        import pandas as pd

        return pd.DataFrame([self.to_row()])

    def _summary(self) -> Summary:
        reached = self.num_batch_sizes - self.num_censored
        seeds = f", {counted(self.num_seeds, 'seed')}" if self.num_seeds > 1 else ""
        reason = () if self.resolved else (f"B_crit is not resolved: {self.reason}",)
        return Summary(
            title=f"Critical batch size, by {reached} of {self.num_batch_sizes} batch sizes that "
            f"reach the goal{seeds}",
            rows=[(label, str(getattr(self, name))) for name, label in QUANTITIES.items()],
            notes=(*reason, *self.remarks()),
            notes_at=".remarks()",
        )


def fit_critical_batch(
    batch_sizes: Sequence[float] | np.ndarray,
    steps: Sequence[float] | np.ndarray,
    *,
    seeds: Sequence[Any] | np.ndarray | None = None,
    censored: Sequence[bool] | np.ndarray | None = None,
    confidence: float = CONFIDENCE,
) -> CriticalBatchFit:
    """The fit of S = S_min(1 + B_crit/B) to runs (n,), each the fastest of its batch size and seed.

    Log S is taken to scatter normally and equally about the curve at every batch size: its seeds
    are averaged in logs first (with a censored one among them to a lower bound). The profile of
    their likelihood gives intervals that rest on the scatter of batch sizes about the curve. That
    is all there is to know where deviations are independent between batch sizes; but a seed brings
    the same initial parameters to each of them, and moves its whole curve.

    With `seeds`, the intervals therefore hold how far the seeds' own curves differ, by Student's t
    over the logs of their own S_min, E_min and B_crit (over those that leave one seed out, the
    jackknife, where a seed alone cannot be fitted). To it that part of the profile's is added, in
    squares, which the scatter of single runs does not explain, such as a badly tuned rate at one
    batch size. Such intervals hold the truth in 93 to 98 % of simulated measurements, whether seeds
    differ or not (`experiments/coverage/critical_batch.py`); the wider of the two, in up to 99 %.

    A run's learning rate is taken to be the best one. That S is the least of several noisy ones
    makes it too small, by about the same factor at each batch size, which B_crit does not feel.

    Args:
        batch_sizes: examples per update (n,); several runs at one are seeds.
        steps: updates to the goal (n,).
        seeds: of each run (n,), any names: runs of one name share their chance. None: all runs are
            independent.
        censored: runs that did not reach it (n,), whose steps are a lower bound; None: none of
            them.
        confidence: of the intervals.

    Returns:
        The fit, with what it assumes. Fewer than three batch sizes that reach the goal leave
        everything unresolved.

    Raises:
        SettingError: fewer than four batch sizes, a seed with two runs at one of them, what is no
            number of steps, or a confidence that is not between 0 and 1.

    Examples:
        >>> from noisescale import fit_critical_batch
        >>> sizes, steps = [1, 4, 16, 64, 256], [2120, 590, 228, 131, 111]
        >>> fit = fit_critical_batch(sizes, steps)
        >>> fit
        Critical batch size, by 5 of 5 batch sizes that reach the goal
          B_crit = E_min/S_min  19.53 ± 0.44 (18.18–20.97)
          S_min                 101.9 ± 1.4 (97.5–106.6)
          E_min                 1,991 ± 26 (1,910–2,075)
          20 % size             5.08 ± 0.82 (3.24–6.20)
        >>> round(fit.steps(32))
        164
    """
    if not (is_real(confidence) and 0 < confidence < 1):
        raise SettingError(
            f"confidence {confidence!r}: give a number between 0 and 1, such as 0.95"
        )
    runs = runs_of(batch_sizes, steps, seeds, censored)
    reached = runs.reached
    num_seeds = len(runs.log_steps) if runs.crossed else 1
    if reached.sum() < FEWEST:
        reason = (
            f"{reached.sum()} of {len(reached)} batch sizes reach the goal, and it takes {FEWEST}"
        )
        return unresolved(
            reason,
            num_batch_sizes=len(reached),
            num_censored=int((~reached).sum()),
            num_seeds=num_seeds,
            runs=runs,
        )
    hyperbola = runs.hyperbola()
    curve = hyperbola.fit()
    judgement = _judge(runs, curve)
    unexplained = left_over(judgement.scatter, judgement.noise)
    spread = seed_spread(runs, curve, left_over=unexplained)

    def interval(quantity: Quantity, best: float) -> Estimate:
        profile = hyperbola.interval(quantity, curve, confidence=confidence)
        return spread.widen(profile, best, quantity, confidence=confidence) if spread else profile

    critical = interval("bend", curve.bend)
    reason = _unresolved(critical, curve, runs.sizes[reached])
    if reason:
        critical = replace(critical, value=math.nan, stderr=math.nan)
    bend = sharper_bend(runs, hyperbola=curve, noise=judgement.noise, confidence=confidence)
    return CriticalBatchFit(
        min_steps=interval("plateau", curve.plateau),
        min_examples=interval("slope", curve.slope),
        critical_batch_size=critical,
        overhead_batch_size=overhead_batch_size(
            runs,
            smooth=bend.fitted,
            scatter=bend.scatter,
            noise=judgement.noise,
            confidence=confidence,
        ),
        resolved=not reason,
        reason=reason,
        num_batch_sizes=len(reached),
        num_censored=int((~reached).sum()),
        num_seeds=num_seeds,
        scatter=judgement.scatter,
        lack_of_fit=judgement.lack_of_fit,
        residual_correlation=judgement.correlation,
        exponent=bend.exponent,
        exponent_critical_batch_size=bend.critical_batch_size,
        held_out_error=bend.hyperbola_error,
        exponent_held_out_error=bend.held_out_error,
        assumes=SEEDS if spread else UNTOLD if runs.crossed else ALONE,
        runs=runs,
    )


def unresolved(
    reason: str,
    *,
    num_batch_sizes: int,
    num_censored: int,
    num_seeds: int = 1,
    runs: Runs | None = None,
) -> CriticalBatchFit:
    """A fit of which nothing is known."""
    missing = undefined(num_samples=num_batch_sizes - num_censored)
    return CriticalBatchFit(
        min_steps=missing,
        min_examples=missing,
        critical_batch_size=missing,
        overhead_batch_size=missing,
        resolved=False,
        reason=reason,
        num_batch_sizes=num_batch_sizes,
        num_censored=num_censored,
        num_seeds=num_seeds,
        scatter=math.nan,
        lack_of_fit=math.nan,
        residual_correlation=math.nan,
        exponent=missing,
        exponent_critical_batch_size=math.nan,
        held_out_error=math.nan,
        exponent_held_out_error=math.nan,
        assumes="",
        runs=runs,
    )


@dataclass(frozen=True)
class _Judgement:
    """How the means lie about the curve.

    noise: the variance of a mean that the scatter of single runs explains; 0 where that is unknown.
    """

    scatter: float
    correlation: float
    lack_of_fit: float
    noise: float


def _judge(runs: Runs, curve: Curve) -> _Judgement:
    """The means' scatter about the curve, and the F test of it against that of single runs."""
    residuals = runs.residuals(curve)
    squares, dof = float(np.sum(residuals**2)), len(residuals) - 2
    scatter = math.sqrt(squares / max(dof, 1))
    correlation = float(np.sum(residuals[1:] * residuals[:-1])) / squares if squares else math.nan
    variance, run_dof = runs.interaction(curve)
    counts = runs.counts[runs.reached]
    lack_of_fit = math.nan
    if dof > 0 and run_dof > 0 and variance > 0:
        statistic = float(np.sum(counts * residuals**2)) / dof / variance
        lack_of_fit = float(special.fdtrc(dof, run_dof, statistic))
    noise = variance * float(np.mean(1 / counts)) if run_dof > 0 else 0.0
    return _Judgement(scatter, correlation, lack_of_fit, noise)


def _unresolved(critical: Estimate, curve: Curve, reached: np.ndarray) -> str:
    """Why the batch sizes that reach the goal do not settle B_crit; empty where they do."""
    smallest, largest = f"{reached.min():g}", f"{reached.max():g}"
    if critical.low == 0.0 and math.isinf(critical.high):
        return (
            "the steps scatter too much about any curve to show a bend: "
            "give more seeds or batch sizes"
        )
    if math.isinf(critical.high):
        return f"steps fall as 1/B up to the largest batch size, {largest}: give larger ones"
    if critical.low == 0.0:
        return f"steps hardly fall from the smallest batch size, {smallest}, on: give smaller ones"
    if not reached.min() < curve.bend < reached.max():
        return (
            f"the bend lies outside the batch sizes, at about {curve.bend:.3g}: "
            f"give {'smaller' if curve.bend <= reached.min() else 'larger'} ones"
        )
    return ""
