"""A setting chosen by cross-validation, with the one-standard-error rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from noisescale.errors import SettingError, check_choice, check_count
from noisescale.statistics.display import Shown, Summary, counted
from noisescale.statistics.estimate import Estimate, from_samples, jsonable, undefined

FEWEST_FOLDS = 2  # from which a standard error is had


@dataclass(frozen=True, kw_only=True, repr=False)
class CrossValidation(Shown):
    """What `choose_rate` finds.

    Attributes:
        rates: the learning rates tried, rising.
        scores: of each, the mean over folds, with the standard error of the folds; undefined where
            a fold diverged.
        best: the rate with the lowest mean.
        chosen: the rate by the one-standard-error rule.
        num_folds: k.
    """

    rates: tuple[float, ...]
    scores: tuple[Estimate, ...]
    best: float
    chosen: float
    num_folds: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for strict JSON."""
        record: dict[str, Any] = jsonable(
            {
                "best": self.best,
                "chosen": self.chosen,
                "num_folds": self.num_folds,
                "rates": [
                    {"learning_rate": rate, "score": score}
                    for rate, score in zip(self.rates, self.scores, strict=True)
                ],
            }
        )
        return record

    def _summary(self) -> Summary:
        marks = {self.best: "lowest", self.chosen: "chosen"}
        if self.best == self.chosen:
            marks = {self.best: "lowest and chosen"}
        return Summary(
            title=f"Learning rate by {counted(self.num_folds, 'fold')}",
            headings=("learning rate", "held-out score", ""),
            rows=[
                (f"{rate:g}", str(score), marks.get(rate, ""))
                for rate, score in zip(self.rates, self.scores, strict=True)
            ],
        )


def choose_rate(
    rates: Sequence[float],
    scores: np.ndarray,
    *,
    prefer: Literal["largest", "smallest"] = "largest",
) -> CrossValidation:
    """The learning rate by k-fold cross-validation and the one-standard-error rule.

    Of the rates whose mean held-out score is within one standard error (of the best rate's mean
    over the folds) of the lowest, the simplest (Breiman et al. 1984, section 3.4.3; Hastie,
    Tibshirani and Friedman, The Elements of Statistical Learning, section 7.10). For a learning
    rate that is taken to be the largest: it reaches a loss in the fewest steps, and SGD at a larger
    rate stays where curvature and noise are smaller (λ_max ≤ 2/η), which regularises. Where runs
    end before they have converged, a smaller rate is the one that fits less: `prefer` says which.

    Args:
        rates: (R,), each above 0, in any order.
        scores: (k, R), the error or loss of each fold's held-out part at each rate; lower is
            better. A rate at which a fold's is not finite is not chosen.
        prefer: among rates that cannot be told from the best, the largest or the smallest.

    Returns:
        The rate with the lowest mean, the one chosen, and each rate's mean with its error. The
        folds' training sets overlap, so that the standard error is too small for an interval of the
        true error (Bengio and Grandvalet 2004); the rule takes it as a scale.

    Raises:
        SettingError: shapes that do not fit together, fewer than two folds, rates given twice, or
            no rate at which all folds trained.

    Examples:
        >>> from noisescale import choose_rate
        >>> choose_rate([0.1, 0.2, 0.4], [[0.30, 0.20, 0.21], [0.32, 0.24, 0.24]]).chosen
        0.4
    """
    check_choice("prefer", prefer, ("largest", "smallest"))
    tried, table = np.asarray(rates, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if tried.ndim != 1 or table.shape[1:] != tried.shape or len(table) < FEWEST_FOLDS:
        raise SettingError(
            f"scores of shape {table.shape} for {counted(tried.size, 'rate')}: give a row for each "
            "of two or more folds, with a column for each rate"
        )
    if len(np.unique(tried)) < len(tried) or not (np.isfinite(tried) & (tried > 0)).all():
        raise SettingError("learning rates: give numbers above 0, each once")
    order = tried.argsort()
    tried, table = tried[order], table[:, order]
    trained = np.isfinite(table.sum(0))  # a fold that is not finite makes the sum so
    if not trained.any():
        raise SettingError("no learning rate at which all folds trained: give smaller ones")
    found = tuple(
        from_samples(column) if whole else undefined(num_samples=len(table))
        for column, whole in zip(table.T, trained, strict=True)
    )
    means = np.array([score.value for score in found])
    best = int(np.nanargmin(means))
    alike = np.flatnonzero(means <= means[best] + found[best].stderr)
    return CrossValidation(
        rates=tuple(map(float, tried)),
        scores=found,
        best=float(tried[best]),
        chosen=float(tried[alike.max() if prefer == "largest" else alike.min()]),
        num_folds=len(table),
    )


def fold_indices(num_examples: int, num_folds: int, *, seed: int = 0) -> list[np.ndarray]:
    """Which examples each fold holds out, at random.

    Args:
        num_examples: N.
        num_folds: k, from 2 to N.
        seed: of the division.

    Returns:
        k rising arrays of indices, of sizes that differ by one at most; together all of 0…N − 1,
        each once. A fold's model is trained on all the others.

    Raises:
        SettingError: fewer than two folds, or more than examples.

    Examples:
        >>> from noisescale import fold_indices
        >>> [len(fold) for fold in fold_indices(11, 3)]
        [4, 4, 3]
    """
    check_count("folds", num_folds)
    if not FEWEST_FOLDS <= num_folds <= num_examples:
        raise SettingError(
            f"folds {num_folds}: there are {num_examples:,} examples; give 2 to {num_examples}"
        )
    order = np.random.default_rng(seed).permutation(num_examples)
    return [np.sort(part) for part in np.array_split(order, num_folds)]
