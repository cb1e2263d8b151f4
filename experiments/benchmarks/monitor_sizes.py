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
import time
from collections.abc import Callable
from dataclasses import replace
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
from experiments.benchmarks.resources import where_and_when
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


def overhead(plain: Step, watched: Step, *, rounds: int) -> dict[str, float]:
    """CPU seconds of a plain step, and what the other takes more, as shares of it.

    Their medians, and the mean, in which a few expensive steps count.
    """
    plain(), watched()
    times = [(_cpu_seconds(plain), _cpu_seconds(watched)) for _ in range(rounds)]
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


def measure(problem: Problem, size: tuple[int, int], *, rounds: int) -> dict[str, Any]:
    """Of one model and one process."""
    monitor = NoiseScaleMonitor(problem.model)
    steps = accumulating(problem, size), accumulating(problem, size, monitor)
    parameters = sum(one.numel() for one in problem.model.parameters())
    return {
        "parameters": parameters,
        "micro_batches": size[0],
        "examples": size[1],
        **overhead(*steps, rounds=rounds),
    }


def measure_norm_layers(problem: Problem, examples: int, *, rounds: int) -> dict[str, Any]:
    """Of a norm-layer monitor, whose hooks stay on a copy of the model."""
    watched = replace(problem, model=copy.deepcopy(problem.model))
    monitor = NormLayerMonitor(watched.model)
    steps = of_one_batch(problem, examples), of_one_batch(watched, examples, monitor)
    # whole cycles, of one split update each
    return {"examples": examples, **overhead(*steps, rounds=EVERY * max(rounds // EVERY, 1))}


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


def _cpu_seconds(step: Step) -> float:
    started = time.process_time()
    step()
    return time.process_time() - started


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=3), default=60, show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=RESULTS / "monitor_sizes-cpu.json",
    help="JSON file.  [default: results/monitor_sizes-cpu.json]",
)
def main(rounds: int, out: Path) -> None:
    """Measure what the monitors add to a step, and print and write it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console = Console(highlight=False)
    problems = {name: case.problem for name, case in cases("cpu", scale=0.1).items()}
    record: dict[str, Any] = {"models": {}, "norm_layers": {}, "targets": TARGETS}
    for name, size in SIZES.items():
        record["models"][name] = measure(problems[name], size, rounds=rounds)
        console.print(name, record["models"][name])
    for name in NORM_LAYERS:
        count, examples = SIZES[name]
        found = measure_norm_layers(problems[name], count * examples, rounds=rounds)
        record["norm_layers"][name] = found
        console.print("norm layers", name, found)
    with TemporaryDirectory() as folder:
        os.environ["OMP_NUM_THREADS"] = "1"
        place = Path(folder)
        spawn(in_process, (str(place / "meet"), folder, rounds), nprocs=2)
        record["processes"] = json.loads((place / "found.json").read_text())
    console.print(record["processes"])
    write_json(out, {**where_and_when("cpu"), "rounds": rounds, **record})
    console.print(str(out))


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.monitor_sizes")
