"""From noise probes to tr(HΣ), GᵀHG, B_noise and learning rates, with their errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from noisescale.statistics.display import one_line
from noisescale.statistics.estimate import Estimate, Reach, from_stderr, ratio, stretched, undefined
from noisescale.statistics.sample import Sample, Spread, reaches
from noisescale.statistics.stability.curves import batch_noise_factor

# The effective number of H's groups, beside all, below which few examples hold most of tr(HΣ);
# normal examples leave nine tenths
CONCENTRATED = 0.5


@dataclass(frozen=True, kw_only=True, repr=False)
class CurvatureNoise:
    """|G|², tr(HΣ) and GᵀHG by one sample, and what McCandlish et al. 2018 predict from them.

    Attributes:
        values: the three (3,), in this order.
        covariance: of the three (3, 3).
        dof: degrees of freedom of the t intervals.
        num_examples: gradients measured.
        hessian_examples: examples that H was taken on.
        num_matvecs: Hessian products spent, in units of one on all of its examples.
        population_size: N of the data set that batches are drawn from, without replacement; None:
            batches of independent examples.
        spreads: of the three, over blocks of gradients and groups of H's examples, for intervals
            where they are skew, see `reaches`; none: Student's t.
        notes: what a reader should know.
    """

    values: np.ndarray
    covariance: np.ndarray
    dof: float
    num_examples: int
    hessian_examples: int
    num_matvecs: int
    population_size: int | None = None
    spreads: tuple[Spread, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return one_line(
            self,
            f"tr(HΣ) {self.covariance_trace}",
            f"GᵀHG {self.gradient_curvature}",
            f"B_noise {self.full}",
        )

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
        """ε_opt(B) = ε_max/(1 + p·B_noise) (2.6), of the step that lowers the loss most.

        p as in `batch_noise_factor`: 1/B of independent examples, as in the paper; of a data set's
        batches (N − B)/(B(N − 1)), so that ε_opt(N) = ε_max.

        Args:
            batch_size: B.

        Returns:
            The learning rate; undefined unless GᵀHG + p·tr(HΣ) is significantly above zero.

        Raises:
            SettingError: a batch larger than the data set.
        """
        noise = batch_noise_factor(batch_size, population_size=self.population_size)
        return self._ratio(np.array([1.0, 0.0, 0.0]), np.array([0.0, noise, 1.0]))

    def _combination(self, weights: np.ndarray) -> Estimate:
        stderr = math.sqrt(max(float(weights @ self.covariance @ weights), 0.0))
        return from_stderr(
            float(weights @ self.values),
            stderr,
            num_samples=self.num_examples,
            dof=self.dof,
            reach=self._reach(weights),
        )

    def _reach(self, weights: np.ndarray) -> Reach | None:
        """Of a combination's interval; None: Student's t."""
        found = reaches([spread.along(weights[None]) for spread in self.spreads], dof=self.dof)
        return None if found is None else found[0]

    def _ratio(self, numerator: np.ndarray, denominator: np.ndarray) -> Estimate:
        if self._combination(denominator).high < 0:
            return undefined(num_samples=self.num_examples)
        both = np.stack([numerator, denominator])
        x, y = both @ self.values
        by_fieller = ratio(
            float(x),
            float(y),
            both @ self.covariance @ both.T,
            num_samples=self.num_examples,
            dof=self.dof,
        )
        if self._reach(numerator) is None and self._reach(denominator) is None:
            return by_fieller
        # Not the resampled logarithm of the ratio, as for B_simple: the groups of H's examples, few
        # and common to both halves, hide how skew these are (coverage .67 of heavy tails for .92)
        return stretched(by_fieller, self._combination(numerator), self._combination(denominator))


class ProbeBlocks(NamedTuple):
    """What K blocks of gradients give, each with a noise probe u, and J groups of H's examples.

    Attributes:
        shares: of the gradients, in each block (K,); they sum to 1.
        on_mean: ḡ_b·ḡ (K,), of the block's mean gradient ḡ_b and the mean ḡ of all.
        on_image: ḡ_b·Hḡ (K,).
        deflated: Σ_k λ_k (u·v_k)² (K,), what the control variate takes out of the probe.
        variances: Σ_k λ_k Var(g·v_k) (K,), what it puts in instead.
        forms: uᵀH_j u (K, J), of each group's own Hessian H_j; nan where a probe was not taken with
            a group. Every block has as many groups, and every group as many blocks, or nearly.
        weight_bias: E[r_i d_i·Hḡ] (K,) of a weighted mean, see `Excess`; 0 of a plain one.
    """

    shares: np.ndarray
    on_mean: np.ndarray
    on_image: np.ndarray
    deflated: np.ndarray
    variances: np.ndarray
    forms: np.ndarray
    weight_bias: np.ndarray | float = 0.0


def curvature_noise(
    blocks: ProbeBlocks,
    *,
    squared_norm: float,
    mean_forms: np.ndarray,
    group_shares: np.ndarray,
    sample: Sample,
    hessian_examples: int,
    num_matvecs: int,
) -> CurvatureNoise:
    """The estimates from blocks of gradients; `measure.noise_parts.probes` says what they estimate.

    A form errs by its block, its group and for itself. The spread of blocks' means and that of
    groups' add up to the error, each with a little of the other, for a block has a part of the
    groups and a group a part of the blocks: of a block's variance 1/S counts twice, S groups to a
    block.

    Args:
        blocks: of the gradients, K of them.
        squared_norm: |G|².
        mean_forms: ḡᵀH_jḡ (J,).
        group_shares: of the Hessian's examples, in each of J groups (J,); they sum to 1.
        sample: of the gradients.
        hessian_examples: from the same population, on which H is taken.
        num_matvecs: Hessian products spent, in units of one on all its examples, to be noted.

    Returns:
        |G|², tr(HΣ) and GᵀHG with their joint covariance.
    """
    num_blocks, num_groups = blocks.forms.shape
    mean_factor, variance_factor = sample.mean_factor, sample.variance_factor
    remainder = _means(blocks.forms, group_shares) - blocks.deflated  # (K,)
    traces = remainder + blocks.variances  # (K,), each unbiased for tr(HΣ)
    trace = blocks.shares @ traces
    bias = float(blocks.shares @ np.broadcast_to(blocks.weight_bias, blocks.shares.shape))
    curvature = mean_forms @ group_shares - mean_factor * (trace - 2 * bias)

    # each block's part in (|G|², tr(HΣ), GᵀHG), by gradients and signs, and by the signs alone
    drawn = np.stack(
        [2 * blocks.on_mean, variance_factor * traces, 2 * blocks.on_image - mean_factor * traces]
    )
    signs = np.stack([0 * remainder, variance_factor * remainder, -mean_factor * remainder])
    covariance = sample.remaining * _covariance_of_mean(drawn, blocks.shares)
    covariance += (1 - sample.remaining) * _covariance_of_mean(signs, blocks.shares)

    # and each group's, with the Hessian's examples drawn
    exchanged = (blocks.deflated - blocks.variances)[:, None]
    group_traces = _means((blocks.forms - exchanged).T, blocks.shares)  # (J,)
    groups = np.stack(
        [
            0 * group_traces,
            variance_factor * group_traces,
            mean_forms - mean_factor * group_traces,
        ]
    )
    hessian_remaining = sample.of(hessian_examples).remaining
    spreads = (
        _spread(drawn, blocks.shares, sample.remaining),
        _spread(signs, blocks.shares, 1 - sample.remaining),
        _spread(groups, group_shares, hessian_remaining),
    )
    covariance += hessian_remaining * _covariance_of_mean(groups, group_shares)
    return CurvatureNoise(
        values=np.array([squared_norm, variance_factor * trace, curvature]),
        covariance=covariance,
        dof=(min(num_blocks, num_groups) if hessian_remaining else num_blocks) - 1,
        num_examples=sample.num_examples,
        hessian_examples=hessian_examples,
        num_matvecs=num_matvecs,
        population_size=sample.population_size if sample.population == "dataset" else None,
        spreads=spreads,
        notes=_notes(group_traces * group_shares) if hessian_remaining else (),
    )


def _means(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Of rows (K, J) with these shares (J,), of what is not nan: (K,)."""
    taken = ~np.isnan(values)
    means: np.ndarray = (np.where(taken, values, 0.0) @ shares) / (taken @ shares)
    return means


def _notes(parts: np.ndarray) -> tuple[str, ...]:
    """Whether a few of the groups of H's examples hold most of tr(HΣ), from their parts (J,)."""
    squares = float((parts**2).sum())
    if squares == 0 or np.abs(parts).sum() ** 2 / squares >= CONCENTRATED * len(parts):
        return ()
    return (
        "heavy tails: few of the Hessian's examples hold most of tr(HΣ), so that intervals of "
        "B_noise may be too narrow; raise --hessian-examples",
    )


def _spread(groups: np.ndarray, shares: np.ndarray, share: float) -> Spread:
    """Columns (3, J) as units that count alike, each times its share of the whole (J,)."""
    return Spread(values=(groups - (groups @ shares)[:, None]) * shares * len(shares), share=share)


def _covariance_of_mean(groups: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Of the mean of independent columns (3, J) with these shares (J,): (3, 3), nan for one."""
    num_groups = len(shares)
    if num_groups < 2:
        return np.full((len(groups), len(groups)), np.nan)
    weighted = (groups - (groups @ shares)[:, None]) * shares
    covariance: np.ndarray = weighted @ weighted.T * num_groups / (num_groups - 1)
    return covariance
