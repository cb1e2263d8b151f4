"""From noise probes to tr(HΣ), GᵀHG, B_noise and the learning rates they predict, with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from noisescale.statistics.estimate import Estimate, from_stderr, ratio, undefined
from noisescale.statistics.sample import Population


@dataclass(frozen=True, kw_only=True)
class CurvatureNoise:
    """Estimates of (|G|², tr(HΣ), GᵀHG) by one sample, and what McCandlish et al. 2018 predict from them.

    values (3,), covariance (3, 3) in that order; dof: degrees of freedom of the t intervals.
    num_examples, hessian_examples: gradients measured, and examples H was taken on. num_matvecs: products.
    """

    values: np.ndarray
    covariance: np.ndarray
    dof: float
    num_examples: int
    hessian_examples: int
    num_matvecs: int

    @property
    def covariance_trace(self) -> Estimate:
        """tr(HΣ), of either sign."""
        return self._combination(np.array([0.0, 1.0, 0.0]))

    @property
    def gradient_curvature(self) -> Estimate:
        """GᵀHG, of either sign."""
        return self._combination(np.array([0.0, 0.0, 1.0]))

    @property
    def full(self) -> Estimate:
        """B_noise = tr(HΣ)/GᵀHG (2.8); undefined unless GᵀHG is significantly above zero."""
        return self._ratio(np.array([0.0, 1.0, 0.0]), np.array([0.0, 0.0, 1.0]))

    @property
    def max_learning_rate(self) -> Estimate:
        """ε_max = |G|²/GᵀHG (2.6): the learning rate of steepest descent without noise."""
        return self._ratio(np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]))

    def optimal_learning_rate(self, batch_size: int) -> Estimate:
        """ε_opt(B) = ε_max/(1 + B_noise/B) (2.6): the one step at batch size B that lowers the loss most."""
        return self._ratio(np.array([1.0, 0.0, 0.0]), np.array([0.0, 1 / batch_size, 1.0]))

    def _combination(self, weights: np.ndarray) -> Estimate:
        stderr = math.sqrt(max(float(weights @ self.covariance @ weights), 0.0))
        return from_stderr(
            float(weights @ self.values), stderr, num_samples=self.num_examples, dof=self.dof
        )

    def _ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
        if self._combination(denominator).high < 0:
            return undefined(num_samples=self.num_examples)
        both = np.stack([numerator, denominator])
        x, y = both @ self.values
        return ratio(
            float(x),
            float(y),
            both @ self.covariance @ both.T,
            num_samples=self.num_examples,
            dof=self.dof,
        )


def curvature_noise(
    blocks: np.ndarray,
    *,
    squared_norm: float,
    mean_forms: np.ndarray,
    shares: np.ndarray,
    population: Population,
    population_size: int,
    num_examples: int,
    hessian_examples: int,
    num_matvecs: int,
) -> CurvatureNoise:
    """The estimates from K blocks of gradients and J groups of the Hessian's examples.

    blocks (K, 5 + J): each block's share of the gradients, ḡ_b·ḡ and ḡ_b·Hḡ with the mean ḡ of all, what
        the control variate takes out of its probe u and what it puts in instead, and uᵀH_ju of every group.
    squared_norm: |G|². mean_forms (J,): ḡᵀH_jḡ. shares (J,): the groups' shares of the Hessian's examples.
    num_matvecs: to be noted.

    `noisescale.measure.noise_probes` says what they estimate.
    """
    is_dataset = population == "dataset"
    block_shares, on_mean, on_image, deflated, variances = blocks.T[:5]
    forms = blocks[:, 5:]  # (K, J)
    num_blocks, num_groups = forms.shape
    per_example = 1 / num_examples - (1 / population_size if is_dataset else 0.0)  # of Var ḡ in Σ
    finite = 1 - 1 / population_size if is_dataset else 1.0  # Σ with 1/N

    remainder = forms @ shares - deflated
    traces = remainder + variances  # (K,), each unbiased for tr(HΣ)
    trace = block_shares @ traces
    curvature = mean_forms @ shares - per_example * trace
    of_blocks = np.stack([2 * on_mean, finite * traces, 2 * on_image - per_example * traces])
    signs_alone = np.stack([0 * remainder, finite * remainder, -per_example * remainder])
    sampled = 1 - num_examples / population_size if is_dataset else 1.0
    covariance = sampled * _covariance_of_mean(of_blocks, block_shares)
    covariance += (1 - sampled) * _covariance_of_mean(signs_alone, block_shares)

    unseen = 1 - hessian_examples / population_size if is_dataset else 1.0
    of_groups = block_shares @ (forms - (deflated - variances)[:, None])  # (J,), tr(H_jΣ)
    groups = np.stack([0 * of_groups, finite * of_groups, mean_forms - per_example * of_groups])
    covariance += unseen * _covariance_of_mean(groups, shares)
    return CurvatureNoise(
        values=np.array([squared_norm, finite * trace, curvature]),
        covariance=covariance,
        dof=(min(num_blocks, num_groups) if unseen else num_blocks) - 1,
        num_examples=num_examples,
        hessian_examples=hessian_examples,
        num_matvecs=num_matvecs,
    )


def _covariance_of_mean(groups: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Of the mean of independent columns (3, J) weighted by their shares (J,): (3, 3), nan for one."""
    count = len(shares)
    if count < 2:
        return np.full((len(groups), len(groups)), np.nan)
    weighted = (groups - (groups @ shares)[:, None]) * shares
    covariance: np.ndarray = weighted @ weighted.T * count / (count - 1)
    return covariance
