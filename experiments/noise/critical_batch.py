"""The critical batch size of MNIST, measured two ways, beside the noise scale that predicts it.

The Pareto front: 784–256–256–10, SGD, 24 batch sizes from 1 to 4,096, each at its best learning
rate, to six training losses. Branches: from runs at B = 16, where each loss is reached, batch sizes
from 1 on, each at the rate that the front's law gives it, compared after equal examples. Beside
them a noisy quadratic, of which everything is known in closed form.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from noisescale import (
    CriticalBatchConfig,
    Problem,
    ProblemConfig,
    StudyOptions,
    TrainConfig,
    run_critical_batch,
)
from noisescale.cli.options import machine_options
from noisescale.problems.config import resolve_device
from noisescale.problems.factory import factory_config
from noisescale.problems.problem import Examples
from noisescale.problems.synthetic import noisy_quadratic
from noisescale.statistics.critical_batch.goal_table import best_rates, fit_laws, read_goal_table
from noisescale.statistics.critical_batch.learning_rate_law import LearningRateLaw
from noisescale.studies.critical_batch.branches import (
    BranchConfig,
    default_branch_sizes,
    run_branches,
)
from noisescale.studies.critical_batch.config import DEFAULT_WIDTH, PRESETS
from noisescale.studies.critical_batch.runs.goal_run import GoalCell, run_to_goal
from noisescale.studies.critical_batch.runs.start import examples_for
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.local import LocalProcesses, default_processes
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.folder import STEP_CHECKPOINTS, record_experiment
from noisescale.training.records.names import file_digest
from noisescale.training.records.tables import STEPS_TO_GOAL
from noisescale.training.tracking.noise import NoiseTracking

PROBLEM = ProblemConfig(dataset="mnist", width=DEFAULT_WIDTH)
# of the runs that branches start from
BASE = TrainConfig(batch_size=16, learning_rate=0.1, epochs=40)
SHORTEST_BRANCH = 1024  # examples: eight updates at B = 128
DIM = 100  # of the quadratic
SCALES: dict[str, dict[str, Any]] = {
    "quick": {
        "batch_sizes": (2, 8, 32, 128, 512, 2048),
        "goals": (1.0, 0.4),
        "num_seeds": 2,
        "factor": 2.0,
    },
    "full": {
        name: value
        for name, value in PRESETS["mnist-paper"].items()
        if name not in ("dataset", "width")
    },
}


def quadratic() -> Problem:
    """½θᵀHθ + ζᵀθ with curvatures 1/k, k = 1, …, 100, and a covariance of .8·√H.

    Its test example has no noise, so that its loss is the expected one.
    """
    curvatures = 1 / torch.arange(1, DIM + 1, dtype=torch.float64)
    made = noisy_quadratic(
        hessian=torch.diag(curvatures),
        covariance=torch.diag(0.8 * curvatures.sqrt()),
        start=torch.full((DIM,), 0.8, dtype=torch.float64),
        num_examples=100_000,
        generator=torch.Generator().manual_seed(0),
    )
    nothing = torch.zeros(1, DIM, dtype=torch.float64)
    return replace(made.problem, test=Examples(nothing, nothing[:, 0]))


@click.command("critical_batch")
@click.option(
    "--scale",
    type=click.Choice(list(SCALES)),
    default="quick",
    show_default=True,
    help="quick: six batch sizes, two goals and seeds; full: 24, six and five.",
)
@click.option(
    "--only", multiple=True, help="Only this part (repeat it): mnist, branches, quadratic."
)
@click.option("--out", type=click.Path(path_type=Path), help="[default: runs/critical_batch-SCALE]")
@machine_options
def critical_batch(
    scale: str, only: tuple[str, ...], out: Path | None, device: str, data_dir: Path | None
) -> None:
    """The critical batch size by Pareto fronts and by branches, beside the noise scale."""
    console = Console(stderr=True, highlight=False)
    out = out or Path("runs") / f"critical_batch-{scale}"
    record_experiment(out, command=f"python -m experiments critical_batch --scale {scale}")
    options = StudyOptions(device=resolve_device(device), data_dir=data_dir, console=console)
    wanted = only or ("mnist", "branches", "quadratic")
    goals = SCALES[scale]["goals"]
    if "mnist" in wanted:
        run_critical_batch(
            CriticalBatchConfig(problem=PROBLEM, **SCALES[scale]), out / "mnist", options=options
        )
    if "branches" in wanted:
        _branches(out, goals, range(2 if scale == "full" else 1), options)
    if "quadratic" in wanted:
        config = CriticalBatchConfig(
            problem=factory_config("experiments.noise.critical_batch:quadratic"),
            batch_sizes=tuple(2**power for power in range(11)),
            goals=(0.9, 0.6, 0.3),
            split="test",
            num_seeds=SCALES[scale]["num_seeds"],
            factor=SCALES[scale]["factor"],
            noise_examples=10_000,
        )
        run_critical_batch(config, out / "quadratic", options=options)
    click.echo(f"python -m analysis critical_batch {out}")


def _branches(out: Path, goals: tuple[float, ...], seeds: range, options: StudyOptions) -> None:
    """From each goal on the way of the base runs, at the rates of the front's law for it."""
    rates = best_rates(read_goal_table(out / "mnist" / STEPS_TO_GOAL))
    pool = LocalProcesses(default_processes())
    try:
        bases = [
            pool.submit(run_to_goal, _base(out.absolute() / f"base-{seed}", goals, seed, options))
            for seed in seeds
        ]
        for seed, future in enumerate(bases):
            run = future.result()
            for goal in goals:
                reached = run.losses["step"][run.losses["loss"] <= goal]
                start = run.path / STEP_CHECKPOINTS / f"step-{reached.iloc[0]}.pt"
                law = next(law for law in fit_laws(rates, goal) if law.name == "noise")
                run_branches(
                    branch_config(start, law),
                    start,
                    out / "branches" / f"goal{goal:g}-seed{seed}",
                    executor=pool,
                    options=options,
                )
    finally:
        pool.shutdown(cancel_futures=True)


def branch_config(start: Path, law: LearningRateLaw) -> BranchConfig:
    """Branches of half the examples that led to a checkpoint, from B = 1 on in steps of √2."""
    checkpoint = load_checkpoint(start)
    base = checkpoint.training.batch_size
    assert isinstance(base, int)
    examples = max(checkpoint.examples_seen // 2, SHORTEST_BRANCH)
    return BranchConfig(
        problem=PROBLEM,
        training=replace(checkpoint.training, learning_rate=law.rate(base)),
        start=file_digest(start),
        examples=examples,
        batch_sizes=default_branch_sizes(
            1, examples, examples_for(PROBLEM, "train"), per_doubling=2
        ),
        scaling="noise",
        rate_bend=law.bend,
        num_seeds=10,
    )


def _base(path: Path, goals: tuple[float, ...], seed: int, options: StudyOptions) -> GoalCell:
    """A run at a small batch size to the lowest goal, the noise scale measured along it."""
    training = TrainConfig(**{**vars(BASE), "seed": seed})
    cell = Cell(
        path=path,
        problem=PROBLEM,
        training=training,
        device=options.device,
        data_dir=options.data_dir,
    )
    return GoalCell(
        cell=cell,
        goals=goals,
        noise=NoiseTracking(num_examples=10_000, hessian=True, num_probes=16, seed=seed),
    )
