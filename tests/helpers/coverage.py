"""How often an interval must cover the truth in a simulation of few draws."""

from __future__ import annotations

from scipy import stats


def fewest_hits(draws: int, *, level: float = 0.95) -> int:
    """Fewer hits than this, a right interval of this level has once in 10,000 such simulations."""
    return int(stats.binom.ppf(1e-4, draws, level))
