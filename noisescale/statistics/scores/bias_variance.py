"""Squared error as noise, bias and variance, the variance split over what a training run draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from noisescale.errors import SettingError, check_count
from noisescale.statistics.display import Shown, Summary, counted
from noisescale.statistics.estimate import Estimate, from_stderr, jsonable

if TYPE_CHECKING:
    import pandas as pd

JOINED = " × "  # between the factors of an interaction
FEWEST_LEVELS = 3  # of a factor that can be left out one by one: two that are left make a pair
MOST_FACTORS = 4  # of which there are 2⁴ − 1 components


@dataclass(frozen=True, kw_only=True, repr=False)
class BiasVariance(Shown):
    """What `bias_variance` finds of the squared error of models trained on crossed draws.

    Attributes:
        factors: what was drawn anew, such as ("data", "seed").
        levels: of each factor, how many draws.
        num_examples: N, that the models were scored on.
        score: the mean score of a single model, the sum of all that follows.
        bias_and_noise: of the mean of infinitely many models; the two cannot be told apart where
            each example has one outcome.
        squared_bias: its part that is bias, where the outcomes' means are known; else None.
        noise: its part that is noise; else None.
        variance: of a single model, the sum of the components.
        components: its parts by name: "data", "seed", "data × seed". The interaction of all factors
            holds whatever else differs from run to run.
        notes: sentences on what the errors do not hold.
        parts: bias² + noise and each component, example by example and without each draw: what
            errors and differences are made of.
    """

    factors: tuple[str, ...]
    levels: tuple[int, ...]
    num_examples: int
    score: Estimate
    bias_and_noise: Estimate
    squared_bias: Estimate | None
    noise: Estimate | None
    variance: Estimate
    components: dict[str, Estimate]
    notes: tuple[str, ...]
    parts: Parts

    @property
    def estimates(self) -> dict[str, Estimate]:
        """Every part that is known, by name."""
        parts = {
            "score": self.score,
            "bias² + noise": self.bias_and_noise,
            "bias²": self.squared_bias,
            "noise": self.noise,
            "variance": self.variance,
            **{f"variance, {name}": part for name, part in self.components.items()},
        }
        return {name: part for name, part in parts.items() if part is not None}

    def ensemble(self, size: int, *, over: Sequence[str] | None = None) -> Estimate:
        """The expected score of the mean prediction of several models.

        Bias² and noise stay; a component of the variance is divided by the number of models where
        they differ in one of its factors. No model is combined for it: of squared error that is the
        expectation itself (Breiman 1996, Bagging predictors, section 4).

        Args:
            size: m, how many models.
            over: the factors whose draws differ from model to model, all of `over` at once; the
                others are shared by them. None: all factors.

        Returns:
            The score of m models; at m = 1, `score`.

        Raises:
            SettingError: no whole number of models, or a factor that there is not.
        """
        return self.parts.estimate(self._ensemble_weights(size, over))

    def bagging_gain(self, size: int, *, over: Sequence[str] | None = None) -> Estimate:
        """How much lower the score of the mean of several models is than that of one.

        Args:
            size: m, how many models.
            over: as of `ensemble`.

        Returns:
            score(1) − score(m), with the error of the difference itself.

        Raises:
            SettingError: as of `ensemble`.
        """
        one = self._ensemble_weights(1, over)
        return self.parts.estimate(one - self._ensemble_weights(size, over))

    def difference(self, other: BiasVariance) -> dict[str, Estimate]:
        """Each part of another decomposition less that of this one, with the paired error.

        Args:
            other: of models of another kind, as of another batch size, trained on the same draws of
                the same factors and scored on the same examples, each in the same order.

        Returns:
            `other` − this by the names of `estimates`; what draws and examples do to both alike
            cancels.

        Raises:
            SettingError: other factors, levels or numbers of examples.
        """
        if (self.factors, self.levels, self.num_examples) != (
            other.factors,
            other.levels,
            other.num_examples,
        ):
            raise SettingError(
                f"the difference of {_design(self)} and {_design(other)}: give decompositions of "
                "the same draws and examples"
            )
        apart = other.parts.less(self.parts)
        known = self.estimates.keys() & other.estimates.keys()
        return {
            name: apart.estimate(weights)
            for name, weights in _weights(self.factors).items()
            if name in known
        }

    def to_frame(self) -> pd.DataFrame:
        """A row for each part: value, stderr, low and high, by its name."""
        import pandas as pd

        rows = {name: part.to_dict() for name, part in self.estimates.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("part")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for strict JSON."""
        record: dict[str, Any] = jsonable(
            {
                "factors": self.factors,
                "levels": self.levels,
                "num_examples": self.num_examples,
                "score": self.score,
                "bias_and_noise": self.bias_and_noise,
                "squared_bias": self.squared_bias,
                "noise": self.noise,
                "variance": self.variance,
                "components": self.components,
                "notes": self.notes,
            }
        )
        return record

    def _summary(self) -> Summary:
        return Summary(
            title=f"Squared error of {_design(self)}",
            rows=[(name, str(part)) for name, part in self.estimates.items()],
            notes=self.notes,
        )

    def _ensemble_weights(self, size: int, over: Sequence[str] | None) -> np.ndarray:
        """What each of the parts counts for in the score of an ensemble: (K,)."""
        check_count("models of an ensemble", size)
        differing = set(self.factors if over is None else over)
        if unknown := sorted(differing - set(self.factors)):
            raise SettingError(
                f"over {', '.join(unknown)}: the factors are {', '.join(self.factors)}"
            )
        divided = [
            1 / size if differing & set(subset) else 1.0 for subset in _subsets(self.factors)
        ]
        return np.array([*divided, 0.0])


def bias_variance(
    predictions: np.ndarray,
    targets: np.ndarray,
    *,
    factors: Sequence[str] = ("data", "seed"),
    expected: np.ndarray | None = None,
) -> BiasVariance:
    """Noise, squared bias and variance of the squared error of models trained on crossed draws.

    The score of a model on an example is Σ_c (p_c − y_c)², of probabilities and one-hot classes
    Brier's (1950), between 0 and 2. Its mean over the draws of a training run is

        E|p − y|² = noise + |E p − E y|² + Σ_T σ²_T,

    the variance of p split by a random-effects analysis of variance into a component for each
    factor T and each interaction of factors. With V_T, the mean product (p − y)·(p′ − y) of two
    models with the same draws of the factors in T and others of all the rest, E V_T = bias² + noise
    + Σ_{S ⊆ T} σ²_S, so that sums of V_T with alternating signs are unbiased: U-statistics, which
    are those of the analysis of variance (Hoeffding 1948; Searle, Casella and McCulloch 1992,
    section 5.6). They may come out below zero where a component is near it; nothing is clamped.

    Standard errors are jackknives over the draws of each factor with three or more and over the
    examples, their variances added, which errs to the safe side (Owen 2007, The pigeonhole
    bootstrap); intervals go by Student's t with Satterthwaite's degrees of freedom. Of a factor
    with two draws the errors hold for just these two, and a note says so.

    Args:
        predictions: [*factors, N, C]: one axis for each factor, in their order, then examples, then
            classes (or outputs). The draws are crossed: entry [d, s] is of the model trained on
            data set d under seed s, which is the same seed on every data set.
        targets: the outcomes: classes (N,) as whole numbers, or (N, C) numbers.
        factors: their names; each is drawn anew for each of its levels, independently of the
            others. Resampled data sets stand for fresh ones as a bootstrap does.
        expected: E y of each example (N, C), where it is known, as in a simulation: the
            probabilities of the classes. Bias and noise are then told apart.

    Returns:
        Every part, each with its error.

    Raises:
        SettingError: shapes that do not fit together, fewer than two draws of a factor, or numbers
            that are not finite.

    Examples:
        >>> import numpy as np
        >>> from noisescale import bias_variance
        >>> rng = np.random.default_rng(0)
        >>> data = rng.normal(scale=0.3, size=(8, 1, 500, 1))  # of each data set: σ² = .09
        >>> seed = rng.normal(scale=0.1, size=(1, 3, 500, 1))  # of each seed: σ² = .01
        >>> bias_variance(0.5 + data + seed, np.zeros((500, 1))).variance
        Estimate(0.1003 ± 0.0034 (0.0932–0.1075))
    """
    errors, outcomes = _errors(predictions, targets, factors)
    biases = None
    if expected is not None:
        expected = np.asarray(expected, dtype=np.float64)
        if expected.shape != outcomes.shape or not np.isfinite(expected).all():
            raise SettingError(
                f"expected of shape {expected.shape}: give finite numbers of shape "
                f"{outcomes.shape}, a row of E y for each example"
            )
        biases = errors + (outcomes - expected)
    factors = tuple(factors)
    parts = Parts.of(errors, biases)
    found = {name: parts.estimate(weights) for name, weights in _weights(factors).items()}
    few = [
        name for name, levels in zip(factors, errors.shape, strict=False) if levels < FEWEST_LEVELS
    ]
    return BiasVariance(
        factors=factors,
        levels=errors.shape[: len(factors)],
        num_examples=len(outcomes),
        score=found["score"],
        bias_and_noise=found["bias² + noise"],
        squared_bias=None if biases is None else found["bias²"],
        noise=None if biases is None else found["noise"],
        variance=found["variance"],
        components={
            name.removeprefix("variance, "): part
            for name, part in found.items()
            if name.startswith("variance, ")
        },
        notes=tuple(
            f"two draws of {name}: errors hold for these two, give three or more for errors over "
            "such draws"
            for name in few
        ),
        parts=parts,
    )


def _design(result: BiasVariance) -> str:
    draws = JOINED.join(
        f"{levels} {name}" for name, levels in zip(result.factors, result.levels, strict=True)
    )
    return f"{draws} draws on {counted(result.num_examples, 'example')}"


def _errors(
    predictions: np.ndarray, targets: np.ndarray, factors: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions less outcomes [*factors, N, C], and the outcomes (N, C); SettingError."""
    predictions, targets = np.asarray(predictions), np.asarray(targets)
    if not 1 <= len(set(factors)) == len(factors) <= MOST_FACTORS:
        raise SettingError(f"factors {list(factors)}: give 1 to {MOST_FACTORS} different names")
    if predictions.ndim != len(factors) + 2 or predictions.shape[-2] < 2:
        raise SettingError(
            f"predictions of shape {predictions.shape} with factors {', '.join(factors)}: give an "
            "axis for each factor, then two or more examples, then classes"
        )
    for name, levels in zip(factors, predictions.shape, strict=False):
        if levels < 2:
            raise SettingError(
                f"{counted(levels, 'draw')} of {name}: give two or more, or leave that factor out"
            )
    outcomes = outcomes_of(targets, predictions.shape[-2:])
    errors = predictions.astype(np.float64) - outcomes
    if not np.isfinite(errors).all():
        raise SettingError(
            "predictions or targets are not finite: leave out models that diverged, with all "
            "others of their draw"
        )
    return errors, outcomes


def outcomes_of(targets: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Outcomes (N, C) of classes (N,), one-hot, or of numbers (N, C); SettingError for others.

    Args:
        targets: the classes or the numbers.
        shape: (N, C).
    """
    num_examples, num_classes = shape
    if targets.shape == (num_examples,) and np.issubdtype(targets.dtype, np.integer):
        if not ((targets >= 0) & (targets < num_classes)).all():
            raise SettingError(
                f"classes from {targets.min()} to {targets.max()}: there are predictions of "
                f"{num_classes} classes; give 0 to {num_classes - 1}"
            )
        one_hot: np.ndarray = np.eye(num_classes)[targets]
        return one_hot
    if targets.shape == (num_examples, num_classes):
        return targets.astype(np.float64)
    raise SettingError(
        f"targets of shape {targets.shape}: give classes of shape ({num_examples},) as whole "
        f"numbers, or numbers of shape ({num_examples}, {num_classes})"
    )


def _subsets(factors: Sequence[str]) -> list[tuple[str, ...]]:
    """All sets of factors, by size; first none."""
    return [chosen for size in range(len(factors) + 1) for chosen in combinations(factors, size)]


def _weights(factors: Sequence[str]) -> dict[str, np.ndarray]:
    """What each of the K parts counts for in a quantity: parts are by `_subsets`, the last bias².

    The first part is bias² + noise, those that follow are the components of the variance.
    """
    subsets = _subsets(factors)
    units = np.eye(len(subsets) + 1)
    components = dict(zip(subsets[1:], units[1:], strict=False))
    variance = sum(components.values(), np.zeros(len(units)))
    return {
        "score": units[0] + variance,
        "bias² + noise": units[0],
        "bias²": units[-1],
        "noise": units[0] - units[-1],
        "variance": variance,
        **{f"variance, {JOINED.join(subset)}": unit for subset, unit in components.items()},
    }


@dataclass(frozen=True)
class Parts:
    """The K parts of a decomposition, and what they are without each draw and on each example.

    by_example: (N, K); their mean is the estimate. without: for each factor that has enough draws
    the parts without each of them, (levels, K).
    """

    by_example: np.ndarray
    without: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, errors: np.ndarray, biases: np.ndarray | None) -> Parts:
        """The parts of p − y and, where that is known, of p − E y: both [*factors, N, C]."""

        def mean_without(axis: int, level: int) -> np.ndarray:
            fewer = None if biases is None else np.delete(biases, level, axis)
            mean: np.ndarray = _parts_by_example(np.delete(errors, level, axis), fewer).mean(0)
            return mean

        without = tuple(
            np.array([mean_without(axis, level) for level in range(levels)])
            for axis, levels in enumerate(errors.shape[:-2])
            if levels >= FEWEST_LEVELS
        )
        return cls(_parts_by_example(errors, biases), without)

    def less(self, other: Parts) -> Parts:
        """These parts less others', draw by draw and example by example."""
        without = zip(self.without, other.without, strict=True)
        return Parts(
            self.by_example - other.by_example,
            tuple(mine - theirs for mine, theirs in without),
        )

    def estimate(self, weights: np.ndarray) -> Estimate:
        """A sum of the parts, each times its weight, with its error."""
        of_examples = self.by_example @ weights  # (N,)
        num_examples = len(of_examples)
        squares = [of_examples.var(ddof=1) / num_examples]
        dofs = [num_examples - 1]
        for parts in self.without:
            left_out = parts @ weights  # (levels,)
            levels = len(left_out)
            # the jackknife's (L − 1)/L Σ (x₋ₗ − mean)²
            squares.append((levels - 1) / levels * np.square(left_out - left_out.mean()).sum())
            dofs.append(levels - 1)
        variance = float(sum(squares))
        if variance == 0:
            return from_stderr(float(of_examples.mean()), 0.0, num_samples=num_examples)
        terms = [square**2 / dof for square, dof in zip(squares, dofs, strict=True)]
        return from_stderr(
            float(of_examples.mean()),
            math.sqrt(variance),
            num_samples=num_examples,
            dof=variance**2 / sum(terms),  # Satterthwaite's
        )


def _parts_by_example(errors: np.ndarray, biases: np.ndarray | None) -> np.ndarray:
    """bias² + noise, each component of the variance, and bias², of each example: (N, K)."""
    products = _products(errors)  # V_T
    subsets = list(products)
    parts = [
        sum((-1) ** (len(subset) - len(within)) * products[within] for within in _within(subset))
        for subset in subsets
    ]
    # one that is not known counts for nothing, and is not shown
    squared_bias = np.zeros(len(parts[0])) if biases is None else _products(biases)[()]
    return np.stack([*parts, squared_bias], axis=1)


def _products(errors: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """V_T of each example (N,) by the axes T: the mean product of pairs that share these alone."""
    axes = tuple(range(errors.ndim - 2))
    subsets = [chosen for size in range(len(axes) + 1) for chosen in combinations(axes, size)]
    at_least = {}  # sums over the pairs, each with itself among them, that share T or more
    for subset in subsets:
        others = tuple(axis for axis in axes if axis not in subset)
        sums = errors.sum(axis=others)  # [*T, N, C]
        at_least[subset] = np.square(sums).sum(axis=(*range(len(subset)), -1))
    products = {}
    for subset in subsets:
        total = sum(
            (-1) ** (len(beyond) - len(subset)) * at_least[beyond]
            for beyond in subsets
            if set(subset) <= set(beyond)
        )
        pairs = math.prod(
            levels if axis in subset else levels * (levels - 1)
            for axis, levels in enumerate(errors.shape[:-2])
        )
        products[subset] = total / pairs
    return products


def _within(subset: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All subsets of a set of axes, itself among them."""
    return [chosen for size in range(len(subset) + 1) for chosen in combinations(subset, size)]
