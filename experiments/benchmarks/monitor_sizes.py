"""What the monitors add to a training step, from a small network to a small GPT, and in processes.

    python -m experiments.benchmarks.monitor_sizes

In CPU seconds of the process, by one thread, which other work on the machine changes little; steps
with and without a monitor take turns. In two processes either has a model of its own that is
reduced as the other's is.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from rich.console import Console
from torch import Tensor, distributed as dist, nn
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from experiments.benchmarks.noise import cases
from experiments.resources import (
    NEVER,
    Deadline,
    Part,
    Record,
    cpu_seconds,
    peer,
    seconds,
)
from noisescale import NoiseScaleMonitor, NormLayerMonitor
from noisescale.problems.problem import Problem, as_examples
from noisescale.training.records.folder import write_json

RESULTS = Path(__file__).parent / "results"
# micro-batches and examples in each, of the models of the benchmark of per-example gradients
SIZES = {"mlp": (8, 128), "cnn": (8, 32), "transformer": (4, 8), "gpt2 small": (2, 2)}
IN_PROCESSES = ("mlp", "transformer")
NORM_LAYERS = ("transformer", "gpt2 small")
EVERY = 20  # updates, of which the norm-layer monitor splits one
TARGETS = {"monitor": 0.03, "norm layers": 0.05}  # of a step, of the MLP and of the transformer

Step = Callable[[], Any]


def overhead(
    plain: Step, watched: Step, *, rounds: int, device: str = "cpu", deadline: Deadline = NEVER
) -> dict[str, float]:
    """Seconds of a plain step, of the process or on a GPU's clock, and what the other takes more.

    That as shares of it: their medians, and the mean, in which a few expensive steps count.
    """
    plain(), watched()
    cost = seconds if device == "cuda" else cpu_seconds
    times = [(cost(plain), cost(watched)) for _ in deadline.rounds(rounds, fewest=3)]
    without, with_it = zip(*times, strict=True)
    return {
        "seconds": statistics.median(without),
        "overhead": statistics.median(with_it) / statistics.median(without) - 1,
        "mean_overhead": sum(with_it) / sum(without) - 1,
    }


def accumulating(problem: Problem, size: tuple[int, int], monitor: Any = None) -> Step:
    """A step of so many micro-batches of so many examples, with a monitor or without."""
    count, examples = size
    parts = _parts(problem, count, examples)

    def step() -> None:
        for inputs, targets in parts:
            loss = problem.loss(problem.model(inputs), targets).mean()
            (loss / count).backward()
            if monitor is not None:
                monitor.micro_batch(examples)
        if monitor is not None:
            monitor.update()
        problem.model.zero_grad()

    return step


def of_one_batch(problem: Problem, examples: int, monitor: NormLayerMonitor | None = None) -> Step:
    """A step of one batch, with a norm-layer monitor or without."""
    ((inputs, targets),) = _parts(problem, 1, examples)

    def step() -> None:
        losses = problem.loss(problem.model(inputs), targets)
        if monitor is None:
            losses.mean().backward()
        else:
            monitor.backward(losses, every=EVERY)
            monitor.update()
        problem.model.zero_grad()

    return step


def measure(problem: Problem, size: tuple[int, int], **how: Any) -> dict[str, Any]:
    """Of one model and one process; `how` is for `overhead`."""
    monitor = NoiseScaleMonitor(problem.model)
    steps = accumulating(problem, size), accumulating(problem, size, monitor)
    parameters = sum(one.numel() for one in problem.model.parameters())
    return {
        "parameters": parameters,
        "micro_batches": size[0],
        "examples": size[1],
        **overhead(*steps, **how),
    }


def measure_norm_layers(
    problem: Problem, examples: int, *, rounds: int, **how: Any
) -> dict[str, Any]:
    """Of a norm-layer monitor, whose hooks stay on a copy of the model."""
    watched = replace(problem, model=copy.deepcopy(problem.model))
    monitor = NormLayerMonitor(watched.model)
    steps = of_one_batch(problem, examples), of_one_batch(watched, examples, monitor)
    # whole cycles, of one split update each
    cycles = EVERY * max(rounds // EVERY, 1)
    return {"examples": examples, **overhead(*steps, rounds=cycles, **how)}


def reduced(problem: Problem, strategy: str) -> nn.Module:
    """A copy of the model, its gradients reduced over the processes."""
    model = copy.deepcopy(problem.model)
    if strategy == "ddp":
        return DistributedDataParallel(model)
    fully_shard(model)
    return model


def in_process(rank: int, file: str, folder: str, rounds: int) -> None:
    """One of two processes: models reduced by DDP and FSDP2, one of either with a monitor."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    found = {}
    for name in IN_PROCESSES:
        problem, examples = cases("cpu", scale=0.1)[name].problem, SIZES[name][1]
        for strategy in ("ddp", "fsdp2"):
            plain, watched = (replace(problem, model=reduced(problem, strategy)) for _ in range(2))
            monitor = NoiseScaleMonitor(watched.model.parameters())
            monitor.attach(watched.model)
            steps = (
                accumulating(plain, (1, examples)),
                accumulating(watched, (1, examples), monitor),
            )
            found[f"{name} {strategy}"] = {
                "examples": examples,
                **overhead(*steps, rounds=rounds),
            }
    if rank == 0:
        write_json(Path(folder) / "found.json", found)
    dist.barrier()
    dist.destroy_process_group()


def _parts(problem: Problem, count: int, examples: int) -> list[tuple[Any, Tensor]]:
    train = as_examples(problem.train)
    rows = torch.arange(count * examples) % train.num_examples
    return [(train.inputs[part], train.targets[part]) for part in rows.split(examples)]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=3), default=60, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="JSON file.  [default: results/monitor_sizes-DEVICE.json]",
)
def main(rounds: int, device: str, minutes: float | None, out: Path | None) -> None:
    """Measure what the monitors add to a step, and print and write it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    record = Record(
        out or RESULTS / f"monitor_sizes-{device}.json",
        device,
        minutes=minutes,
        rounds=rounds,
        targets=TARGETS,
    )
    record.measure(parts_of(device, rounds=rounds), Console(stderr=True, highlight=False))
    for name in ("models", "norm_layers", "processes"):
        click.echo(f"{name}: {record.content.get(name, 'not measured')}")


def parts_of(device: str, *, rounds: int) -> dict[str, Part]:
    """What is measured; in two processes on a CPU alone, since a GPU is one process's."""

    @cache
    def problems() -> dict[str, Problem]:
        return {name: case.problem for name, case in cases(device, scale=0.1).items()}

    def of_model(name: str) -> Part:
        return lambda deadline: measure(
            problem_of(problems(), name),
            SIZES[name],
            rounds=rounds,
            device=device,
            deadline=deadline,
        )

    def of_norm_layers(name: str) -> Part:
        count, examples = SIZES[name]
        return lambda deadline: measure_norm_layers(
            problem_of(problems(), name),
            count * examples,
            rounds=rounds,
            device=device,
            deadline=deadline,
        )

    parts = {f"models/{name}": of_model(name) for name in SIZES}
    parts |= {f"norm_layers/{name}": of_norm_layers(name) for name in NORM_LAYERS}
    if device == "cpu":
        parts["processes"] = lambda deadline: in_processes(rounds=rounds)
    return parts


def problem_of(problems: dict[str, Problem], name: str) -> Problem:
    """One of the models; PeerMissing where it is another library's that is not there."""
    if name not in problems:
        peer("transformers")
    return problems[name]


def in_processes(*, rounds: int) -> dict[str, Any]:
    """What `in_process` finds in two processes of one thread each."""
    with TemporaryDirectory() as folder:
        os.environ["OMP_NUM_THREADS"] = "1"
        place = Path(folder)
        spawn(in_process, (str(place / "meet"), folder, rounds), nprocs=2)
        found: dict[str, Any] = json.loads((place / "found.json").read_text())
    return found


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.monitor_sizes")
