"""The noise of a weighted mean gradient Σ w_i g_i/Σ w_i, as of a loss over all tokens of a batch.

With r_i = w_i/w̄ and ĝ_i = r_i g_i, G = Σ w g/Σ w is the mean of the ĝ_i, and to first order in 1/B
the gradient of a batch of B examples errs by the mean of its d_i = r_i (g_i − G) = ĝ_i − r_i G: it
is a ratio of two means, and d_i is the influence of an example on it. So Σ = E[d dᵀ], and B_simple
= tr Σ/|G|² is in examples. What that leaves out is of relative order 1/B: of a batch of one the
gradient is g_i itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Weighting(NamedTuple):
    """What n examples count for in a mean, and q = (1/n) Σ r_i ĝ_i, the mean by twice the weight.

    Attributes:
        relative: r_i = w_i/w̄ (n,), whose mean is 1.
        on_mean: q·G of each of L parameter tensors (L,).
        on_examples: ĝ_i·q (n,), or by parameter tensor (n, L); it tells how tr Σ moves with G.
            None: without standard errors.
    """

    relative: np.ndarray
    on_mean: np.ndarray
    on_examples: np.ndarray | None = None

    @property
    def total(self) -> Weighting:
        """That of all parameter tensors together, as of one."""
        along = self.on_examples
        if along is not None and along.ndim == 2:
            along = along.sum(1)
        return Weighting(self.relative, self.on_mean.sum(keepdims=True), along)

    def of_tensor(self, index: int) -> Weighting:
        """That of one parameter tensor; without standard errors where they are of all together.

        Args:
            index: of the tensor.
        """
        along = self.on_examples
        along = along[:, index] if along is not None and along.ndim == 2 else None
        return Weighting(self.relative, self.on_mean[index : index + 1], along)


def squared_deviations(
    squared_norms: np.ndarray,
    projections: np.ndarray,
    mean_square: float,
    weighting: Weighting | None = None,
) -> np.ndarray:
    """|d_i|² (n,), without weights |g_i − ḡ|².

    Args:
        squared_norms: |ĝ_i|² (n,).
        projections: ĝ_i·G (n,).
        mean_square: |G|² of these examples, not corrected.
        weighting: of the examples; None: all count alike.
    """
    relative = 1.0 if weighting is None else weighting.relative
    deviations: np.ndarray = squared_norms - 2 * relative * projections + relative**2 * mean_square
    return deviations


class Excess(NamedTuple):
    """tr Σ̂ with 1/(n − 1), and what n·(|Ĝ|² − |G|²) is on average, Ĝ the mean of n examples.

    The two are one for a plain mean. A ratio is biased, E[Ĝ] = G − E[r_i d_i]/n + O(1/n²), so that
    the second is tr Σ − 2·E[r_i d_i·G].
    """

    variance: float
    of_norm: float


def excess(
    squared_norms: np.ndarray, mean_square: float, weighting: Weighting | None = None
) -> Excess:
    """What the noise of n examples adds to |G|², and their variance.

    Args:
        squared_norms: as for `squared_deviations`.
        mean_square: likewise.
        weighting: of the examples, as of one tensor; None: all count alike.
    """
    n = len(squared_norms)
    if weighting is None:
        plain = (float(squared_norms.mean()) - mean_square) * n / (n - 1)
        return Excess(plain, plain)
    on_mean = float(weighting.on_mean[0])  # E[r_i ĝ_i·G]
    drift = on_mean - float((weighting.relative**2).mean()) * mean_square  # E[r_i d_i·G]
    variance = float(squared_norms.mean()) - on_mean - drift
    return Excess(variance * n / (n - 1), (variance - 2 * drift) * n / (n - 1))


def weighted_influences(
    squared_norms: np.ndarray,
    projections: np.ndarray,
    mean_square: float,
    weighting: Weighting,
) -> np.ndarray | None:
    """What each example contributes to the errors of tr Σ and |G|², (2, n), to first order.

    tr Σ moves with an example as |d_i|² and, through w̄ and G, as −2 tr Σ·(r_i − 1) − 2 m·d_i, with
    m = E[r d]; |G|² as 2 d_i·G, here with G of the other examples.

    Args:
        squared_norms: as for `squared_deviations`.
        projections: likewise.
        mean_square: likewise.
        weighting: with its `on_examples`, without which there is no answer.
    """
    if weighting.on_examples is None:
        return None
    n, relative = len(squared_norms), weighting.relative
    deviations = squared_deviations(squared_norms, projections, mean_square, weighting)
    on_mean = projections - relative * mean_square  # d_i·G
    # m = q − E[r²]·G
    on_double = weighting.on_examples - relative * float(weighting.on_mean[0])  # d_i·q
    on_drift = on_double - (relative**2).mean() * on_mean  # d_i·m
    of_variance = deviations - 2 * deviations.mean() * (relative - 1) - 2 * on_drift
    of_norm = 2 * (on_mean - deviations / (n - relative))
    return np.stack([of_variance, of_norm])
