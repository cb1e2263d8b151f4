"""How far ‖G‖₁ and ‖σ‖₁ of a sample are off, and how often the interval of B_ℓ1 holds it.

    python -m experiments.coverage.sign

Gradients of known G and σ: 300 coordinates whose σ_j spread log-normally, at standard errors
σ_j/√n that are a fraction or a multiple of |G_j|, with Gaussian or heavier tails.
"""

from __future__ import annotations

from typing import Any

import click
import numpy as np
from rich.progress import track

from experiments.coverage.tables import TABLES, write_coverage
from noisescale.statistics.gradient_noise import sign_noise
from noisescale.statistics.gradient_noise.sign import FOLDS
from noisescale.statistics.sample import Sample

COORDINATES, EXAMPLES = 300, 200
RATIOS = (10.0, 3.0, 1.0, 0.3, 0.1)  # of |G_j| to the standard error of ḡ_j, typically
TAILS = {"Gaussian": None, "t with 5 degrees": 5.0}


def simulate(ratio: float, tails: str, num_draws: int) -> dict[str, Any]:
    """A row: mean estimates over their truths, and the shares of intervals that hold these."""
    generator = np.random.default_rng(0)
    deviations = np.exp(generator.standard_normal(COORDINATES))
    means = ratio * deviations / np.sqrt(EXAMPLES) * generator.standard_normal(COORDINATES)
    norm, noise = np.abs(means).sum(), deviations.sum()
    truths = {"gradient_norm": norm, "noise_norm": noise, "simple": (noise / norm) ** 2}
    sample = Sample(num_examples=EXAMPLES, population_size=EXAMPLES, population="distribution")
    dof = TAILS[tails]
    held, values, resolved = dict.fromkeys(truths, 0), [], 0
    for _ in range(num_draws):
        size = (FOLDS, EXAMPLES // FOLDS, COORDINATES)
        draws = generator.standard_normal(size)
        if dof is not None:
            draws = generator.standard_t(dof, size) / np.sqrt(dof / (dof - 2))
        gradients = means + deviations * draws
        found = sign_noise(
            gradients.sum(1),
            (gradients**2).sum(1),
            np.full(FOLDS, EXAMPLES // FOLDS),
            sample=sample,
        )
        resolved += bool(np.isfinite(found.simple.value))
        for name, truth in truths.items():
            estimate = getattr(found, name)
            held[name] += bool(estimate.low <= truth <= estimate.high)
        values.append(
            (
                found.gradient_norm.value / norm,
                found.largest_gradient_norm.value / norm,
                found.noise_norm.value / noise,
            )
        )
    crossed, largest, of_noise = np.mean(values, 0)
    return {
        "ratio": ratio,
        "tails": tails,
        "draws": num_draws,
        "gradient_norm": crossed,
        "largest_gradient_norm": largest,
        "noise_norm": of_noise,
        "resolved": resolved / num_draws,
        **{f"{name}_coverage": count / num_draws for name, count in held.items()},
    }


@click.command()
@click.option("--draws", "num_draws", type=click.IntRange(min=1), default=1000, show_default=True)
def main(num_draws: int) -> None:
    """Write the table of biases and coverages."""
    cases = [(ratio, tails) for ratio in RATIOS for tails in TAILS]
    rows = [simulate(*case, num_draws) for case in track(cases)]
    write_coverage(
        TABLES / "sign.csv",
        rows,
        command=f"python -m experiments.coverage.sign --draws {num_draws}",
        seeds="0",
    )


if __name__ == "__main__":
    main(prog_name="python -m experiments.coverage.sign")
