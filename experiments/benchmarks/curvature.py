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
from functools import partial
from pathlib import Path
from typing import Any

import click
import curvlinops
import numpy as np
import torch
from pyhessian import hessian as pyhessian
from rich.console import Console
from scipy.sparse.linalg import eigsh
from torch import nn

from experiments.benchmarks.resources import peak_bytes, seconds, where_and_when
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
from noisescale.measure.curvature.products import CurvatureProduct, record_ggn, record_hessian
from noisescale.problems.problem import Examples, Params
from noisescale.problems.sampling import select
from noisescale.training.records.folder import write_json

RESULTS = Path(__file__).parent / "results"
NUM_EXAMPLES = 10_000
DISTANCE = 100  # training steps between the checkpoints of the warm start
TARGETS = {
    "hessian": 3.2,
    "ggn": 2.5,
    "curvlinops": 1.1,
    "pyhessian": 1.0,
    "warm/cold": 0.8,
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
    problem: Problem, params: Params, examples: Examples, *, rounds: int
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
    for counted in (False, *[True] * rounds):
        gradient = seconds(objective.value_and_gradient)
        taken = {name: seconds(partial(matvec, vector)) for name, matvec in matvecs.items()}
        if counted:
            gradients.append(gradient)
            for name, value in taken.items():
                ratios[name].append(value / gradient)
    return {
        "gradient_seconds": statistics.median(gradients),
        "in_gradients": {name: statistics.median(values) for name, values in ratios.items()},
    }


def ours(problem: Problem, params: Params, examples: Examples) -> tuple[float, int]:
    """λ_max and products used, from building the product on."""
    matvec = hessian_matvec(problem, params, examples=examples)
    pairs = top_eigenpairs(matvec, dim=_dim(params), device=examples.inputs.device)
    assert pairs.converged, "the benchmark compares converged values"
    return pairs.values.item(), pairs.num_matvecs


def arpack(problem: Problem, params: Params, examples: Examples) -> tuple[float, int]:
    """The same by curvlinops' Hessian and SciPy's eigsh at the same tolerance."""
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
    model = _at(problem, params)
    device = examples.inputs.device.type
    peer = pyhessian(model, nn.CrossEntropyLoss(), data=tuple(examples), cuda=device == "cuda")
    values, _ = peer.eigenvalues(maxIter=100, tol=tol)
    return float(values[0]), 0


def compare(problem: Problem, params: Params, examples: Examples, *, rounds: int) -> dict[str, Any]:
    """Seconds, products and true error of each solver, PyHessian at two tolerances."""
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
    for _ in range(rounds):
        for name, solver in solvers.items():
            started = time.perf_counter()
            value, num_matvecs = solver(problem, params, examples)
            rows[name]["seconds"].append(time.perf_counter() - started)
            rows[name] |= {
                "value": value,
                "num_matvecs": num_matvecs,
                "relative_error": abs(value / truth - 1),
            }
    mine = rows["ours"]["seconds"]
    for row in rows.values():
        theirs = row["seconds"]
        row["ours/theirs"] = statistics.median(a / b for a, b in zip(mine, theirs, strict=True))
        row["seconds"] = statistics.median(theirs)
    return {"reference": truth, "solvers": rows}


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


def _dim(params: Params) -> int:
    return sum(param.numel() for param in params.values())


def _at(problem: Problem, params: Params) -> nn.Module:
    with torch.no_grad():
        for name, param in problem.model.named_parameters():
            param.copy_(params[name])
    return problem.model.eval()


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file.")
def main(rounds: int, device: str, out: Path | None) -> None:
    """Compare curvature products and eigenvalue solvers on MNIST."""
    warnings.simplefilter("ignore")  # PyHessian's backward(create_graph=True)
    console = Console(stderr=True)
    problem = build_problem(ProblemConfig(), device=device)
    examples = select(problem, num_examples=NUM_EXAMPLES).examples.part(slice(None))
    console.print("training one epoch")
    along = checkpoints(problem)
    result: dict[str, Any] = {**where_and_when(device), "num_examples": NUM_EXAMPLES}
    result["targets"] = TARGETS
    console.print("peak memory")
    result["peak_bytes"] = peak_bytes(partial(ours, problem, along[0], examples), device=device)
    console.print("products")
    result["products"] = products(problem, along[0], examples, rounds=max(rounds, 5))
    console.print(result["products"])
    console.print("solvers")
    result["largest_eigenvalue"] = compare(problem, along[0], examples, rounds=rounds)
    console.print(result["largest_eigenvalue"])
    console.print("warm starts")
    result["warm_starts"] = warm_starts(problem, along, examples, seeds=2)
    write_json(out or RESULTS / f"curvature-{device}.json", result)

    click.echo("| product | in gradients |\n|---|---|")
    for name, ratio in result["products"]["in_gradients"].items():
        click.echo(f"| {name} | {ratio:.2f} |")
    click.echo(
        "\n| λ_max by | seconds | products | relative error | ours/theirs |\n|---|---|---|---|---|"
    )
    for name, row in result["largest_eigenvalue"]["solvers"].items():
        count = row["num_matvecs"] or ""
        error, ratio = row["relative_error"], row["ours/theirs"]
        numbers = f"{row['seconds']:.1f} | {count} | {error:.0e} | {ratio:.2f}"
        click.echo(f"| {name} | {numbers} |")
    warm = result["warm_starts"]
    click.echo(
        f"\nwarm/cold products: {sum(warm['warm'])}/{sum(warm['cold'])} = {warm['ratio']:.2f}"
    )
    click.echo(f"peak memory above the model: {result['peak_bytes'] / 2**20:.0f} MiB")


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.curvature")
