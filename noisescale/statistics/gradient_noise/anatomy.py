"""Who carries the gradient noise: a few examples, some classes, those the model gets wrong."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.display import Shown, Summary, counted, share
from noisescale.statistics.estimate import Estimate, jsonable, ratio, rescaled, undefined
from noisescale.statistics.sample import (
    Population,
    Sample,
    Spread,
    excess,
    reaches,
    squared_deviations,
    with_log_ratio,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

NOISIEST = 0.01  # of the examples, called the noisiest
NAMED = (0.001, 0.01, 0.1, 0.5)  # shares of the examples, whose share of tr Σ is told
DIGITS = 16  # of a digest, of which no two samples that anybody compares have the same
POINTS = 100  # of a Lorenz curve, evenly in logarithms: a picture shows no more


class Group(NamedTuple):
    """Some of the examples, such as those of a class: their share of all, and of tr Σ."""

    examples: float
    variance: float


@dataclass(frozen=True, kw_only=True, repr=False)
class NoiseAnatomy(Shown):
    """Who carries tr Σ: the squared deviations q_i = |g_i − ḡ|² of the examples.

    Attributes:
        num_examples: n, measured on.
        population_size: N, of the split.
        lorenz: the Lorenz curve, from the noisiest example on: columns examples, a share of them,
            and variance, the share of tr Σ that as many of the noisiest hold.
        effective_examples: n_eff = (Σq)²/Σq², from 1 to n.
        sample_digest: of the indices of all examples measured, which is the same for the same ones.
        noisiest: indices in the split of the noisiest 1 % of the examples, one at least, by
            falling q.
        importance: what the best importance sampling would leave of tr Σ, from 0 to 1. An example
            is then drawn with a chance p_i ∝ |g_i| and its gradient divided by n p_i, which leaves
            ((mean |g|)² − |G|²)/(mean |g|² − |G|²) = 1 − Var |g|/tr Σ (Needell, Srebro and Ward
            2014; Katharopoulos and Fleuret 2018).
        importance_simple: B_simple under it, in examples: undefined where |G|² is not resolved.
        per_layer: a row for each parameter tensor: its shares of tr Σ, variance, and of |G|²,
            signal, which is nan where |G|² is not resolved.
        per_class: a row for each class of the targets: its shares of the examples and of tr Σ.
            None: the targets are no classes.
        between_classes: Σ_c p_c |G_c − G|²/tr Σ, of what classes' mean gradients differ by; the
            rest is within classes. None: the targets are no classes.
        misclassified: the examples that the model takes for another class. None: it has no classes.
        components: |G|², tr Σ and B_simple of the first linear layer's weights along the principal
            components of its inputs, in groups that double; None: there is no such layer.
        indices: of the examples in their split (n,); None: read back from JSON, without them.
        deviations: q_i (n,), in the order of the indices; None likewise.
    """

    num_examples: int
    population_size: int
    lorenz: pd.DataFrame = field(compare=False)
    effective_examples: float
    sample_digest: str
    noisiest: np.ndarray = field(compare=False)
    importance: Estimate
    importance_simple: Estimate
    per_layer: pd.DataFrame = field(compare=False)
    per_class: pd.DataFrame | None = field(default=None, compare=False)
    between_classes: Estimate | None = None
    misclassified: Group | None = None
    components: pd.DataFrame | None = field(default=None, compare=False)
    indices: np.ndarray | None = field(default=None, compare=False)
    deviations: np.ndarray | None = field(default=None, compare=False)

    def variance_share(self, of_examples: float) -> float:
        """The share of tr Σ that the noisiest examples hold, by the Lorenz curve.

        Args:
            of_examples: which share of the examples, above 0 and up to 1; of one at least.

        Raises:
            SettingError: another share.
        """
        if not 0 < of_examples <= 1:
            raise SettingError(f"share {of_examples!r} of the examples: give above 0, up to 1")
        curve = self.lorenz
        return float(np.interp(of_examples, curve["examples"], curve["variance"]))

    def overlap(self, other: NoiseAnatomy) -> float:
        """The share of the noisiest 1 % that are among the noisiest 1 % of another measurement.

        By chance it is 1 %, on average.

        Args:
            other: of the same examples, as at another checkpoint or of another seed's model.

        Raises:
            SettingError: it is of other examples.
        """
        if self.sample_digest != other.sample_digest:
            raise SettingError(
                "the overlap of two anatomies of different examples: measure both with one seed "
                "and as many examples"
            )
        return float(np.isin(self.noisiest, other.noisiest).mean())

    def to_frame(self) -> pd.DataFrame:
        """The Lorenz curve: a copy of `lorenz`."""
        return self.lorenz.copy()

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: the entry `anatomy` of `noisescale measure-noise --anatomy --json`."""
        record: dict[str, Any] = jsonable(
            {
                "effective_examples": self.effective_examples,
                "lorenz": self.lorenz,
                "sample_digest": self.sample_digest,
                "noisiest": self.noisiest.tolist(),
                "importance": self.importance,
                "importance_simple": self.importance_simple,
                "between_classes": self.between_classes,
                "misclassified": self.misclassified and self.misclassified._asdict(),
                "per_class": self.per_class,
                "per_layer": self.per_layer,
                "components": self.components,
            }
        )
        return record

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws the Lorenz curve: which share of tr Σ which share of the examples hold.

        Args:
            ax: drawn on; None: new ones, in a figure of pyplot's.

        Returns:
            The Axes.
        """
        from noisescale.plots.anatomy import draw_anatomy  # matplotlib takes 0.8 s to load

        return draw_anatomy(self.to_dict(), ax)

    def _summary(self) -> Summary:
        rows = [
            (f"noisiest {_per_cent(part)}", _per_cent(self.variance_share(part)))
            for part in self.named_shares
        ]
        rows.append(("n_eff", f"{self.effective_examples:,.3g}"))
        if self.misclassified is not None:
            wrong = self.misclassified
            rows.append((f"misclassified, {_per_cent(wrong.examples)}", _per_cent(wrong.variance)))
        if self.between_classes is not None:
            rows.append(("between classes", str(self.between_classes)))
        rows.append(("left by importance sampling", str(self.importance)))
        rows.append(("B_simple under it", str(self.importance_simple)))
        count = share(self.num_examples, self.population_size)
        return Summary(title=f"Shares of tr Σ over {count} examples", rows=rows)

    @property
    def named_shares(self) -> list[float]:
        """Shares of the examples that are worth telling, of one example at least."""
        return [part for part in NAMED if part * self.num_examples >= 1]


def noise_anatomy(
    squared_norms: np.ndarray,
    projections: np.ndarray,
    mean_squares: np.ndarray,
    *,
    population: Population,
    population_size: int,
    names: Sequence[str],
    indices: np.ndarray,
    classes: np.ndarray | None = None,
    within: np.ndarray | None = None,
    class_sizes: dict[int, int] | None = None,
    wrong: np.ndarray | None = None,
    components: pd.DataFrame | None = None,
) -> NoiseAnatomy:
    """The anatomy from statistics of n per-example gradients g_i with mean ḡ.

    Estimates are ratios of unbiased ones, with errors by influence functions, as those of
    `noise_scale`.

    Args:
        squared_norms: |g_i|² of each of L parameter tensors (n, L).
        projections: g_i·ḡ in all (n,).
        mean_squares: |ḡ|² of each tensor (L,).
        population: "dataset" or "distribution", see `NoiseScale`.
        population_size: N of the data set that the examples are a random subset of.
        names: of the tensors.
        indices: of the examples in their split (n,).
        classes: of the examples (n,), whole numbers; None: they have none.
        within: |g_i − ḡ_c|² (n,), of the deviation from the mean of an example's own class; with
            classes.
        class_sizes: how many examples of each class the split has; with classes.
        wrong: which examples the model takes for another class (n,); None: it has no classes.
        components: as of the result.

    Returns:
        The anatomy.

    Raises:
        SettingError: fewer than 2 examples, or classes without what goes with them.
        MeasurementError: all gradients are one, so that there is no noise to divide, or some are
            not finite.

    Examples:
        >>> import numpy as np
        >>> from noisescale import noise_anatomy
        >>> gradients = 1 + np.random.default_rng(0).standard_t(4, (400, 10))  # any (n, P)
        >>> mean = gradients.mean(0)
        >>> noise_anatomy(
        ...     (gradients**2).sum(1, keepdims=True),
        ...     gradients @ mean,
        ...     np.array([mean @ mean]),
        ...     population="distribution",
        ...     population_size=400,
        ...     names=["weight"],
        ...     indices=np.arange(400),
        ... )
        Shares of tr Σ over all 400 examples
          noisiest 1 %                 6.66 %
          noisiest 10 %                28.6 %
          noisiest 50 %                74.5 %
          n_eff                        231
          left by importance sampling  0.892 ± 0.013 (0.840–0.920)
          B_simple under it            1.74 ± 0.10 (1.55–1.96)
    """
    import pandas as pd

    n = len(squared_norms)
    if n < 2:
        raise SettingError(f"{counted(n, 'example')}: a variance takes at least 2")
    if classes is not None and (within is None or class_sizes is None):
        raise SettingError("classes alone: give within and class_sizes with them")
    sample = Sample(num_examples=n, population_size=population_size, population=population)
    total, mean_square = squared_norms.sum(1), float(mean_squares.sum())
    if not (np.isfinite(total).all() and np.isfinite(projections).all()):
        raise MeasurementError("gradients that are not finite have no noise to divide")
    deviations = np.maximum(squared_deviations(total, projections, mean_square), 0.0)  # rounding
    if not deviations.sum() > 0:
        raise MeasurementError("all gradients are one: there is no noise whose parts could be told")
    norms = np.sqrt(total)
    # unbiased: tr Σ, |G|², and Var |g|, which is what importance sampling takes of tr Σ
    unbiased = excess(total, mean_square).variance
    variance = sample.variance_factor * unbiased
    signal = mean_square - sample.mean_factor * unbiased
    taken = sample.variance_factor * float(norms.var(ddof=1))
    # what each example contributes to them
    on_others = (n * projections - total) / (n - 1)
    of_variance, of_signal = total - 2 * on_others, 2 * on_others
    of_taken = np.square(norms - norms.mean())
    shares = deviations / deviations.sum()
    between, per_class = None, None
    if classes is not None and within is not None and class_sizes is not None:
        per_class = _per_class(classes, shares)
        within_all = _within(classes, within, class_sizes, sample)
        between = undefined(num_samples=n)
        if not math.isnan(within_all):
            between = _ratio(
                np.array([variance - within_all, variance]),
                np.stack([of_variance - within, of_variance]),
                sample,
            )
    of_tensors = (squared_norms.mean(0) - mean_squares) * n / (n - 1)
    signals = mean_squares - sample.mean_factor * of_tensors
    importance_simple = _ratio(
        np.array([variance - taken, signal]),
        np.stack([of_variance - of_taken, of_signal]),
        sample,
    )
    resolved = np.isfinite(importance_simple.value)
    return NoiseAnatomy(
        num_examples=n,
        population_size=sample.population_size,
        lorenz=_lorenz(shares),
        sample_digest=hashlib.sha256(np.sort(indices).tobytes()).hexdigest()[:DIGITS],
        noisiest=indices[np.argsort(-deviations, kind="stable")[: _count(NOISIEST, n)]],
        indices=indices,
        deviations=deviations,
        effective_examples=float(deviations.sum() ** 2 / np.square(deviations).sum()),
        importance=_rest(
            _ratio(np.array([taken, variance]), np.stack([of_taken, of_variance]), sample)
        ),
        importance_simple=importance_simple,
        per_class=per_class,
        between_classes=between,
        misclassified=None if wrong is None else Group(wrong.mean(), float(shares[wrong].sum())),
        per_layer=pd.DataFrame(
            {
                "parameter": names,
                "variance": of_tensors / of_tensors.sum(),
                "signal": signals / signals.sum() if resolved else np.nan,
            }
        ),
        components=components,
    )


def _lorenz(shares: np.ndarray) -> pd.DataFrame:
    """The curve of shares of tr Σ (n,) in some 100 rows, from one example to all."""
    import pandas as pd

    n = len(shares)
    counts = [_count(part, n) for part in NAMED]
    counts += np.geomspace(1, n, POINTS).round().astype(int).tolist()
    chosen = np.unique(counts)
    held = np.sort(shares)[::-1].cumsum()
    return pd.DataFrame({"examples": chosen / n, "variance": held[chosen - 1]})


def _ratio(values: np.ndarray, influences: np.ndarray, sample: Sample) -> Estimate:
    """The ratio of two estimates (2,) from what each example contributes to them (2, n)."""
    n = sample.num_examples
    above, below = map(float, values)
    if not sample.remaining:
        return ratio(above, below, np.zeros((2, 2)), num_samples=n, dof=n - 1)
    covariance = np.cov(influences) * sample.remaining / n
    estimate = ratio(above, below, covariance, num_samples=n, dof=n - 1)
    of_above, of_below = np.eye(2)
    weights = with_log_ratio(of_above, of_below, values)
    spread = Spread(values=influences, share=sample.remaining).along(weights)
    found = reaches([spread], dof=n - 1)
    return estimate if found is None else rescaled(estimate, found[2], dof=n - 1)


def _rest(share: Estimate) -> Estimate:
    """What a share leaves of one."""
    return replace(share, value=1 - share.value, low=1 - share.high, high=1 - share.low)


def _within(
    classes: np.ndarray, within: np.ndarray, class_sizes: dict[int, int], sample: Sample
) -> float:
    """Σ_c p_c tr Σ_c, the noise within the classes; nan where no class has two examples.

    A class of which one example was drawn is taken to be as noisy as the others are on average; one
    that has no more in the data set has none of it. Unbiased but for that.
    """
    total, alone, known = 0.0, 0, 0  # examples that are alone in their class, and the others
    for number, size in class_sizes.items():
        rows = classes == number
        count = int(rows.sum())
        is_finite = sample.population == "dataset"
        if count > 1:
            factor = 1 - 1 / size if is_finite else 1.0
            total += factor * float(within[rows].sum()) / (count - 1) * count / len(classes)
            known += count
        elif count == 1 and not (is_finite and size == 1):
            alone += 1
    if alone and not known:
        return math.nan
    return total * (1 + alone / known) if alone else total


def _per_class(classes: np.ndarray, shares: np.ndarray) -> pd.DataFrame:
    """A row for each class: its shares of the examples and of tr Σ."""
    import pandas as pd

    numbers = np.unique(classes)
    return pd.DataFrame(
        {
            "class": numbers,
            "examples": [(classes == number).mean() for number in numbers],
            "variance": [shares[classes == number].sum() for number in numbers],
        }
    )


def _count(of_examples: float, num_examples: int) -> int:
    """As many examples as a share of them comes to, one at least."""
    return max(math.ceil(of_examples * num_examples - 1e-9), 1)  # .1 % of 1,000 is one


def _per_cent(value: float) -> str:
    """Such as "0.1 %"."""
    return f"{100 * value:.3g} %"
