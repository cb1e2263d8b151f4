"""How the cost of a measurement grows: with examples, parameters, places, the batch, processes.

    python -m experiments.benchmarks.scaling

The limit, counting matrix products: a gradient takes time in proportion to N examples, P parameters
and T places of a sequence (attention adds T², little beside the layers at these sizes), and so does
a Hessian product; what is done once, such as checks, and what a small layer leaves of a processor
make exponents below one. The monitor reads the gradient, P numbers, whatever the batch: 1 in P, 0
in B. Seconds are those of the process on one thread, medians over rounds; an exponent is the slope
of a line through their logarithms, with its standard error.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
import torch
from rich.console import Console
from torch import distributed as dist
from torch.multiprocessing.spawn import spawn

from experiments.resources import NEVER, Deadline, Part, Record, cpu_seconds, seconds
from noisescale import (
    Examples,
    NoiseScaleMonitor,
    Problem,
    ProblemConfig,
    build_problem,
    hessian_matvec,
    measure_noise,
    mlp,
)
from noisescale.problems.problem import as_examples
from noisescale.training.records.folder import read_json, write_json

RESULTS = Path(__file__).parent / "results"
FEATURES, CLASSES = 64, 10
# What stays as it is while one size is varied
NUM_EXAMPLES, WIDTH, SEQUENCES, MICRO_BATCH = 2048, 256, 128, 64
SIZES = {
    "small": {
        "N": (512, 1024, 2048, 4096, 8192),
        "width": (64, 128, 256, 512),
        "T": (16, 32, 64, 128),
        "B": (16, 64, 256, 1024),
    },
    "full": {
        "N": (1024, 4096, 16_384, 65_536),
        "width": (128, 256, 512, 1024, 2048),
        "T": (16, 32, 64, 128, 256, 512),
        "B": (16, 64, 256, 1024, 4096),
    },
}
Scale = Literal["small", "full"]
Case = tuple[int, Callable[[], float]]  # a size, and a measurement at it, which gives its seconds


def random_mlp(width: int, num_examples: int, device: str) -> Problem:
    """An MLP of two hidden layers on random numbers and classes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(num_examples, FEATURES, generator=generator)
    targets = torch.randint(CLASSES, (num_examples,), generator=generator)
    return Problem(
        model=mlp((FEATURES,), CLASSES, width=width).to(device),
        loss=partial(torch.nn.functional.cross_entropy, reduction="none"),
        train=Examples(inputs.to(device), targets.to(device)),
    )


def character_gpt(context: int, device: str) -> Problem:
    """The character GPT, of sequences of this length from a Markov chain."""
    config = ProblemConfig(dataset="markov", model="gpt", context=context)
    return build_problem(config, device=device)


def curve(cases: list[Case], *, rounds: int, deadline: Deadline = NEVER) -> dict[str, Any]:
    """Median seconds of each case over interleaved rounds, and the exponent that fits them.

    Args:
        cases: by size, ascending; each is called once before it counts.
        rounds: of all cases.
        deadline: after which no further round begins.
    """
    taken: list[list[float]] = [[] for _ in cases]
    for index in deadline.rounds(1 + rounds, fewest=3):
        for times, (_, measure) in zip(taken, cases, strict=True):
            found = measure()
            if index > 0:
                times.append(found)
    values = [size for size, _ in cases]
    medians = [statistics.median(times) for times in taken]
    return {
        "values": values,
        "seconds": medians,
        "rounds": len(taken[0]),
        "exponent": exponent(values, medians),
    }


def exponent(sizes: list[int], costs: list[float]) -> dict[str, float]:
    """The a of cost ∝ sizeᵃ, by least squares of the logarithms, with its standard error.

    Args:
        sizes: three or more.
        costs: of each, positive.
    """
    x, y = np.log(sizes), np.log(costs)
    deviations = x - x.mean()
    slope = float(deviations @ y / (deviations @ deviations))
    residuals = y - y.mean() - slope * deviations
    variance = float(residuals @ residuals) / (len(x) - 2)
    return {"value": slope, "stderr": math.sqrt(variance / float(deviations @ deviations))}


def cost_on(device: str) -> Callable[[Callable[[], Any]], float]:
    """The seconds of one call: of the process, which others' work lengthens less; on a GPU all."""
    return seconds if device == "cuda" else cpu_seconds


def noise_cases(problems: dict[int, Problem], device: str) -> list[Case]:
    """`measure_noise` of problems by size."""
    cost = cost_on(device)
    return [(size, partial(cost, partial(measure_noise, one))) for size, one in problems.items()]


def product_cases(problems: dict[int, Problem], device: str) -> list[Case]:
    """A Hessian product of problems by size, its graphs kept as far as the memory allows."""
    cases: list[Case] = []
    for size, problem in problems.items():
        product = hessian_matvec(problem)
        vector = torch.ones(product.dim, device=product.device)
        cases.append((size, partial(cost_on(device), partial(product, vector))))
    return cases


def monitor_cases(problems: dict[int, tuple[Problem, int]], device: str) -> list[Case]:
    """What a monitor adds to an update of two micro-batches of so many examples, by size."""
    cost = cost_on(device)

    def looks(problem: Problem, examples: int, monitor: NoiseScaleMonitor) -> float:
        taken = 0.0
        train = as_examples(problem.train)
        for start in (0, examples):
            part = train.part(slice(start, start + examples))
            losses = problem.loss(problem.model(part.inputs), part.targets)
            (losses.mean() / 2).backward()
            taken += cost(lambda: monitor.micro_batch(examples))
        taken += cost(monitor.update)
        problem.model.zero_grad()
        return taken

    return [
        (size, partial(looks, problem, examples, NoiseScaleMonitor(problem.model)))
        for size, (problem, examples) in problems.items()
    ]


def parts_of(device: str, *, scale: Scale, rounds: int) -> dict[str, Part]:
    """What is measured: a curve for each measurement and size, and one and two processes."""
    sizes = SIZES[scale]

    @cache
    def by_examples() -> dict[int, Problem]:
        return {number: random_mlp(WIDTH, number, device) for number in sizes["N"]}

    @cache
    def by_width() -> dict[int, Problem]:
        problems = [random_mlp(width, NUM_EXAMPLES, device) for width in sizes["width"]]
        return {_num_parameters(problem): problem for problem in problems}

    @cache
    def by_places() -> dict[int, Problem]:
        problems = {context: character_gpt(context, device) for context in sizes["T"]}
        return {
            context: replace(one, train=as_examples(one.train).part(slice(SEQUENCES)))
            for context, one in problems.items()
        }

    def by_batch() -> dict[int, tuple[Problem, int]]:
        problem = random_mlp(WIDTH, 2 * max(sizes["B"]), device)
        return {size: (problem, size) for size in sizes["B"]}

    def part(what: str, against: str, problem: str, cases: Callable[[], list[Case]]) -> Part:
        names = {"what": what, "against": against, "problem": problem}
        return lambda deadline: names | curve(cases(), rounds=rounds, deadline=deadline)

    cases: dict[tuple[str, str, str], Callable[[], list[Case]]] = {
        ("noise", "N", "MLP"): lambda: noise_cases(by_examples(), device),
        ("noise", "P", "MLP"): lambda: noise_cases(by_width(), device),
        ("noise", "T", "GPT"): lambda: noise_cases(by_places(), device),
        ("hessian", "N", "MLP"): lambda: product_cases(by_examples(), device),
        ("hessian", "P", "MLP"): lambda: product_cases(by_width(), device),
        ("hessian", "T", "GPT"): lambda: product_cases(by_places(), device),
        ("monitor", "P", "MLP"): lambda: monitor_cases(
            {size: (one, MICRO_BATCH) for size, one in by_width().items()}, device
        ),
        ("monitor", "B", "MLP"): lambda: monitor_cases(by_batch(), device),
    }
    parts = {
        f"curves/+{what} against {against}": part(what, against, problem, of)
        for (what, against, problem), of in cases.items()
    }
    if device == "cpu":
        parts["processes"] = lambda deadline: processes(max(sizes["N"]), rounds=rounds)
    return parts


def processes(num_examples: int, *, rounds: int) -> dict[str, Any]:
    """What `measure_noise` takes of the busiest of one process, and of two of one thread each.

    In the processes' own seconds, which on idle cores are those of the clock.
    """
    taken = {number: _in_processes(number, num_examples, rounds=rounds) for number in (1, 2)}
    return {
        "num_examples": num_examples,
        "seconds": {str(number): seconds for number, seconds in taken.items()},
        "speed_up": taken[1] / taken[2],
    }


def _in_processes(number: int, num_examples: int, *, rounds: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OMP_NUM_THREADS"] = "1"
        spawn(in_process, (number, folder, num_examples, rounds), nprocs=number)
        found = read_json(Path(folder) / "found.json")
    assert found is not None
    return float(found["seconds"])


def in_process(rank: int, number: int, folder: str, num_examples: int, rounds: int) -> None:
    """One of so many processes, which share the examples of a measurement."""
    torch.set_num_threads(1)
    file = Path(folder) / "meet"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=number)
    problem = random_mlp(WIDTH, num_examples, "cpu")
    taken = []
    for _ in range(1 + rounds):
        dist.barrier()
        taken.append(cpu_seconds(partial(measure_noise, problem)))
    busiest = torch.tensor(taken[1:])
    dist.all_reduce(busiest, dist.ReduceOp.MAX)
    if rank == 0:
        write_json(Path(folder) / "found.json", {"seconds": statistics.median(busiest.tolist())})
    dist.barrier()
    dist.destroy_process_group()


def _num_parameters(problem: Problem) -> int:
    return sum(parameter.numel() for parameter in problem.model.parameters())


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--scale", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--rounds", type=click.IntRange(min=2), default=5, show_default=True)
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="JSON file.  [default: results/scaling-DEVICE.json]",
)
def main(device: str, scale: Scale, rounds: int, minutes: float | None, out: Path | None) -> None:
    """Measure how costs grow, and print and write it with the fitted exponents."""
    torch.set_num_threads(1)
    record = Record(out or RESULTS / f"scaling-{device}.json", device, minutes=minutes, scale=scale)
    parts = parts_of(device, scale=scale, rounds=rounds)
    record.measure(parts, Console(stderr=True, highlight=False))
    for found in record.content.get("curves", []):
        fitted = "{value:.2f} ± {stderr:.2f}".format(**found["exponent"])
        ends = f"{1e3 * found['seconds'][0]:.3g} to {1e3 * found['seconds'][-1]:.3g} ms"
        click.echo(f"{found['what']:8} against {found['against']}: exponent {fitted}, {ends}")
    if (paired := record.content.get("processes")) is not None:
        click.echo(f"two processes: {paired['speed_up']:.2f} times as fast as one")


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.scaling")
