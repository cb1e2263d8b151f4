"""The measured stable region: what a run is called, where it ends, how predictions meet it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from noisescale.errors import SettingError
from noisescale.statistics.display import Shown, Summary, counted
from noisescale.statistics.estimate import Estimate, student_t

if TYPE_CHECKING:
    import pandas as pd

Label = Literal["converged", "slow", "catapult", "dead", "diverged"]
LABELS: tuple[Label, ...] = ("converged", "slow", "catapult", "dead", "diverged")
BLOWN_UP, STAYED_UP = 10.0, 2.0  # times the larger of its start and chance
CONVERGED = 0.5  # of the loss at chance
ROSE = 2.0  # times its start
AT_CHANCE, ONE_CLASS = 0.95, 0.9  # of the loss at chance; of the examples, given the same class
MOVED_UP, MOVED_DOWN = 1.02, 0.9  # times its start: further than a run that has hardly begun
RESOLUTION = 20  # values of η_max tried within one step of the grid
LEFT = 10.0  # times the loss at the minimum it started from


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """What is kept of a run's loss on a fixed subset of the training examples.

    Attributes:
        start: before the first update; nan or inf, like the others, where it is not finite.
        largest: the largest at any look.
        final: after the last update.
        chance: the loss of the best constant output.
        largest_share: of the examples that the final model gives the same class.
        diverged_at_step: the first update whose own loss was not finite; None where there was none.
    """

    start: float
    largest: float
    final: float
    chance: float
    largest_share: float
    diverged_at_step: int | None

    @property
    def label(self) -> Label:
        """What the run is called; the first of these that holds.

        diverged: a loss was not finite; or the final one is above twice the larger of start and
            chance; or the loss rose above ten times that and did not come back below 0.95 of
            chance, as when a network blows up and then gives one class.
        dead: the final loss is at least 0.95 of chance and 0.9 of the examples are given one class,
            though the run has moved: its loss has risen by 2 % or fallen by a tenth. It may lie
            above chance where a large rate shakes the biases of the outputs.
        catapult: converged, after the loss had risen to twice its start or more.
        converged: the final loss is at most half of chance and, from a minimum, ten times its
        start.
        slow: anything else.
        """
        if self.diverged_at_step is not None or not math.isfinite(self.final + self.largest):
            return "diverged"
        height = max(self.start, self.chance)
        at_chance = self.final >= AT_CHANCE * self.chance
        if self.final > STAYED_UP * height or (at_chance and self.largest > BLOWN_UP * height):
            return "diverged"
        moved = self.largest > MOVED_UP * self.start or self.final < MOVED_DOWN * self.start
        if at_chance and moved and self.largest_share >= ONE_CLASS:
            return "dead"
        if self.final <= min(CONVERGED * self.chance, LEFT * self.start):
            return "catapult" if self.largest >= ROSE * self.start else "converged"
        return "slow"

    @property
    def left(self) -> bool:
        """Whether it left the minimum it started from: a loss not finite, or ten times its start.

        As far as it was looked at: an excursion between two looks is not seen.
        """
        return self.label == "diverged" or not self.largest <= LEFT * self.start


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """Between which learning rates one seed turns unstable.

    Attributes:
        low: the largest rate below the threshold; 0 where none of those tried was.
        high: the smallest rate above it; infinite where none was.
    """

    low: float
    high: float


def seed_threshold(outcomes: Iterable[tuple[float, bool]]) -> Threshold:
    """Where one seed turns unstable: the split of the rates that fewest outcomes contradict.

    Where outcomes are not monotone in the rate, several splits may be as good; the threshold then
    lies somewhere between the first and the last of them.

    Args:
        outcomes: pairs of a learning rate and whether the run was unstable at it, in any order.

    Returns:
        The threshold.

    Examples:
        >>> from noisescale import seed_threshold
        >>> seed_threshold([(0.1, False), (0.2, False), (0.4, True)])
        Threshold(low=0.2, high=0.4)
    """
    pairs = sorted(outcomes)
    unstable = np.array([outcome for _, outcome in pairs], dtype=int)
    below = np.concatenate([[0], np.cumsum(unstable)])  # unstable among the first k
    above = (
        len(pairs) - unstable.sum() - np.arange(len(pairs) + 1) + below
    )  # stable among the others
    rates = np.array([0.0, *(rate for rate, _ in pairs), math.inf])
    splits = np.flatnonzero(rates[1:] > rates[:-1])  # of two outcomes at one rate none lies between
    against = (below + above)[splits]
    best = splits[against == against.min()]
    return Threshold(low=float(rates[best[0]]), high=float(rates[best[-1] + 1]))


@dataclass(frozen=True, kw_only=True, repr=False)
class Edge(Shown):
    """The measured edge of one batch size.

    Attributes:
        rate: η_max with its interval.
        num_not_monotone: the seeds that were stable again above a rate at which they were not, for
            which the interval, that takes each seed to have one threshold, is too narrow.
    """

    rate: Estimate
    num_not_monotone: int

    def to_row(self) -> dict[str, float]:
        """The columns of boundary.csv that hold it."""
        return {
            "lr_max": self.rate.value,
            "lr_max_low": self.rate.low,
            "lr_max_high": self.rate.high,
            "num_seeds": self.rate.num_samples,
            "num_not_monotone": self.num_not_monotone,
        }

    def to_frame(self) -> pd.DataFrame:
        """One row, of the columns of boundary.csv that hold it."""
        import pandas as pd

        return pd.DataFrame([self.to_row()])

    def _summary(self) -> Summary:
        return Summary(
            title=f"Edge of stability, by {counted(self.rate.num_samples, 'seed')}",
            rows=[("η_max", str(self.rate)), ("not monotone", str(self.num_not_monotone))],
        )


def edge_of(outcomes: Iterable[tuple[int, float, bool]], *, seeds_alike: bool = False) -> Edge:
    """η_max of one batch size, from runs of several seeds.

    Args:
        outcomes: a seed, a learning rate and whether the run was unstable, in any order.
        seeds_alike: whether the seed changes nothing, as of gradient descent from one checkpoint:
            all runs then count as one seed's, and the interval is from the largest rate below its
            threshold to the smallest above, without a chance in it.

    Returns:
        The edge, see `fit_edge`.
    """
    by_seed: dict[int, list[tuple[float, bool]]] = {}
    for seed, learning_rate, unstable in outcomes:
        by_seed.setdefault(0 if seeds_alike else seed, []).append((learning_rate, unstable))
    thresholds = [seed_threshold(pairs) for pairs in by_seed.values()]
    edge = known_edge(thresholds[0]) if seeds_alike and thresholds else fit_edge(thresholds)
    return Edge(rate=edge, num_not_monotone=sum(not monotone(own) for own in by_seed.values()))


def monotone(outcomes: Iterable[tuple[float, bool]]) -> bool:
    """Whether no run is stable above a learning rate at which one was unstable.

    Args:
        outcomes: pairs of a learning rate and whether the run was unstable at it, in any order.
    """
    unstable = [outcome for _, outcome in sorted(outcomes)]
    return unstable == sorted(unstable)


def known_edge(threshold: Threshold) -> Estimate:
    """The edge of runs that no seed changes: in the middle, in logs, of where it is known to lie.

    Args:
        threshold: of these runs.

    Returns:
        The edge; nan with a bound where no rate was stable, or none unstable.
    """
    low, high = threshold.low, threshold.high
    both = low > 0 and high < math.inf
    value = math.sqrt(low * high) if both else math.nan
    return Estimate.from_interval(value, low, high, num_samples=1)


def fit_edge(thresholds: Sequence[Threshold]) -> Estimate:
    """η_max, the learning rate at which half of the seeds are unstable, with its 95 % interval.

    P(unstable | η) = 1/(1 + (η/η_max)^(−1/s)), a logistic curve in log η: the seeds' own thresholds
    are logistic in log η, each known to lie in its interval. η_max is by maximum likelihood (the
    middle, where a range of values is as likely), its interval by the profile of the likelihood
    over s, cut where that of n normal thresholds has exactly 95 %: n·log(1 + t²/(n − 1)). stderr: a
    quarter of the interval in logs, times the value.

    The interval assumes that a seed has one threshold: the same parameters and order of the
    examples turn unstable at one rate. Where outcomes vary from rate to rate as they do from seed
    to seed, the cells near the edge hold more than this uses, and a search that ends at the first
    change finds thresholds that lie too close to each other: then the interval is too narrow, and a
    whole grid is the safer design.

    Args:
        thresholds: of the seeds, one each.

    Returns:
        The edge. Where too many seeds are stable at every rate tried, or unstable at every one, the
        value is nan and the interval reaches to infinity or to 0. One seed gives no interval.

    Raises:
        SettingError: a threshold whose lower end is not below its upper one.

    Examples:
        >>> from noisescale import Threshold, fit_edge
        >>> of_seeds = [(0.2, 0.25), (0.25, 0.35), (0.2, 0.3), (0.2, 0.25)]
        >>> fit_edge([Threshold(low=low, high=high) for low, high in of_seeds])
        Estimate(0.247 ± 0.025 (0.200–0.298))
    """
    if wrong := [seed for seed in thresholds if not 0 <= seed.low < seed.high]:
        raise SettingError(
            f"a threshold between {wrong[0].low:g} and {wrong[0].high:g}: give a lower end below "
            "the upper one, 0 or more"
        )
    informative = [seed for seed in thresholds if seed.low > 0 or seed.high < math.inf]
    num_seeds = len(informative)
    if num_seeds == 0:
        return Estimate.from_interval(math.nan, math.nan, math.nan, num_samples=0)
    low = np.array([math.log(seed.low) if seed.low > 0 else -math.inf for seed in informative])
    high = np.array([math.log(seed.high) for seed in informative])
    ends = np.concatenate([low, high])
    ends = ends[np.isfinite(ends)]
    widths = (high - low)[np.isfinite(high - low)]
    width = float(widths.min()) if len(widths) else 0.25
    margin = 4 * width + np.ptp(ends)
    middles = np.arange(ends.min() - margin, ends.max() + margin, width / RESOLUTION)
    scales = np.geomspace(width / 50, 2 * margin, 40)
    profile = _profile(low, high, middles, scales)
    deviance = 2 * (profile.max() - profile)
    best = middles[deviance < 1e-6]
    value = float(np.exp(best.mean()))
    if (best.min() <= ends.min() and not np.isfinite(low).all()) or (
        best.max() >= ends.max() and not np.isfinite(high).all()
    ):
        value = math.nan
    if num_seeds < 2:
        return Estimate.from_interval(value, math.nan, math.nan, num_samples=1)
    t = student_t(num_seeds - 1)
    inside = np.flatnonzero(deviance <= num_seeds * math.log1p(t**2 / (num_seeds - 1)))
    first, last = inside[0] - 1, inside[-1] + 1  # outwards to the steps of `middles`
    bottom = 0.0 if first < 0 else float(np.exp(middles[first]))
    top = math.inf if last == len(middles) else float(np.exp(middles[last]))
    return Estimate.from_interval(value, bottom, top, num_samples=num_seeds)


def _profile(
    low: np.ndarray, high: np.ndarray, middles: np.ndarray, scales: np.ndarray
) -> np.ndarray:
    """The log-likelihood of each middle at its best scale."""
    from scipy.special import log_expit  # here, as in `student_t`

    best = np.full(len(middles), -np.inf)
    for scale in scales:
        above = (high[:, None] - middles) / scale  # (n, M)
        below = (low[:, None] - middles) / scale
        # log(F(a) − F(b)) = log F(a) + log(1 − F(b)) + log(1 − exp(b − a)) for the logistic F
        gap = np.where(
            np.isinf(above - below), 0.0, np.log(-np.expm1(np.minimum(below - above, -1e-300)))
        )
        best = np.maximum(best, (log_expit(above) + log_expit(-below) + gap).sum(0))
    return best


@dataclass(frozen=True, kw_only=True)
class PredictionScore:
    """How a predicted η_max(B) meets the measured map.

    Attributes:
        cells_right: the share of the cells that lie on the side it says.
        num_cells: cells compared.
        log2_error: mean of |log₂(predicted/measured)| over the batch sizes whose edge was found.
        mean_log2_error: the same with its sign, so above zero where the prediction is too large.
        num_edges: edges compared.
    """

    cells_right: float
    num_cells: int
    log2_error: float
    mean_log2_error: float
    num_edges: int


def score_prediction(
    predicted: dict[int, float], cells: Iterable[tuple[int, float, bool]], edges: dict[int, float]
) -> PredictionScore:
    """The score of predicted rates by batch size against cells (B, η, unstable) and measured edges.

    Batch sizes without a prediction are left out, and counted out.
    """
    usable = {size: rate for size, rate in predicted.items() if math.isfinite(rate)}
    right = [(rate > usable[size]) == unstable for size, rate, unstable in cells if size in usable]
    errors = [
        math.log2(usable[size] / edge)
        for size, edge in edges.items()
        if size in usable and math.isfinite(edge)
    ]
    return PredictionScore(
        cells_right=float(np.mean(right)) if right else math.nan,
        num_cells=len(right),
        log2_error=float(np.mean(np.abs(errors))) if errors else math.nan,
        mean_log2_error=float(np.mean(errors)) if errors else math.nan,
        num_edges=len(errors),
    )
