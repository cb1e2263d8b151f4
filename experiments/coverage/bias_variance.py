"""How often 95 % intervals of noise, bias and variance hold them, by simulation.

    python -m experiments.coverage.bias_variance

Outputs (200 examples, 3 classes) are a mean plus normal effects of data set, seed and both
together, of standard deviation .3, .2 and .1; outcomes scatter by .4 around what is true, from
which the mean is .5 off. "shared": how much of an effect's variance comes of five directions that
all examples have in common, as when a data set is good or bad for all of them; the rest is every
example's own. A row is a part of the score: the share of draws in which its interval holds it,
the mean error in units of its own standard error, and the standard error stated over the true one.
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
from noisescale.statistics.scores.bias_variance import bias_variance

BIAS, NOISE = 0.5, 0.4  # standard deviations over examples and classes
DATA, SEED, BOTH = 0.3, 0.2, 0.1  # of the effects
EXAMPLES, CLASSES, DIRECTIONS = 200, 3, 5
TRUTH = {
    "score": BIAS**2 + NOISE**2 + DATA**2 + SEED**2 + BOTH**2,
    "bias² + noise": BIAS**2 + NOISE**2,
    "bias²": BIAS**2,
    "noise": NOISE**2,
    "variance": DATA**2 + SEED**2 + BOTH**2,
    "variance, data": DATA**2,
    "variance, seed": SEED**2,
    "variance, data × seed": BOTH**2,
}  # of one class


class Cell(NamedTuple):
    """One kind of design."""

    num_data: int
    num_seeds: int
    shared: float


CELLS = [
    Cell(num_data, num_seeds, shared)
    for (num_data, num_seeds), shared in itertools.product(
        ((8, 2), (8, 3), (8, 4), (16, 4)), (0.0, 0.5)
    )
]


def draw(cell: Cell, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (data sets, seeds, N, C) and outcomes (N, C); what is true is 0."""
    shape = (EXAMPLES, CLASSES)
    loads = generator.standard_normal((DIRECTIONS, *shape)) / np.sqrt(DIRECTIONS)

    def effect(size: float, *levels: int) -> np.ndarray:
        together = np.tensordot(generator.standard_normal((*levels, DIRECTIONS)), loads, 1)
        alone = generator.standard_normal((*levels, *shape))
        mixed: np.ndarray = np.sqrt(cell.shared) * together + np.sqrt(1 - cell.shared) * alone
        return size * mixed

    mean = BIAS * generator.standard_normal(shape)
    outcomes = NOISE * generator.standard_normal(shape)
    of_data = effect(DATA, cell.num_data, 1)
    of_seed = effect(SEED, 1, cell.num_seeds)
    return mean + of_data + of_seed + effect(BOTH, cell.num_data, cell.num_seeds), outcomes


def simulate(cell: Cell, num_draws: int) -> list[dict[str, Any]]:
    """The rows of a design, one for each part."""
    generator = np.random.default_rng([CELLS.index(cell), num_draws])
    found = []
    for _ in range(num_draws):
        predictions, outcomes = draw(cell, generator)
        result = bias_variance(predictions, outcomes, expected=np.zeros_like(outcomes))
        for name, estimate in result.estimates.items():
            truth = CLASSES * TRUTH[name]
            holds = estimate.low <= truth <= estimate.high
            found.append((name, estimate.value - truth, estimate.stderr, holds))
    table = pd.DataFrame(found, columns=["part", "error", "stderr", "holds"])
    rows = []
    for name in TRUTH:
        part = table[table["part"] == name]
        spread = part["error"].std()
        rows.append(
            {
                **cell._asdict(),
                "part": name,
                "draws": num_draws,
                "coverage": part["holds"].mean(),
                "mean_error": part["error"].mean() / (spread / np.sqrt(num_draws)),
                "stated_over_true": np.sqrt(part["stderr"].pow(2).mean()) / spread,
            }
        )
    return rows


@click.command()
@click.option("--draws", "num_draws", default=400, show_default=True, help="Of each design.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=TABLES / "bias_variance.csv",
    help="The table.",
)
def main(num_draws: int, out: Path) -> None:
    """Writes the table of coverages."""
    rows = [row for cell in track(CELLS) for row in simulate(cell, num_draws)]
    write_coverage(
        out,
        rows,
        command=f"python -m experiments.coverage.bias_variance --draws {num_draws}",
        seeds=f"a design's place and {num_draws}",
    )
    click.echo(out)


if __name__ == "__main__":
    main()
