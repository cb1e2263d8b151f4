"""How often 95 % intervals of the critical batch size hold it, where seeds differ.

    python -m experiments.coverage.critical_batch

Steps to a goal are drawn from S_min(1 + B_crit/B), S_min = 100 and B_crit = 50. A seed moves the
whole curve, log S_min and log B_crit each by a normal deviation (the seed effect), and each run
scatters by another .12 in log S. The size effect moves all runs of a batch size together, as a
badly tuned rate does. "Bounds": runs at the smallest two batch sizes stop at the steps
of the true curve, and those from B = 1,024 on at 1.03·S_min, so that about half of them end before
the goal. Beside the interval of `fit_critical_batch` stand three others of B_crit: the profile's,
which takes batch sizes for independent; Student's t over seeds; and the wider of the two. The table
has the shares of draws in which each holds; "factor", how far the ends lie from B_crit (median);
and the shares of lack-of-fit probabilities below .05 and above .975, .05 and .025 where the test is
right.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
from rich.progress import track

from experiments.coverage.tables import TABLES, write_coverage
from noisescale.statistics.critical_batch.curves.runs import runs_of
from noisescale.statistics.critical_batch.curves.seeds import seed_spread
from noisescale.statistics.critical_batch.fit import CriticalBatchFit, fit_critical_batch
from noisescale.statistics.estimate import Estimate

MIN_STEPS, CRITICAL = 100.0, 50.0
RUN_SCATTER = 0.12  # of a single run's log S: what the 24 sizes of MNIST show
SIZES = {12: 2.0 ** np.arange(12), 24: np.geomspace(1, 4096, 24)}


class Cell(NamedTuple):
    """One kind of measurement."""

    seed_effect: float
    size_effect: float
    num_seeds: int
    num_sizes: int
    bounds: bool


CELLS = [
    Cell(seed_effect, 0.0, num_seeds, num_sizes, bounds)
    for seed_effect, num_seeds, num_sizes, bounds in itertools.product(
        (0.0, 0.1, 0.2, 0.3), (5, 3), (24, 12), (False, True)
    )
]
CELLS += [
    Cell(seed_effect, 0.15, num_seeds, 12, False)
    for seed_effect, num_seeds in itertools.product((0.0, 0.2), (5, 3))
]


class Draw(NamedTuple):
    """A simulated measurement (n,)."""

    sizes: np.ndarray
    steps: np.ndarray
    seeds: np.ndarray
    censored: np.ndarray


def draw(cell: Cell, generator: np.random.Generator) -> Draw:
    """Runs of every seed at every batch size."""
    sizes = SIZES[cell.num_sizes]
    log_min, log_critical = cell.seed_effect * generator.standard_normal((2, cell.num_seeds, 1))
    log_min, log_critical = log_min + np.log(MIN_STEPS), log_critical + np.log(CRITICAL)
    log_steps = log_min + np.logaddexp(0, log_critical - np.log(sizes))  # (seeds, sizes)
    log_steps += cell.size_effect * generator.standard_normal(len(sizes))
    steps = np.exp(log_steps + RUN_SCATTER * generator.standard_normal(log_steps.shape))
    limits = np.full(len(sizes), np.inf)
    if cell.bounds:
        limits[:2] = MIN_STEPS * (1 + CRITICAL / sizes[:2])
        limits[sizes >= 1024] = 1.03 * MIN_STEPS
    shape = steps.shape
    return Draw(
        sizes=np.broadcast_to(sizes, shape).ravel(),
        steps=np.minimum(steps, limits).ravel(),
        seeds=np.broadcast_to(np.arange(cell.num_seeds)[:, None], shape).ravel(),
        censored=(steps > limits).ravel(),
    )


def truths(drawn: Draw) -> dict[str, float]:
    """Of each estimate; the 20 % size counts from the smallest batch size that reaches the goal."""
    stopped = np.unique(drawn.sizes[drawn.censored])
    smallest = np.setdiff1d(drawn.sizes, stopped)[0]
    return {
        "critical_batch_size": CRITICAL,
        "min_steps": MIN_STEPS,
        "min_examples": MIN_STEPS * CRITICAL,
        "overhead_batch_size": 0.2 * CRITICAL + 1.2 * smallest,
    }


def holds(estimate: Estimate, truth: float) -> bool:
    """Whether the interval holds it; one that is open on either side may."""
    return estimate.low <= truth <= estimate.high


def outcome(drawn: Draw) -> dict[str, float]:
    """What the fit says of one measurement, and whether it is true."""
    fit = fit_critical_batch(drawn.sizes, drawn.steps, seeds=drawn.seeds, censored=drawn.censored)
    true = truths(drawn)
    found = {name: float(holds(getattr(fit, name), value)) for name, value in true.items()}
    critical = fit.critical_batch_size
    return found | {
        **_others(drawn, fit),
        "factor": (critical.high / critical.low) ** 0.5 if fit.resolved else np.inf,
        "resolved": float(fit.resolved),
        "misfit_below_05": float(fit.lack_of_fit < 0.05),
        "misfit_above_975": float(fit.lack_of_fit > 0.975),
    }


def _others(drawn: Draw, fit: CriticalBatchFit) -> dict[str, float]:
    """Whether other intervals of B_crit hold it."""
    runs = runs_of(drawn.sizes, drawn.steps, drawn.seeds, drawn.censored)
    hyperbola = runs.hyperbola()
    curve = hyperbola.fit()
    profile = hyperbola.interval("bend", curve)
    spread = seed_spread(runs, curve, left_over=0.0)
    by_profile = holds(profile, CRITICAL)
    by_seeds = spread is not None and holds(spread.widen(profile, curve.bend, "bend"), CRITICAL)
    return {
        "profile_alone": float(by_profile),
        "seeds_alone": float(by_seeds),
        "wider_of_both": float(by_profile or by_seeds),
    }


def simulate(cell: Cell, num_draws: int) -> dict[str, Any]:
    """A row of the table: the share of draws in which each interval holds its truth."""
    generator = np.random.default_rng([CELLS.index(cell), num_draws])
    found = pd.DataFrame([outcome(draw(cell, generator)) for _ in range(num_draws)])
    shares = {str(name): share for name, share in found.mean().items()}
    return cell._asdict() | {
        "bounds": int(cell.bounds),
        "draws": num_draws,
        **shares,
        "factor": float(found["factor"].median()),
    }


@click.command()
@click.option("--draws", "num_draws", default=300, show_default=True, help="Of each kind.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=TABLES / "critical_batch.csv",
    help="The table.",
)
def main(num_draws: int, out: Path) -> None:
    """Writes the table of coverages."""
    rows = [simulate(cell, num_draws) for cell in track(CELLS)]
    write_coverage(
        out,
        rows,
        command=f"python -m experiments.coverage.critical_batch --draws {num_draws}",
        seeds=f"a row's place and {num_draws}",
    )
    click.echo(out)


if __name__ == "__main__":
    main()
