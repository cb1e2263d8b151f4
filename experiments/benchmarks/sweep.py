"""How fast studies are: their default commands, two processes against one, bisection, replicas.

    python -m experiments.benchmarks.sweep

The limits. Processes: cells share nothing but memory bandwidth and the cores, so two are twice as
fast, less the start of Python and torch in each. Bisection: of n rates and s seeds, a scan of every
k-th, log₂ k of it and about three of each other seed, against n·s. Replicas: at small B a run is
bound by launching its kernels on a GPU, which R replicas share; on a CPU by reading and writing the
weights, which they do not. Commands: runs that do not repeat one another, and what can be left out
of them, the simulations of linearised SGD by --no-predict, the noise along runs by --no-noise.
"""

from __future__ import annotations

import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from experiments.resources import NEVER, Deadline, LeftOut, Part, Record, seconds
from noisescale import (
    Horizon,
    ProblemConfig,
    SweepConfig,
    SweepOptions,
    SweepResult,
    TrainConfig,
    run_sweep,
)
from noisescale.problems.build import build_problem
from noisescale.problems.problem import Problem, as_examples
from noisescale.studies.jobs.cell import one_thread
from noisescale.studies.jobs.local import LocalProcesses
from noisescale.studies.stability_map.replicas import ReplicaTraining
from noisescale.training.records.folder import SUMMARY, finished_runs
from noisescale.training.trainer import Training

RESULTS = Path(__file__).parent / "results"
TARGETS = {"processes": 1.85, "bisection": 0.4, "replicas": 5.0}
COMMANDS = {"sweep-lr": 240.0, "critical-batch": 300.0}  # seconds on two cores, at most
REPLICAS = 16
BATCH_SIZES = (1, 8, 32)
UNIT = ProblemConfig(dataset="mnist", width=256)
# cells of a few seconds each, none of which diverges
EVEN = SweepConfig(
    problem=UNIT,
    batch_sizes=(16,),
    lr_min=0.01,
    lr_max=0.1,
    num_lr=8,
    num_seeds=3,
    horizon=Horizon(steps=4000),
)
GRID = SweepConfig(
    problem=ProblemConfig(dataset="digits", width=32),
    batch_sizes=(4, 32, 256),
    lr_min=1e-2,
    lr_max=1e3,
    factor=1.25,
    num_seeds=5,
    horizon=Horizon(steps=60),
)


def sweep_seconds(
    config: SweepConfig, options: SweepOptions, make: Callable[[], Executor]
) -> float:
    """Of a whole sweep into an empty folder, the start of its processes included."""
    with tempfile.TemporaryDirectory() as folder:

        def work() -> None:
            with make() as executor:
                run_sweep(config, Path(folder) / "sweep", executor=executor, options=options)

        return seconds(work)


def processes(
    config: SweepConfig, options: SweepOptions, *, rounds: int, deadline: Deadline = NEVER
) -> dict[str, Any]:
    """Two local processes against one, interleaved."""
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in deadline.rounds(rounds):
        for num_processes, taken in times.items():
            executor = partial(LocalProcesses, num_processes)
            taken.append(sweep_seconds(config, options, executor))
    ratios = [alone / paired for alone, paired in zip(times[1], times[2], strict=True)]
    cells = (config.num_lr or 0) * config.num_seeds * len(config.batch_sizes)
    return {
        "cells": cells,
        "seconds": times,
        "speed_up": statistics.median(ratios),
        "rounds": len(ratios),
    }


def bisection(config: SweepConfig, options: SweepOptions) -> dict[str, Any]:
    """Runs that bisection takes of the grid's, and how many grid steps apart the edges lie."""
    rates = config.learning_rates
    with tempfile.TemporaryDirectory() as folder:

        def run(config: SweepConfig, name: str) -> SweepResult:
            with LocalProcesses(2) as executor:
                return run_sweep(config, Path(folder) / name, executor=executor, options=options)

        bisected, whole = run(config, "bisected"), run(replace(config, num_lr=len(rates)), "grid")
    step = math.log(rates[1] / rates[0])
    edges = zip(bisected.boundary["lr_max"], whole.boundary["lr_max"], strict=True)
    return {
        "rates": len(rates),
        "seeds": config.num_seeds,
        "runs": len(bisected.cells),
        "runs_of_grid": len(whole.cells),
        "share": len(bisected.cells) / len(whole.cells),
        "grid_steps_apart": [abs(math.log(ours / theirs)) / step for ours, theirs in edges],
    }


def replicas(
    problem: Problem, batch_size: int, *, steps: int, rounds: int, deadline: Deadline = NEVER
) -> dict[str, Any]:
    """Updates per second of all replicas: eager and our single runs in turn, and vmapped."""
    configs = [
        TrainConfig(batch_size=batch_size, learning_rate=1e-3 * (1 + seed), seed=seed, epochs=10**6)
        for seed in range(REPLICAS)
    ]

    def eager() -> None:
        model, examples = problem.model, as_examples(problem.train)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        order = torch.randperm(examples.num_examples, device=examples.inputs.device)
        for batch in order[: steps * batch_size].split(batch_size):
            losses = problem.loss(model(examples.inputs[batch]), examples.targets[batch])
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    single = Training(problem, configs[0])
    together = ReplicaTraining([problem] * REPLICAS, configs)

    def ours() -> None:
        last = single.step + steps
        for step in single.calls(lambda step: step == last):
            if step == last:
                break
        single.check_losses()

    def vmapped() -> None:
        for _ in range(steps):
            together.update()
        together.check_losses()

    works = {"eager": (eager, 1), "ours": (ours, 1), "replicas": (vmapped, REPLICAS)}
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for work, _ in works.values():
        work()
    for _ in deadline.rounds(rounds):
        for name, (work, count) in works.items():
            speeds[name].append(count * steps / seconds(work))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "batch_size": batch_size,
        "replicas": REPLICAS,
        "updates_per_second": medians,
        "replicas/eager": medians["replicas"] / medians["eager"],
        "replicas/ours": medians["replicas"] / medians["ours"],
    }


def default_command(command: str, deadline: Deadline = NEVER) -> dict[str, Any]:
    """Seconds of a command with its defaults in an empty folder, and the runs that it made."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "noisescale", command, "--out", folder],
            stdout=subprocess.DEVNULL,
        )
        minutes = deadline.minutes
        try:
            code = process.wait(None if minutes is None else 60 * max(minutes, 0.0))
        except subprocess.TimeoutExpired as late:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise LeftOut(f"it takes longer than the {late.timeout:.0f} s left for it") from late
        seconds = time.monotonic() - started
        if code != 0:
            raise subprocess.CalledProcessError(code, process.args)
        assert (Path(folder) / SUMMARY).exists()
        runs = len(finished_runs(Path(folder) / "cells"))
    return {"command": command, "seconds": seconds, "runs": runs, "target": COMMANDS[command]}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="JSON file.  [default: results/sweep-DEVICE.json]",
)
def main(
    device: str, rounds: int, data_dir: Path | None, minutes: float | None, out: Path | None
) -> None:
    """Measure all of them, and print and write it. Commands and processes need two idle cores."""
    record = Record(
        out or RESULTS / f"sweep-{device}.json", device, minutes=minutes, targets=TARGETS
    )
    parts = parts_of(device, rounds=rounds, data_dir=data_dir)
    shares = dict.fromkeys(
        (f"commands/+{name}" for name in COMMANDS), 5.0
    )  # minutes, of which the others take one or two
    record.measure(parts, Console(stderr=True, highlight=False), shares)
    show(record.content)


def parts_of(device: str, *, rounds: int, data_dir: Path | None) -> dict[str, Part]:
    """What is measured: replicas, which are quick, before whole studies."""
    options = SweepOptions(data_dir=data_dir, predict=False)

    @cache
    def problem() -> Problem:
        return build_problem(UNIT, data_dir=data_dir, device=device)

    def replicas_at(batch_size: int) -> Part:
        def part(deadline: Deadline) -> dict[str, Any]:
            with one_thread():
                return replicas(problem(), batch_size, steps=200, rounds=rounds, deadline=deadline)

        return part

    parts = {f"replicas/+B = {batch_size}": replicas_at(batch_size) for batch_size in BATCH_SIZES}
    if device == "cpu":
        parts |= {f"commands/+{name}": partial(default_command, name) for name in COMMANDS}
        parts["processes"] = lambda deadline: processes(
            EVEN, options, rounds=rounds, deadline=deadline
        )
    parts["bisection"] = lambda deadline: bisection(GRID, options)
    return parts


def show(results: dict[str, Any]) -> None:
    """Prints what was measured."""
    for row in results.get("commands", []):
        click.echo(
            f"noisescale {row['command']}: {row['seconds']:.0f} s for {row['runs']} runs "
            f"(target {row['target']:.0f})"
        )
    if (bisected := results.get("bisection")) is not None:
        click.echo(
            f"bisection: {bisected['runs']} runs of {bisected['runs_of_grid']} "
            f"({100 * bisected['share']:.0f} %), edges {max(bisected['grid_steps_apart']):.2f} "
            "grid steps apart at most"
        )
    if (paired := results.get("processes")) is not None:
        click.echo(f"two processes: {paired['speed_up']:.2f} times as fast as one")
    for row in results.get("replicas", []):
        click.echo(
            f"{REPLICAS} replicas at B = {row['batch_size']}: {row['replicas/eager']:.2f} times "
            f"eager, {row['replicas/ours']:.2f} times ours"
        )


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.sweep")
