"""How often the 95 % interval of a subset's λ_max holds that of all examples.

    python -m experiments.coverage.sharpness

Logistic regression on features whose spectrum is prescribed, so that the truth is a dense matrix's
eigenvalue; and a network on MNIST, early and late in training, whose truth is λ_max over all
10,000 of its images. Beside the interval of `measure_sharpness` stands the plain one, the subset's
own λ_max ± Student's t standard errors along its eigenvector.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pandas as pd
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from experiments.coverage.tables import TABLES, write_coverage
from noisescale import (
    Examples,
    Params,
    Problem,
    ProblemConfig,
    SharpnessOptions,
    TrainConfig,
    build_problem,
    measure_sharpness,
    train,
)

NUM_EXAMPLES = 8000  # N of the logistic regressions
RARE = 0.03  # share of the rare class, at about 0.03·n examples of a subset
SIZES = (12, 32, 40, 100, 300, 1000)
NETWORK = ProblemConfig(dataset="mnist", num_train=10_000, width=32)
NETWORK_SIZES = (100, 300, 1000, 3000)
EARLY, LATE = 100, 4000  # updates at B = 32


class Case(NamedTuple):
    """A problem with known λ_max, the sizes of the subsets it is measured on, and of how many."""

    name: str
    problem: Problem
    truth: float
    sizes: tuple[int, ...] = SIZES
    params: Params | None = None  # None: the model's own
    share_of_draws: float = 1.0  # a network takes longer


def standard_deviations(name: str) -> np.ndarray:
    """Of the features of a logistic regression (F,)."""
    return {
        "isotropic": np.ones(5),
        "isolated": np.array([2.0, 1, 1, 1, 1]),
        "close pair": np.sqrt([1, 0.9, 0.3, 0.2, 0.1]),
        # as of a network with ten classes: nine outliers, then a bulk that decays
        "outliers and bulk": np.sqrt(
            [1, 0.75, 0.6, 0.5, 0.4, 0.33, 0.28, 0.22, 0.18, *0.05 * np.arange(1, 52) ** -0.8]
        ),
        "heavy tails": np.array([2.0, *np.ones(9)]),
    }[name]


def regression(inputs: np.ndarray, rates: np.ndarray, point: np.ndarray, seed: int) -> Problem:
    """Logistic regression at `point` (F,), its classes drawn with the probabilities `rates`."""
    generator = np.random.default_rng(seed)
    targets = (generator.random(len(inputs)) < rates).astype(np.float32)
    model = nn.Linear(inputs.shape[1], 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(point).unsqueeze(0))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(
            outputs.squeeze(1), targets, reduction="none"
        )

    examples = Examples(torch.tensor(inputs, dtype=torch.float32), torch.tensor(targets))
    return Problem(model=model, loss=loss, train=examples)


def logistic_case(name: str) -> Case:
    """A logistic regression at its start, θ = 0, where every H_i is x xᵀ/4."""
    generator = np.random.default_rng(1)
    deviations = standard_deviations(name)
    inputs = generator.standard_normal((NUM_EXAMPLES, len(deviations))) * deviations
    if name == "heavy tails":
        inputs *= np.exp(0.7 * generator.standard_normal((NUM_EXAMPLES, 1)))
    point = np.zeros(len(deviations))
    problem = regression(inputs, np.full(NUM_EXAMPLES, 0.5), point, seed=2)
    return Case(name, problem, _truth(inputs, point))


def rare_case(*, fitted: bool) -> Case:
    """A rare class, two deviations away, at the start or near the best parameters."""
    generator = np.random.default_rng(1)
    rare = generator.random((NUM_EXAMPLES, 1)) < RARE
    features = generator.standard_normal((NUM_EXAMPLES, 5)) + 2 * rare
    inputs = np.hstack([features, np.ones((NUM_EXAMPLES, 1))])
    # where the log odds are those of the two Gaussians
    odds = np.log(RARE / (1 - RARE)) - 5 * 2.0**2 / 2
    point = np.array([2.0] * 5 + [odds]) if fitted else np.zeros(6)
    problem = regression(inputs, rare[:, 0].astype(float), point, seed=2)
    name = "rare class, fitted" if fitted else "rare class, start"
    return Case(name, problem, _truth(inputs, point))


def _truth(inputs: np.ndarray, point: np.ndarray) -> float:
    """λ_max of Σ p(1 − p) x xᵀ/N, p = σ(xᵀθ)."""
    rates = 1 / (1 + np.exp(-inputs @ point))
    weighted = inputs * (rates * (1 - rates))[:, None]
    return float(np.linalg.eigvalsh(weighted.T @ inputs / len(inputs))[-1])


def network_cases() -> Iterator[Case]:
    """A network on MNIST, early and late in training."""
    problem = build_problem(NETWORK)
    config = TrainConfig(batch_size=32, learning_rate=0.1, epochs=100, max_steps=LATE)
    names = {EARLY: "MNIST, early", LATE: "MNIST, late"}
    for checkpoint in train(problem, config, checkpoint_steps=(EARLY,)):
        if checkpoint.step in names:
            whole = measure_sharpness(problem, checkpoint.params).largest
            assert whole is not None
            truth = whole.value.value
            yield Case(
                names[checkpoint.step],
                problem,
                truth,
                NETWORK_SIZES,
                params=checkpoint.params,
                share_of_draws=0.25,
            )


def simulate(case: Case, size: int, num_draws: int) -> dict[str, Any]:
    """A row of the table: coverage, bias and width of both intervals, as shares of the truth."""
    rows = []
    for seed in range(num_draws):
        found = measure_sharpness(
            case.problem, case.params, SharpnessOptions(num_examples=size), seed=seed
        )
        assert found.largest is not None
        estimate = found.largest.value
        own = float(found.pairs["largest"].values[0])
        # the sampling error is symmetric in logs about the subset's own λ_max, the upper end's
        half = own * np.log(max(estimate.high / own, 1.0))
        rows.append(
            {
                "coverage": estimate.low <= case.truth <= estimate.high,
                "below": estimate.high < case.truth,
                "above": estimate.low > case.truth,
                "bias": estimate.value / case.truth - 1,
                "width": (estimate.high - estimate.low) / case.truth,
                "plain_coverage": abs(own - case.truth) <= half,
                "plain_bias": own / case.truth - 1,
                "plain_width": 2 * half / case.truth,
            }
        )
    table = pd.DataFrame(rows).astype(float)
    averages = {str(name): float(column.mean()) for name, column in table.items()}
    averages |= {name: float(table[name].median()) for name in ("width", "plain_width")}
    return {"problem": case.name, "num_examples": size, "draws": num_draws, **averages}


def cases() -> Iterator[Case]:
    """All problems, the slow ones last."""
    for name in ("isotropic", "isolated", "close pair", "outliers and bulk", "heavy tails"):
        yield logistic_case(name)
    yield rare_case(fitted=False)
    yield rare_case(fitted=True)
    yield from network_cases()


@click.command()
@click.option("--draws", "num_draws", default=400, show_default=True, help="Subsets of each size.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=TABLES / "sharpness.csv", help="The table."
)
def main(num_draws: int, out: Path) -> None:
    """Write the table of coverages."""
    rows = [
        simulate(case, size, int(case.share_of_draws * num_draws))
        for case in cases()
        for size in track(case.sizes, description=case.name)
    ]
    write_coverage(
        out,
        rows,
        command=f"python -m experiments.coverage.sharpness --draws {num_draws}",
        seeds=f"0 to {num_draws - 1}",
    )
    click.echo(out)


if __name__ == "__main__":
    main()
