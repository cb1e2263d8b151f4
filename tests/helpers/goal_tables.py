"""A table of runs to goals whose critical batch size is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

SIZES = [1, 2, 4, 8, 16, 32, 64, 128]


def synthetic(
    *, goals: tuple[float, ...] = (1.0, 0.5), seeds: int = 2, critical: float = 16.0
) -> pd.DataFrame:
    """S = S_min(1 + B_crit/B) at the best rate, 0.8/(1 + 10/B); a parabola more at four others."""
    rows = []
    for goal in goals:
        for size in SIZES:
            best = 0.8 / (1 + 10 / size)
            for rate in 2.0 ** np.arange(-6, 2):
                steps = (
                    50 / goal * (1 + critical / size) * math.exp(0.3 * math.log(rate / best) ** 2)
                )
                rows += [(goal, size, rate, seed, steps, 0, 0) for seed in range(seeds)]
    columns = ["goal", "batch_size", "learning_rate", "seed", "steps", "censored", "diverged"]
    return pd.DataFrame(rows, columns=columns)
