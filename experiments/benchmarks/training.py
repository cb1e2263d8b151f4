"""Steps per second: a notebook's loop, an eager loop on a resident tensor, and ours.

    python -m experiments.benchmarks.training

The limit. The products of a step at batch size 1 are bound by memory traffic. The study's 1.86 M
float32 parameters are 7.5 MB. Eager SGD reads them forward (7.5), reads all but the first layer
backward (4.2), writes the gradient (7.5), then reads gradient and parameters and writes the
parameters (22.4): 41.6 MB. Without a stored gradient the update reads and writes the parameters
alone: 26.6 MB, so at most 1.6 times as many steps where traffic is all there is. Steps that are
compiled make the update of a layer in the same pass as its next product, 19.1 MB, and do not write
the rows of units that a ReLU shuts: 15.4 MB where it shuts half, 2.7 times. What the machine
makes of the first of these is measured beside: the same products and updates as bare calls,
gradients stored and in place. What a step takes beyond them is Python, autograd and the optimizer:
of which a chain of layers needs less, and compiled steps next to nothing. At batch size 1024 a step
is 11.4 GFLOP of matrix products on either side, and no form of the update can matter.

AdamW, on the character GPT, needs the stored gradient: nothing is to be gained, and the loop with
torch's fused AdamW is the limit.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from experiments.resources import NEVER, Deadline, Part, Record
from noisescale import Problem, ProblemConfig, TrainConfig, build_problem
from noisescale.problems.data.splits import default_data_dir
from noisescale.problems.problem import as_examples
from noisescale.training.config import OptimizerName
from noisescale.training.trainer import Training
from noisescale.training.updates.in_place.in_place_sgd import update_linear

RESULTS = Path(__file__).parent / "results"
LEARNING_RATE = 1e-3
STEPS = {
    1: 300,
    32: 80,
    1024: 4,
}  # a round: short, so that the three see the same state of the machine
ADAMW_STEPS = 10
TARGETS = {1: 1.5, 32: 1.15, 1024: 1.0}
NOTEBOOK_TARGETS = {1: 2.0, 32: 3.0}


def notebook(problem: Problem, batch_size: int) -> Iterator[int]:
    """Dataset, transforms, DataLoader, eager SGD: images are decoded and moved one by one."""
    device = next(problem.model.parameters()).device
    scale = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.1307, 0.3081)])
    data = datasets.MNIST(str(default_data_dir()), transform=scale)
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    while True:
        for inputs, targets in DataLoader(data, batch_size=batch_size, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs.to(device)), targets.to(device)).backward()
            optimizer.step()
            yield 1


def eager(problem: Problem, batch_size: int) -> Iterator[int]:
    """Eager SGD on a tensor that lies on the device."""
    inputs, targets = as_examples(problem.train)
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    while True:
        for batch in torch.randperm(len(targets), device=targets.device).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), targets[batch]).backward()
            optimizer.step()
            yield 1


def fused_adamw(problem: Problem, batch_size: int) -> Iterator[int]:
    """The character GPT with torch's fused AdamW, as one would write it."""
    inputs, targets = as_examples(problem.train)
    model = copy.deepcopy(problem.model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    while True:
        for batch in torch.randperm(len(targets), device=targets.device).split(batch_size):
            optimizer.zero_grad()
            logits = model(inputs[batch])
            F.cross_entropy(logits.flatten(0, 1), targets[batch].flatten()).backward()
            optimizer.step()
            yield 1


def ours(problem: Problem, batch_size: int, optimizer: OptimizerName = "sgd") -> Iterator[int]:
    """`Training`: batches, updates, and a look at every loss."""
    config = TrainConfig(
        batch_size=batch_size, learning_rate=LEARNING_RATE, optimizer=optimizer, epochs=10**6
    )
    before = 0
    for step in Training(problem, config).calls(lambda step: False):
        yield step - before
        before = step


def products(problem: Problem, batch_size: int, *, stored: bool) -> Iterator[int]:
    """The matrix products and updates of a step on the linear layers, and nothing else.

    stored: whether the gradient is written first, as autograd does; else updates are in place.
    """
    model = copy.deepcopy(problem.model).requires_grad_(False)
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear]
    device = layers[0].weight.device
    inputs = [torch.randn(batch_size, layer.in_features, device=device) for layer in layers]
    grads = [torch.full((batch_size, layer.out_features), 1e-6, device=device) for layer in layers]
    while True:
        for layer, x in zip(layers, inputs, strict=True):
            F.linear(x, layer.weight, layer.bias)
        gradients = []
        for place in reversed(range(len(layers))):
            layer, x, grad = layers[place], inputs[place], grads[place]
            if place:
                grad @ layer.weight
            if stored:
                gradients.append((layer, grad.T @ x, grad.sum(0)))
            else:
                update_linear(layer.weight, layer.bias, x, grad, LEARNING_RATE, 0.0)
        for layer, of_weight, of_bias in gradients:
            layer.weight.sub_(of_weight, alpha=LEARNING_RATE)
            layer.bias.sub_(of_bias, alpha=LEARNING_RATE)
        yield 1


Loops = dict[str, Callable[[Problem, int], Iterator[int]]]  # which give the steps just made
LIMITS = ("products, gradient stored", "products, in place")
LOOPS: Loops = {
    "notebook": notebook,
    "eager": eager,
    "ours": ours,
    LIMITS[0]: partial(products, stored=True),
    LIMITS[1]: partial(products, stored=False),
}
ADAMW_LOOPS: Loops = {"fused": fused_adamw, "ours": partial(ours, optimizer="adamw")}
ADAMW_BATCH_SIZE = 16  # sequences, 1,024 characters: a step of some 40 ms


def compare(
    problem: Problem,
    batch_size: int,
    *,
    rounds: int,
    loops: Loops = LOOPS,
    deadline: Deadline = NEVER,
) -> dict[str, Any]:
    """Median steps per second of each loop over interleaved rounds, and medians of ours/other.

    limit: how many times as many steps the products alone allow in place as with gradients stored.
    """
    running = {name: loop(problem, batch_size) for name, loop in loops.items()}
    steps = STEPS.get(batch_size, ADAMW_STEPS)
    speeds: dict[str, list[float]] = {name: [] for name in running}
    wanted = deadline.rounds(1 + rounds, fewest=3)  # the first is not counted; quartiles take two
    for index in track(wanted, total=1 + rounds, description=f"B = {batch_size}", transient=True):
        for name, loop in running.items():
            speed = _steps_per_second(loop, steps, problem)
            if index > 0:
                speeds[name].append(speed)
    limit = {}
    if speeds.keys() >= set(LIMITS):
        pairs = zip(*(speeds[name] for name in LIMITS), strict=True)
        limit = {"limit": _quartiles([in_place / stored for stored, in_place in pairs])}
    return {
        "batch_size": batch_size,
        "rounds": len(speeds["ours"]),
        "steps_per_round": steps,
        "steps_per_second": {name: statistics.median(values) for name, values in speeds.items()},
        "ratio": {
            name: _quartiles(
                [mine / other for mine, other in zip(speeds["ours"], speeds[name], strict=True)]
            )
            for name in loops
            if name not in ("ours", *LIMITS)
        },
        **limit,
        "target": TARGETS.get(batch_size, 1.0),
        "notebook_target": NOTEBOOK_TARGETS.get(batch_size),
    }


def epoch_at_batch_size_one(problem: Problem) -> dict[str, float]:
    """On a GPU: seconds of one epoch of 60,000 steps, after a warm-up, and the peak memory."""
    training = Training(problem, TrainConfig(batch_size=1, learning_rate=LEARNING_RATE, epochs=2))
    steps = iter(training)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(100):
        next(steps)
    torch.cuda.synchronize()
    before, started = training.step, time.perf_counter()
    for step in steps:
        if step == before + training.examples.num_examples:
            break
    torch.cuda.synchronize()
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def _steps_per_second(loop: Iterator[int], steps: int, problem: Problem) -> float:
    """Of so many steps, or a few more where several are made in a call."""
    started, made = time.perf_counter(), 0
    while made < steps:
        made += next(loop)
    if next(problem.model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return made / (time.perf_counter() - started)


def _quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": median, "low": low, "high": high}


def parts_of(*, rounds: int, device: str) -> dict[str, Part]:
    """What is measured: the study's network on MNIST, and the character GPT."""
    problem = build_problem(ProblemConfig(), device=device)

    def of_characters(deadline: Deadline) -> dict[str, Any]:
        characters = build_problem(ProblemConfig(dataset="shakespeare", model="gpt"), device=device)
        return compare(
            characters, ADAMW_BATCH_SIZE, rounds=rounds, loops=ADAMW_LOOPS, deadline=deadline
        )

    def at(batch_size: int) -> Part:
        return lambda deadline: compare(problem, batch_size, rounds=rounds, deadline=deadline)

    parts = {f"rows/+B = {batch_size}": at(batch_size) for batch_size in STEPS}
    parts["adamw"] = of_characters
    if device == "cuda":
        parts["epoch_at_batch_size_one"] = lambda deadline: epoch_at_batch_size_one(problem)
    return parts


@click.command()
@click.option("--rounds", type=click.IntRange(min=2), default=21, show_default=True)
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True)
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="JSON file.  [default: results/training-DEVICE.json]",
)
def main(rounds: int, device: str, minutes: float | None, out: Path | None) -> None:
    """Compare training loops: the study's network on MNIST, and the character GPT."""
    record = Record(out or RESULTS / f"training-{device}.json", device, minutes=minutes)
    record.measure(parts_of(rounds=rounds, device=device), Console(stderr=True, highlight=False))
    show(record.content)


def show(result: dict[str, Any]) -> None:
    """Prints what was measured."""
    click.echo(f"| B | {' | '.join(LOOPS)} | ours/notebook | ours/eager (quartiles) | target |")
    click.echo("|---" * (len(LOOPS) + 4) + "|")
    for row in result.get("rows", []):
        speeds = " | ".join(f"{speed:,.1f}" for speed in row["steps_per_second"].values())
        against = "{median:.2f} ({low:.2f}–{high:.2f})".format(**row["ratio"]["eager"])
        notebook = row["ratio"]["notebook"]["median"]
        click.echo(
            f"| {row['batch_size']} | {speeds} | {notebook:.2f} | {against} | ≥ {row['target']} |"
        )
    if (adamw := result.get("adamw")) is not None:
        speeds = " | ".join(f"{speed:,.1f}" for speed in adamw["steps_per_second"].values())
        against = "{median:.2f} ({low:.2f}–{high:.2f})".format(**adamw["ratio"]["fused"])
        click.echo(
            f"AdamW on the character GPT, B = {ADAMW_BATCH_SIZE}, steps/s with a plain loop | "
            f"ours: {speeds}; ours/plain {against}"
        )
    if (epoch := result.get("epoch_at_batch_size_one")) is not None:
        click.echo(f"one epoch at B = 1: {epoch['seconds']:.2f} s")


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.training")
