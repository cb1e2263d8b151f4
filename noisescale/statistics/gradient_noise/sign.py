"""The noise scale of sign descent, from sums of gradients over folds of examples."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from noisescale.errors import SettingError
from noisescale.statistics.estimate import Estimate, exact, from_stderr, jsonable, ratio
from noisescale.statistics.sample import Sample

# Folds, of which each is held against the sign of the others' sum: with more of them signs are of
# nearly all examples, with fewer there is less to keep
FOLDS = 8

SIGN_QUANTITIES = {
    "gradient_norm": "‖G‖₁",
    "largest_gradient_norm": "‖ḡ‖₁, too large",
    "noise_norm": "‖σ‖₁",
    "simple": "B_ℓ1 = ‖σ‖₁²/‖G‖₁²",
}


@dataclass(frozen=True, kw_only=True)
class SignNoise:
    """The noise of a gradient in the geometry of sign descent, by ℓ₁ norms.

    Attributes:
        gradient_norm: ‖G‖₁ = Σ_j |G_j|, each coordinate with the sign that the other folds give;
            its interval reaches up to where that of largest_gradient_norm does.
        largest_gradient_norm: Σ_j |ḡ_j|, biased up where noise dominates: ‖G‖₁ lies between the
            expected values of these two.
        noise_norm: ‖σ‖₁ = Σ_j σ_j, with σ_j² the variance of a coordinate among examples.
        simple: B_ℓ1 = ‖σ‖₁²/‖G‖₁² in examples; its interval reaches down to where ‖G‖₁ is
            largest_gradient_norm.
    """

    gradient_norm: Estimate
    largest_gradient_norm: Estimate
    noise_norm: Estimate
    simple: Estimate

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: the key `sign` of `noisescale measure-noise --json`."""
        stored: dict[str, Any] = jsonable(vars(self))
        return stored


class FoldWeights(NamedTuple):
    """What the examples of K folds count for in a weighted mean, by r_i = w_i/w̄ of all of them.

    Attributes:
        relative: Σ r_i over each fold (K,).
        squares: Σ r_i² (K,).
        twice: Σ r_i² g_i, coordinate by coordinate (K, P).
    """

    relative: np.ndarray
    squares: np.ndarray
    twice: np.ndarray


def sign_noise(
    sums: np.ndarray,
    square_sums: np.ndarray,
    counts: np.ndarray,
    *,
    sample: Sample,
    weights: FoldWeights | None = None,
) -> SignNoise:
    """‖G‖₁, ‖σ‖₁ and B_ℓ1 = ‖σ‖₁²/‖G‖₁², from sums over K folds of examples drawn at random.

    Steps along the sign of the gradient descend in the ℓ_∞ norm, in which the noise of a batch of B
    is ‖σ‖₁/√B beside ‖G‖₁ (Bernstein et al. 2018, arXiv 1802.04434, theorem 1); they are equal at B
    = B_ℓ1. Both norms are of absolute values, and biased. |ḡ_j| is biased up, by up to .8 of its
    standard error where G_j is zero; Σ_k sign(ḡ_j of the other folds)·(ḡ_j of fold k)/K is right
    there and where the sign is sure, and biased down between, by up to .34 standard errors at |G_j|
    of .75. For a data set, of which n/N is measured, the first has the weight n/N and the second
    the rest. σ̂_j is biased down by (κ_j − 1)/(8n) of itself, κ_j its kurtosis; what of that goes as
    1/n is taken out, by the folds (jackknife). Errors are of estimates without each fold in turn.
    Of a weighted mean σ_j² is that of r_i (g_ij − G_j), the influence of an example on it.

    Args:
        sums: Σ g_i over each fold (K, P), of the gradients' P coordinates; with weights Σ r_i g_i.
        square_sums: Σ g_i², coordinate by coordinate (K, P); with weights Σ r_i² g_i².
        counts: examples in each fold (K,).
        sample: of which population the folds together are a sample.
        weights: of the examples; None: all count alike.

    Returns:
        The norms and the noise scale, Student's t and Fieller's intervals with K − 1 degrees of
        freedom.

    Raises:
        SettingError: fewer than 3 folds, a fold of fewer than 2 examples, or folds of which all
            but one have no weight.
    """
    num_folds = len(counts)
    if num_folds < 3 or counts.min() < 2:
        raise SettingError(
            f"{num_folds} folds of {counts.min()} examples at least: give 3 or more, of 2 or more"
        )
    if weights is None:
        weights = FoldWeights(relative=counts, squares=counts, twice=sums)
    if not (weights.relative.sum() - weights.relative > 0).all():
        raise SettingError(
            "all weight lies in one fold: give more examples whose weight is above zero"
        )
    share = 1 - sample.remaining
    n = sample.num_examples
    folds = _Folds(sums, square_sums, counts, *weights)
    largest = folds.plain_norm()
    norm = (1 - share) * folds.crossed_norm() + share * largest
    noise = folds.noise_norm(sample)
    without = []  # of each fold: the three norms
    for fold in range(num_folds):
        rest = folds.without(fold)
        naive = rest.plain_norm()
        of_norm = (1 - share) * rest.crossed_norm() + share * naive
        without.append((rest.noise_norm(sample), of_norm, naive))
    replicates = np.array(without)  # (K, 3)
    # bias/n and bias/(n − n/K) differ by bias/n/(K − 1)
    unbiased = noise + sample.remaining * (num_folds - 1) * (noise - replicates[:, 0].mean())
    spread = replicates - replicates.mean(0)
    covariance = sample.remaining * (num_folds - 1) / num_folds * spread.T @ spread  # (3, 3)
    dof = num_folds - 1
    root = ratio(unbiased, norm, covariance[:2, :2], num_samples=n, dof=dof)
    least = ratio(unbiased, largest, covariance[::2, ::2], num_samples=n, dof=dof)
    of_crossed, of_largest = (
        _estimate(value, covariance[place, place], n, dof)
        for place, value in ((1, norm), (2, largest))
    )
    return SignNoise(
        # up to where the other bias lies
        gradient_norm=replace(of_crossed, high=max(of_crossed.high, of_largest.high)),
        largest_gradient_norm=of_largest,
        noise_norm=_estimate(unbiased, covariance[0, 0], n, dof),
        simple=_squared(root, low=least.low),
    )


class _Folds(NamedTuple):
    """Sums over folds, as `sign_noise` and `FoldWeights` have them."""

    sums: np.ndarray
    square_sums: np.ndarray
    counts: np.ndarray
    relative: np.ndarray
    squares: np.ndarray
    twice: np.ndarray

    def without(self, fold: int) -> _Folds:
        """All but one of them."""
        return _Folds(*(np.delete(values, fold, axis=0) for values in self))

    def plain_norm(self) -> float:
        """Σ_j |ḡ_j|."""
        return float(np.abs(self.sums.sum(0)).sum() / self.relative.sum())

    def crossed_norm(self) -> float:
        """Σ_j of each fold's mean gradient times the sign of the other folds' sum, over folds."""
        total = self.sums.sum(0)
        along = sum(float((np.sign(total - own) * own).sum()) for own in self.sums)
        return along / float(self.relative.sum())

    def noise_norm(self, sample: Sample) -> float:
        """Σ_j σ̂_j of the sample's population."""
        n, weight = int(self.counts.sum()), float(self.relative.sum())
        mean = self.sums.sum(0) / weight
        # Σ r²(g − ḡ)², which rounding may take below zero
        squares = self.square_sums.sum(0) - 2 * mean * self.twice.sum(0)
        squares = np.maximum(squares + mean**2 * self.squares.sum(), 0.0)
        variances = squares * (n / weight) ** 2 / (n - 1)
        return float(np.sqrt(variances * sample.variance_factor).sum())


def _estimate(value: float, variance: float, num_samples: int, dof: int) -> Estimate:
    if variance == 0:
        return exact(value, num_samples=num_samples)
    return from_stderr(value, math.sqrt(variance), num_samples=num_samples, dof=dof)


def _squared(root: Estimate, *, low: float) -> Estimate:
    """The square of a ratio of norms, its interval down to that of another such ratio."""
    ends = [end for end in (root.low, low) if not math.isnan(end)]
    return Estimate(
        value=root.value**2,
        stderr=2 * abs(root.value) * root.stderr,
        low=max(min(ends), 0.0) ** 2 if ends else math.nan,
        high=root.high**2,
        num_samples=root.num_samples,
    )
