"""How often 95 % intervals of the noise scale hold it, where examples are and are not alike.

    python -m experiments.coverage.noise_scale

Gradients of 20 parameters, normal, or with norms that are log-normal or of a t distribution with
three degrees of freedom, whose tr Σ has an infinite variance; a data set of 2,000 of which one
outlier holds nearly all of tr Σ; linear regression on normal and log-normal features, with the
Hessian's halves of B_noise, from all pairs of noise probes and groups of the Hessian's examples and
from a quarter of them; and a network on 10,000 images of MNIST, early and late in training.

A row has the shares of samples whose interval holds the truth, by estimate; NAME_student with
Student's t and Fieller's, which know nothing of skewness; NAME_width the interval's width beside
that one's, the median of bounded ones; warned, the share with a note on heavy tails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import click
import numpy as np
import torch
from rich.progress import track

from experiments.coverage.tables import TABLES, write_coverage
from noisescale import Params, ProblemConfig, TrainConfig, build_problem, gradient_moments, train
from noisescale.problems.problem import Problem
from noisescale.statistics.estimate import Estimate
from noisescale.statistics.gradient_noise import NoiseScale, estimators, noise_scale
from noisescale.statistics.hessian_noise import CurvatureNoise, ProbeBlocks, curvature_noise
from noisescale.statistics.sample import Sample

MEAN = np.linspace(0.5, -0.4, 20)  # G of the simulated gradients
SIZES = (30, 100, 300, 1000)
NUM_OUTLIER = 2000  # N of the data set with an outlier, whose gradient is this much longer
OUTLIER = 300.0
FEATURES, NUM_BLOCKS, NUM_GROUPS = 5, 32, 16  # of linear regression, as `measure_noise` has them
# All probes with all groups, and as where H's graphs do not fit into memory
ALL_PAIRS = np.ones((NUM_BLOCKS, NUM_GROUPS), dtype=bool)
QUARTER = (np.arange(NUM_BLOCKS)[:, None] + np.arange(NUM_GROUPS)) % 4 == 0
NETWORK = ProblemConfig(dataset="mnist", num_train=10_000, width=32)
STEPS = {100: "MNIST, early", 1000: "MNIST, middle", 4000: "MNIST, late"}  # updates at B = 32


class Drawn(NamedTuple):
    """Estimates of one sample by name, with both kinds of intervals, and how it is made up."""

    resampled: dict[str, Estimate]
    student: dict[str, Estimate]
    effective: float
    noisiest: float
    warned: bool


class Case(NamedTuple):
    """What is drawn, and the truth of each estimate."""

    name: str
    num_examples: int
    truth: dict[str, float]
    draw: Callable[[np.random.Generator], Drawn]


def _halves(noise: NoiseScale) -> dict[str, Estimate]:
    return {
        "gradient_variance": noise.gradient_variance,
        "squared_gradient_norm": noise.squared_gradient_norm,
        "simple": noise.simple,
    }


def _truth(variance: float, squared_norm: float) -> dict[str, float]:
    simple = variance / squared_norm
    return {"gradient_variance": variance, "squared_gradient_norm": squared_norm, "simple": simple}


def drawn(*statistics: Any, **options: Any) -> Drawn:
    """The noise scale of a sample, with its intervals and with Student's t."""
    noise = noise_scale(*statistics, **options)
    with mock.patch.object(estimators, "reaches", return_value=None):
        student = noise_scale(*statistics, **options)
    return Drawn(
        resampled=_halves(noise),
        student=_halves(student),
        effective=noise.effective_examples or np.nan,
        noisiest=noise.noisiest_share or np.nan,
        warned=any("heavy tails" in note for note in noise.notes),
    )


def of_gradients(gradients: np.ndarray, population_size: int | None = None) -> Drawn:
    """Of gradients (n, P), of a distribution or out of a data set of that size."""
    mean = gradients.mean(0)
    return drawn(
        (gradients**2).sum(1)[:, None],
        gradients @ mean,
        np.array([mean @ mean]),
        population="dataset" if population_size else "distribution",
        population_size=population_size or len(gradients),
    )


def norm_scales(kind: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """What the noise of each example is multiplied by (size, 1), and has a mean square of."""
    if kind == "t(3) norms":
        return 1 / np.sqrt(generator.chisquare(3, (size, 1)) / 3)
    if kind == "log-normal norms":
        return np.exp(generator.standard_normal((size, 1)))
    return np.ones((size, 1))


MEAN_SQUARES = {"normal": 1.0, "t(3) norms": 3.0, "log-normal norms": float(np.exp(2))}


def gradient_cases(sizes: tuple[int, ...] = SIZES) -> Iterator[Case]:
    """Independent gradients of a distribution."""
    for kind, mean_square in MEAN_SQUARES.items():
        truth = _truth(mean_square * len(MEAN), float(MEAN @ MEAN))
        for size in sizes:

            def draw(generator: np.random.Generator, kind: str = kind, size: int = size) -> Drawn:
                noise = generator.standard_normal((size, len(MEAN)))
                return of_gradients(MEAN + norm_scales(kind, size, generator) * noise)

            yield Case(kind, size, truth, draw)


def outlier_cases() -> Iterator[Case]:
    """Normal gradients and one outlier, with and without it in the sample."""
    gradients = np.random.default_rng(0).standard_normal((NUM_OUTLIER, len(MEAN))) + MEAN
    gradients[0] *= OUTLIER
    mean = gradients.mean(0)
    truth = _truth(float(((gradients - mean) ** 2).sum(1).mean()), float(mean @ mean))
    for name, size, first in (
        ("one outlier", 200, None),
        ("one outlier, in the sample", 200, 0),
        ("one outlier", 1000, None),
    ):

        def draw(
            generator: np.random.Generator, size: int = size, first: int | None = first
        ) -> Drawn:
            chosen = generator.permutation(NUM_OUTLIER)[:size]
            if first is not None and first not in chosen:
                chosen[0] = first
            return of_gradients(gradients[chosen], NUM_OUTLIER)

        yield Case(name, size, truth, draw)


def _curvature(found: CurvatureNoise) -> dict[str, Estimate]:
    return {
        "hessian_covariance_trace": found.covariance_trace,
        "gradient_curvature": found.gradient_curvature,
        "full": found.full,
    }


def _probe_blocks(
    gradients: np.ndarray,
    inputs: np.ndarray,
    generator: np.random.Generator,
    *,
    crossed: np.ndarray,
) -> CurvatureNoise:
    """tr(HΣ) and GᵀHG as `probe_curvature` has them, without a control variate, of H = mean xxᵀ.

    crossed: which groups of H's inputs each block's probe is multiplied with, (K, J).
    """
    size = len(gradients)
    mean, unbiased = gradients.mean(0), size / (size - 1)
    groups = np.array_split(inputs, NUM_GROUPS)
    image = mean @ inputs.T @ inputs / len(inputs)

    def forms(vector: np.ndarray) -> np.ndarray:
        return np.array([((group @ vector) ** 2).mean() for group in groups])

    blocks = np.array_split(gradients, NUM_BLOCKS)
    probes = []
    for block in blocks:
        signs = generator.choice([-1.0, 1.0], len(block))
        probes.append(signs @ (block - mean) * (unbiased / len(block)) ** 0.5)
    nothing = np.zeros(NUM_BLOCKS)
    return curvature_noise(
        ProbeBlocks(
            shares=np.array([len(block) for block in blocks]) / size,
            on_mean=np.array([block.mean(0) @ mean for block in blocks]),
            on_image=np.array([block.mean(0) @ image for block in blocks]),
            deflated=nothing,
            variances=nothing,
            forms=np.where(crossed, np.stack([forms(probe) for probe in probes]), np.nan),
        ),
        squared_norm=float(mean @ mean) - ((gradients - mean) ** 2).sum() / (size - 1) / size,
        mean_forms=forms(mean),
        group_shares=np.array([len(group) for group in groups]) / len(inputs),
        sample=Sample(num_examples=size, population_size=size, population="distribution"),
        hessian_examples=len(inputs),
        num_matvecs=NUM_BLOCKS + 1,
    )


def regression_cases() -> Iterator[Case]:
    """Linear regression of noise at θ = (1, …, 1): g = x(xᵀθ − y), H = E xxᵀ."""
    size = 960  # in groups and blocks of equal size
    for name, width, crossed in (
        ("regression, normal", 0.0, ALL_PAIRS),
        ("regression, log-normal", 0.7, ALL_PAIRS),
        ("regression, normal, a quarter", 0.0, QUARTER),
        ("regression, log-normal, a quarter", 0.7, QUARTER),
    ):

        def inputs(generator: np.random.Generator, count: int, width: float = width) -> np.ndarray:
            scale = np.exp(width * generator.standard_normal((count, 1)))
            drawn: np.ndarray = scale * generator.standard_normal((count, FEATURES))
            return drawn

        def gradients(generator: np.random.Generator, x: np.ndarray) -> np.ndarray:
            residuals = x.sum(1) + generator.standard_normal(len(x))
            drawn: np.ndarray = x * residuals[:, None]
            return drawn

        # E s² = h, E s⁴ = f: G = hθ, H = hI, E|g|² = f·E z²(Σz)² + h·P·E noise²
        h, f = float(np.exp(2 * width**2)), float(np.exp(8 * width**2))
        second = f * (FEATURES**2 + 2 * FEATURES) + h * FEATURES
        trace = h * (second - h**2 * FEATURES)
        curvature = h * h**2 * FEATURES
        truth = {
            "hessian_covariance_trace": trace,
            "gradient_curvature": curvature,
            "full": trace / curvature,
        }

        def draw(
            generator: np.random.Generator,
            inputs: Any = inputs,
            gradients: Any = gradients,
            crossed: np.ndarray = crossed,
        ) -> Drawn:
            of_sample = gradients(generator, inputs(generator, size))
            found = _probe_blocks(of_sample, inputs(generator, size), generator, crossed=crossed)
            made_up = of_gradients(of_sample)
            student = _curvature(replace(found, spreads=()))
            return made_up._replace(resampled=_curvature(found), student=student)

        yield Case(name, size, truth, draw)


def network_cases() -> Iterator[Case]:
    """A network's subsets of its training images, along its training."""
    problem = build_problem(NETWORK)
    last = max(STEPS)
    config = TrainConfig(batch_size=32, learning_rate=0.1, epochs=100, max_steps=last)
    for checkpoint in train(problem, config, checkpoint_steps=tuple(STEPS)):
        if checkpoint.step in STEPS:
            for size in (300, 1000):
                yield _network_case(STEPS[checkpoint.step], problem, checkpoint.params, size)


def _network_case(name: str, problem: Problem, params: Params, size: int) -> Case:
    def noise(num_examples: int | None, seed: int) -> Drawn:
        moments = gradient_moments(
            problem,
            params,
            num_examples=num_examples,
            engine="hooks",
            generator=torch.Generator().manual_seed(seed),
        )
        return drawn(
            moments.squared_norms,
            moments.projections,
            moments.mean_squares,
            population="dataset",
            population_size=moments.population_size,
        )

    truth = {name: estimate.value for name, estimate in noise(None, 0).resampled.items()}
    return Case(name, size, truth, lambda generator: noise(size, int(generator.integers(2**31))))


def _holds(estimate: Estimate, truth: float) -> bool:
    """Whether the interval holds it; ends that are not known are open."""
    return not (estimate.low > truth or estimate.high < truth)


def simulate(case: Case, num_draws: int) -> dict[str, Any]:
    """A row: coverage of both kinds of intervals, and how much the wider ones are wider."""
    generator = np.random.default_rng([case.num_examples, *case.name.encode()])
    samples = [case.draw(generator) for _ in range(num_draws)]
    row: dict[str, Any] = {
        "case": case.name,
        "num_examples": case.num_examples,
        "draws": num_draws,
        "effective_examples": np.median([sample.effective for sample in samples]),
        "noisiest_share": np.median([sample.noisiest for sample in samples]),
        "warned": np.mean([sample.warned for sample in samples]),
    }
    for name, truth in case.truth.items():
        kinds = [(sample.resampled[name], sample.student[name]) for sample in samples]
        held = [[_holds(kind, truth) for kind in both] for both in kinds]
        with np.errstate(invalid="ignore"):
            widths = [(new.high - new.low) / np.float64(old.high - old.low) for new, old in kinds]
        covered, by_student = np.mean(held, axis=0)
        known = [width for width in widths if np.isfinite(width)]
        row |= {
            name: covered,
            f"{name}_student": by_student,
            f"{name}_width": np.median(known) if known else np.nan,
        }
    return row


@click.command()
@click.option("--draws", "num_draws", default=400, show_default=True, help="Of each kind.")
@click.option("--network-draws", default=200, show_default=True, help="Of the network's subsets.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=TABLES / "noise_scale.csv", help="The table."
)
def main(num_draws: int, network_draws: int, out: Path) -> None:
    """Writes the table of coverages."""
    simulated = [*gradient_cases(), *outlier_cases(), *regression_cases()]
    rows = [simulate(case, num_draws) for case in track(simulated)]
    rows += [simulate(case, network_draws) for case in network_cases()]
    write_coverage(
        out,
        rows,
        command=f"python -m experiments.coverage.noise_scale --draws {num_draws} "
        f"--network-draws {network_draws}",
        seeds="a row's name and number of examples",
    )
    click.echo(out)


if __name__ == "__main__":
    main()
