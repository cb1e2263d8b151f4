"""Products and λ_max on MNIST after one epoch, against curvlinops with SciPy, and PyHessian.

    python -m experiments.benchmarks.curvature

The limit. Counting matrix products of the study's network, a gradient is one forward and two
backward units. Differentiating its graph along a vector takes six: 2.0 gradients with the graph
kept, 3.0 with it recorded anew (forward-over-reverse: eight or nine units, 2.7 to 3.0). The
Gauss–Newton product takes four units with its graphs kept, 1.33 gradients, and seven without, 2.33.
What Lanczos adds, two passes over up to twenty vectors of 7.5 MB, is a tenth of a product at 10,000
examples.
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import click
import numpy as np
import torch
from rich.console import Console
from scipy.sparse.linalg import eigsh
from torch import nn

from experiments.resources import (
    NEVER,
    Deadline,
    Part,
    PeerMissing,
    Record,
    cpu_seconds,
    peak_bytes,
    peer,
    seconds,
)
from noisescale import (
    Objective,
    Problem,
    ProblemConfig,
    TrainConfig,
    build_problem,
    hessian_matvec,
    top_eigenpairs,
    train,
)
from noisescale.measure.curvature.krylov import Krylov
from noisescale.measure.curvature.products import CurvatureProduct, record_ggn, record_hessian
from noisescale.measure.objective.substitutes import cross_entropy as closed_forms
from noisescale.problems.problem import Examples, Params
from noisescale.problems.sampling import select

RESULTS = Path(__file__).parent / "results"
NUM_EXAMPLES = 10_000
VOCABULARIES = (256, 2048, 16_384, 65_536)
APPROACH = (20, 30, 40, 50, 60, 80, 100, 120, 140)  # products, after which λ_min is looked at
APPROACH_EXAMPLES = 1000
SETTLED = 170  # products, whose value is λ_min in those looks
DISTANCE = 100  # training steps between the checkpoints of the warm start
TARGETS = {
    "hessian": 3.2,
    "ggn": 2.5,
    "curvlinops": 1.1,
    "pyhessian": 1.0,
    "warm/cold": 0.8,
    "smallest": 60,
    "peak bytes": 2**30,
}


def checkpoints(problem: Problem) -> list[Params]:
    """Parameters after one epoch at B = 32, lr 0.01, and 100, 200 and 300 steps later."""
    first = math.ceil(60_000 / 32)
    steps = [first + DISTANCE * index for index in range(4)]
    config = TrainConfig(batch_size=32, learning_rate=0.01, max_steps=steps[-1])
    return [
        checkpoint.params
        for checkpoint in train(problem, config, checkpoint_steps=steps)
        if checkpoint.step in steps
    ]


def products(
    problem: Problem, params: Params, examples: Examples, *, rounds: int, deadline: Deadline = NEVER
) -> dict[str, Any]:
    """Medians over interleaved rounds of the products' time in gradients, graphs kept and anew."""
    objective = Objective(problem, params, examples=examples)
    vector = torch.randn(objective.dim, generator=torch.Generator().manual_seed(0)).to(
        objective.device
    )
    records = {"hessian": record_hessian, "ggn": record_ggn}
    matvecs = {
        f"{name}, {how}": CurvatureProduct(objective, record, kept_bytes=kept_bytes)
        for name, record in records.items()
        for how, kept_bytes in (("kept", None), ("anew", 0))
    }
    ratios: dict[str, list[float]] = {name: [] for name in matvecs}
    gradients = []
    for index in deadline.rounds(1 + rounds, fewest=2):
        gradient = seconds(objective.value_and_gradient)
        taken = {name: seconds(partial(matvec, vector)) for name, matvec in matvecs.items()}
        if index > 0:  # the first records the graphs
            gradients.append(gradient)
            for name, value in taken.items():
                ratios[name].append(value / gradient)
    return {
        "gradient_seconds": statistics.median(gradients),
        "in_gradients": {name: statistics.median(values) for name, values in ratios.items()},
    }


def vocabulary(device: str, *, rounds: int, deadline: Deadline = NEVER) -> list[dict[str, Any]]:
    """Hessian products of cross-entropy of V classes: in closed form, and through the softmax.

    Of an embedding and a linear layer on as many random tokens as make V·n about four million,
    their graphs kept; medians over interleaved rounds, and the largest difference of the two.
    """
    cost = seconds if device == "cuda" else cpu_seconds
    rows = []
    for size in VOCABULARIES:
        tokens = torch.randint(size, (2**22 // size, 2), generator=torch.Generator().manual_seed(0))
        model = nn.Sequential(nn.Embedding(size, 64), nn.Linear(64, size)).to(device)
        problem = Problem(
            model=model,
            loss=nn.CrossEntropyLoss(reduction="none"),
            train=Examples(*tokens.to(device).unbind(1)),
        )
        ways, images = {}, {}
        for name, least in (("closed form", 0), ("softmax", 2 * size)):
            product = hessian_matvec(problem, chunk_size=len(tokens))
            vector = torch.linspace(-1, 1, product.dim, device=device)
            with mock.patch.object(closed_forms, "LARGE_VOCABULARY", least):
                images[name] = product(vector)  # and its graph is recorded
            ways[name] = partial(product, vector)
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in deadline.rounds(rounds):
            for name, way in ways.items():
                taken[name].append(cost(way))
        ratios = [a / b for a, b in zip(*taken.values(), strict=True)]
        difference = (images["closed form"] - images["softmax"]).norm() / images["softmax"].norm()
        rows.append(
            {
                "classes": size,
                "examples": len(tokens),
                "seconds": {name: statistics.median(values) for name, values in taken.items()},
                "ratio": statistics.median(ratios),
                "relative_difference": float(difference),
            }
        )
    return rows


def ours(problem: Problem, params: Params, examples: Examples) -> tuple[float, int]:
    """λ_max and products used, from building the product on."""
    matvec = hessian_matvec(problem, params, examples=examples)
    pairs = top_eigenpairs(matvec, dim=_dim(params), device=examples.inputs.device)
    assert pairs.converged, "the benchmark compares converged values"
    return pairs.values.item(), pairs.num_matvecs


def arpack(problem: Problem, params: Params, examples: Examples) -> tuple[float, int]:
    """The same by curvlinops' Hessian and SciPy's eigsh at the same tolerance."""
    curvlinops = peer("curvlinops")
    model = _at(problem, params)
    data = list(zip(examples.inputs.split(2048), examples.targets.split(2048), strict=True))
    operator = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), data, check_deterministic=False
    ).to_scipy()
    calls = 0
    apply = operator._matvec

    def counted(vector: np.ndarray) -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.asarray(apply(vector))

    operator._matvec = counted
    start = np.random.default_rng(0).normal(size=operator.shape[0]).astype(np.float32)
    (value,) = eigsh(operator, k=1, which="LA", tol=1e-3, return_eigenvectors=False, v0=start)
    return float(value), calls


def power(problem: Problem, params: Params, examples: Examples, *, tol: float) -> tuple[float, int]:
    """The same by PyHessian's power iteration, its graph kept, stopped by its change of value."""
    pyhessian = peer("pyhessian")
    model = _at(problem, params)
    on_gpu = examples.inputs.device.type == "cuda"
    theirs = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=tuple(examples), cuda=on_gpu)
    values, _ = theirs.eigenvalues(maxIter=100, tol=tol)
    return float(values[0]), 0


def compare(
    problem: Problem, params: Params, examples: Examples, *, rounds: int, deadline: Deadline = NEVER
) -> dict[str, Any]:
    """Seconds, products and true error of each solver, PyHessian at two tolerances.

    `missing` has those that are not installed.
    """
    matvec = hessian_matvec(problem, params, examples=examples, dtype=torch.float64)
    options: Any = {"dim": _dim(params), "dtype": torch.float64, "device": examples.inputs.device}
    truth = top_eigenpairs(matvec, rtol=1e-7, **options).values.item()
    del matvec
    solvers: dict[str, Callable[[Problem, Params, Examples], tuple[float, int]]] = {
        "ours": ours,
        "curvlinops + eigsh": arpack,
    }
    for tol in (
        1e-3,
        1e-5,
    ):  # its default, and as near to our true error as 100 iterations bring it
        solvers[f"PyHessian, tol {tol:g}"] = partial(power, tol=tol)
    rows: dict[str, dict[str, Any]] = {name: {"seconds": []} for name in solvers}
    missing: dict[str, str] = {}
    for _ in deadline.rounds(rounds):
        for name, solver in solvers.items():
            started = time.perf_counter()
            try:
                value, num_matvecs = solver(problem, params, examples)
            except PeerMissing as error:
                missing[name] = str(error)
                continue
            rows[name]["seconds"].append(time.perf_counter() - started)
            rows[name] |= {
                "value": value,
                "num_matvecs": num_matvecs,
                "relative_error": abs(value / truth - 1),
            }
    rows = {name: row for name, row in rows.items() if name not in missing}
    mine = rows["ours"]["seconds"]
    for row in rows.values():
        theirs = row["seconds"]
        row["ours/theirs"] = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        row["seconds"] = statistics.median(theirs)
    return {"reference": truth, "solvers": rows, "missing": missing}


def warm_starts(
    problem: Problem, along: list[Params], examples: Examples, *, seeds: int
) -> dict[str, Any]:
    """Products from cold and from eigenvectors of 100 steps earlier, over checkpoints and seeds."""
    cold: list[int] = []
    warm: list[int] = []
    for seed in range(seeds):
        previous = None
        for params in along:
            matvec = hessian_matvec(problem, params, examples=examples)

            def solve(start: torch.Tensor | None, matvec: Any = matvec, seed: int = seed) -> Any:
                generator = torch.Generator().manual_seed(seed)
                device = examples.inputs.device
                dim = _dim(along[0])
                return top_eigenpairs(
                    matvec, dim=dim, start=start, generator=generator, device=device
                )

            pairs = solve(None)
            if previous is not None:
                cold.append(pairs.num_matvecs)
                pairs = solve(previous.warm_start)
                warm.append(pairs.num_matvecs)
            previous = pairs
    return {"cold": cold, "warm": warm, "ratio": sum(warm) / sum(cold)}


def smallest(problem: Problem, along: list[Params], examples: Examples) -> dict[str, Any]:
    """Products of λ_min, at the edge of a dense bulk, at two checkpoints from two starts each."""
    rows = []
    for params in along[:2]:
        matvec = hessian_matvec(problem, params, examples=examples)
        for seed in range(2):
            generator = torch.Generator().manual_seed(seed)
            pairs = top_eigenpairs(matvec, which="smallest", generator=generator)
            rows.append({"num_matvecs": pairs.num_matvecs, "value": pairs.values.item()})
            assert pairs.converged, "the benchmark counts the products of converged values"
    median = statistics.median(row["num_matvecs"] for row in rows)
    return {"rows": rows, "num_matvecs": median}


def approach(problem: Problem, params: Params) -> list[dict[str, Any]]:
    """How near λ_min is after so many products, in the whole Krylov space of one start.

    No polynomial in H, filtered or restarted, comes nearer from that start. Beside the value, its
    residual, on which `top_eigenpairs` stops; both relative to λ_min.
    """
    examples = select(problem, num_examples=APPROACH_EXAMPLES).examples.part(slice(None))
    matvec = hessian_matvec(problem, params, examples=examples)
    generator = torch.Generator().manual_seed(0)

    def random() -> torch.Tensor:
        return torch.randn(matvec.dim, generator=generator).to(examples.inputs)

    krylov = Krylov(matvec, random(), capacity=SETTLED, random=random)
    looks = {}
    for _ in range(SETTLED):
        krylov.step()
        values, _, residuals = krylov.ritz()
        looks[krylov.size] = (values[0].item(), residuals[0].item())
    least, _ = looks[SETTLED]
    return [
        {
            "num_matvecs": size,
            "relative_error": 1 - looks[size][0] / least,
            "relative_residual": looks[size][1] / abs(least),
        }
        for size in APPROACH
    ]


def _dim(params: Params) -> int:
    return sum(param.numel() for param in params.values())


def _at(problem: Problem, params: Params) -> nn.Module:
    with torch.no_grad():
        for name, param in problem.model.named_parameters():
            param.copy_(params[name])
    return problem.model.eval()


def parts_of(problem: Problem, *, rounds: int, device: str) -> dict[str, Part]:
    """What is measured, on checkpoints that are trained for the first part."""
    examples = select(problem, num_examples=NUM_EXAMPLES).examples.part(slice(None))

    @cache
    def along() -> list[Params]:
        return checkpoints(problem)

    return {
        "peak_bytes": lambda deadline: peak_bytes(
            partial(ours, problem, along()[0], examples), device=device
        ),
        "products": lambda deadline: products(
            problem, along()[0], examples, rounds=max(rounds, 5), deadline=deadline
        ),
        "largest_eigenvalue": lambda deadline: compare(
            problem, along()[0], examples, rounds=rounds, deadline=deadline
        ),
        "vocabulary": lambda deadline: vocabulary(device, rounds=max(rounds, 5), deadline=deadline),
        "warm_starts": lambda deadline: warm_starts(problem, along(), examples, seeds=2),
        "approach_to_smallest": lambda deadline: approach(problem, along()[0]),
        "smallest_eigenvalue": lambda deadline: smallest(problem, along(), examples),
    }


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
def main(rounds: int, device: str, minutes: float | None, out: Path | None) -> None:
    """Compare curvature products and eigenvalue solvers on MNIST."""
    warnings.simplefilter("ignore")  # PyHessian's backward(create_graph=True)
    record = Record(
        out or RESULTS / f"curvature-{device}.json",
        device,
        minutes=minutes,
        num_examples=NUM_EXAMPLES,
        targets=TARGETS,
    )
    problem = build_problem(ProblemConfig(), device=device)
    parts = parts_of(problem, rounds=rounds, device=device)
    record.measure(parts, Console(stderr=True, highlight=False))
    show(record.content)


def show(result: dict[str, Any]) -> None:
    """Prints what was measured."""
    if "products" in result:
        click.echo("| product | in gradients |\n|---|---|")
        for name, ratio in result["products"]["in_gradients"].items():
            click.echo(f"| {name} | {ratio:.2f} |")
    if "largest_eigenvalue" in result:
        click.echo("\n| λ_max by | seconds | products | relative error | ours/theirs |")
        click.echo("|---|---|---|---|---|")
        for name, row in result["largest_eigenvalue"]["solvers"].items():
            count = row["num_matvecs"] or ""
            error, ratio = row["relative_error"], row["ours/theirs"]
            numbers = f"{row['seconds']:.1f} | {count} | {error:.0e} | {ratio:.2f}"
            click.echo(f"| {name} | {numbers} |")
        for name, reason in result["largest_eigenvalue"]["missing"].items():
            click.echo(f"| {name} | {reason} | | | |")
    for row in result.get("vocabulary", []):
        click.echo(
            f"\nHessian product of cross-entropy of {row['classes']:,} classes: closed form/softmax"
            f" {row['ratio']:.2f}, {row['relative_difference']:.0e} apart"
        )
    if "warm_starts" in result:
        warm = result["warm_starts"]
        sums = f"{sum(warm['warm'])}/{sum(warm['cold'])}"
        click.echo(f"\nwarm/cold products: {sums} = {warm['ratio']:.2f}")
    if "smallest_eigenvalue" in result:
        click.echo(f"products of λ_min: {result['smallest_eigenvalue']['num_matvecs']:g}")
    for row in result.get("approach_to_smallest", []):
        click.echo(
            f"λ_min after {row['num_matvecs']} products: {row['relative_error']:.1e} off, "
            f"residual {row['relative_residual']:.1e}"
        )
    if "peak_bytes" in result:
        click.echo(f"peak memory above the model: {result['peak_bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.curvature")
