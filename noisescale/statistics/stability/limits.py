"""The largest curvature at which full-batch training is stable, by the optimizer's arithmetic."""

from __future__ import annotations


def limit_of_heavy_ball(
    learning_rate: float, *, momentum: float = 0.0, weight_decay: float = 0.0
) -> float:
    """2(1+m)/η − w, of θ ← θ − ηu with u ← mu + g + wθ.

    Args:
        learning_rate: η.
        momentum: m.
        weight_decay: w, which adds itself to every eigenvalue of the loss's Hessian.
    """
    return 2 * (1 + momentum) / learning_rate - weight_decay


def limit_of_averages(
    learning_rate: float, *, beta: float = 0.0, weight_decay: float = 0.0
) -> float:
    """(1+β)/(1−β)·(2/η − w), of θ ← (1 − ηw)θ − ηm with m ← βm + (1−β)g, as Adam's and AdamW's.

    For g = sθ the two-step recursion has determinant (1 − ηw)β and trace 1 − ηw + β − η(1−β)s; it
    leaves the unit circle where trace = −1 − determinant. Without decay it is (2+2β)/((1−β)η)
    (Cohen et al. 2022, arXiv 2207.14484, eq. 3).

    Args:
        learning_rate: η.
        beta: β, how much of the average stays at a step.
        weight_decay: w, beside the gradient, not in it.
    """
    return (1 + beta) / (1 - beta) * (2 / learning_rate - weight_decay)
