"""Many small fronts, and beside each what single runs say: the noise scale calibrated over tasks.

Some 28 tasks (front_tasks.py): multilayer perceptrons of several widths and depths, a CNN and a
residual network without batch norm on MNIST and the digits, label noise, squared error, logistic
and linear regression, noisy quadratics, a character GPT on tiny Shakespeare and on a Markov source;
SGD, momentum, Adam, AdamW. Each has a front of nine or ten batch sizes at tuned rates, three seeds
and three to five goals. Beside it stand runs of one batch size and rate each along which the noise
is measured, as a user has them: at B = 16, 64 and 256, each with a seed of its own, and at a
quarter of the best rate there, the best, and twice it. The batch sizes are the same for all tasks,
since the models have B/𝓑 for a regressor: chosen by B_crit, it would tell them the answer.

Of three tasks B_crit is measured by branches as well, from the run at B = 16 and the best rate,
where that reaches each goal: half as many examples more, at batch sizes from 1 on, each at the rate
that the front's law gives it.

Primary statistic, written down before the runs: how often 90 % intervals for B_crit hold it, from
models that have not seen the task, every task counting the same; 85 to 95 % is wanted. Beside it
the factor by which they reach either way, of SGD within a factor of two of the best rate and of all
others; and the same of peers' practice, the mean of tr Σ over the mean of |G|² along the run, which
is what the two-batch estimator comes to, read as B_crit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from experiments.noise.front_tasks import TASKS, Task
from noisescale import CriticalBatchConfig, StudyOptions, TrainConfig, run_critical_batch
from noisescale.cli.options import machine_options
from noisescale.errors import MeasurementError, NoisescaleError
from noisescale.problems.config import resolve_device
from noisescale.problems.sampling import independent_seed
from noisescale.statistics.critical_batch.advice import rate_between
from noisescale.statistics.critical_batch.goal_table import of_goal
from noisescale.studies.critical_batch.branches import (
    BranchConfig,
    default_branch_sizes,
    run_branches,
)
from noisescale.studies.critical_batch.goal_runs.goal_run import GoalCell, GoalRun, run_to_goal
from noisescale.studies.critical_batch.goal_runs.start import examples_for
from noisescale.studies.critical_batch.results import CriticalBatchResult
from noisescale.studies.jobs.local import LocalProcesses, default_processes
from noisescale.studies.jobs.options import make_cell
from noisescale.training.records.checkpoint import load_checkpoint
from noisescale.training.records.folder import STEP_CHECKPOINTS, record_experiment
from noisescale.training.records.names import file_digest, run_name
from noisescale.training.tracking.noise import NoiseTracking

FRONT, BESIDE, BRANCHES = "front", "beside", "branches"  # the folders of a task
SIZES = (16, 64, 256)  # of the runs beside, of seeds 0, 1 and 2; never chosen by B_crit
# of the best rate, and how many times the steps of the best one a run may take: a quarter of the
# rate takes four times as many where the noise is small, and at twice it many never arrive
OVER_BEST = {0.25: 6.0, 1.0: 2.0, 2.0: 3.0}
FEWEST_STEPS = 10  # of a run beside: early goals take one or two
SHORTEST_BRANCH = 512  # examples: eight updates at B = 64
BRANCH_SEEDS = 5
NUM_PROBES = 4  # of tr(HΣ): their error is below that of the examples
SCALES = {
    "quick": "four batch sizes, two goals and seeds",
    "full": "nine or ten batch sizes, three to five goals, three seeds",
}


def beside(config: CriticalBatchConfig, front: CriticalBatchResult) -> list[TrainConfig]:
    """The runs along which the noise is measured, at rates that suit the lowest goal resolved.

    Raises:
        MeasurementError: no goal has both a B_crit and a best rate.
    """
    usable = [
        (goal, rates)
        for goal, fit in front.fits.items()
        if fit.resolved
        and not (rates := of_goal(front.rates, goal).dropna(subset="learning_rate")).empty
    ]
    if not usable:
        raise MeasurementError("no goal has both a B_crit and a best rate")
    goal, rates = min(usable, key=lambda pair: pair[0])
    fit, law = front.fits[goal], next(iter(front.laws[goal]), None)
    rates = rates.sort_values("batch_size")
    best = rate_between(
        rates["batch_size"].astype(float).tolist(), rates["learning_rate"].tolist(), law
    )
    critical, runs = fit.critical_batch_size.value, []
    for seed, size in enumerate(SIZES):
        steps = fit.min_steps.value * (1 + critical / size)
        for multiple, slower in OVER_BEST.items():
            training = config.run(
                size,
                float(f"{multiple * best(size):.3g}"),
                seed,
                max_steps=math.ceil(slower * steps) + FEWEST_STEPS,
            )
            order = independent_seed(seed, size, repr(multiple))
            runs.append(replace(training, order_seed=order))
    return runs


def goal_cell(
    task: Task,
    config: CriticalBatchConfig,
    training: TrainConfig,
    out: Path,
    options: StudyOptions,
) -> GoalCell:
    """A run beside a front, its folder in `out`, and what is measured along it."""
    assert config.goals is not None
    total = examples_for(config.problem, config.split)
    num_examples, hessian_examples = (min(number, total) for number in task.noise_examples)
    noise = NoiseTracking(
        num_examples=num_examples,
        hessian=True,
        num_probes=NUM_PROBES,
        hessian_examples=hessian_examples,
        seed=training.seed,
        sign=task.sign,
    )
    cell = make_cell(options, out / run_name(config.problem, training), config.problem, training)
    return GoalCell(cell=cell, goals=config.goals, split=config.split, noise=noise)


def measure(task: Task, scale: str, out: Path, pool: LocalProcesses, options: StudyOptions) -> None:
    """The front of a task and the runs beside it, as far as they are not in the folder already."""
    config = task.config(scale)
    front = run_critical_batch(config, out / FRONT, executor=pool, options=options)
    runs = beside(config, front)
    cells = [goal_cell(task, config, training, out / BESIDE, options) for training in runs]
    made = [future.result() for future in [pool.submit(run_to_goal, cell) for cell in cells]]
    if task.branches:
        base = list(OVER_BEST).index(1.0)  # of those at the smallest batch size
        for start, branches, goal in branches_of(config, front, made[base]):
            run_branches(
                branches, start, out / BRANCHES / f"goal{goal:g}", executor=pool, options=options
            )


def branches_of(
    config: CriticalBatchConfig, front: CriticalBatchResult, run: GoalRun
) -> Iterator[tuple[Path, BranchConfig, float]]:
    """Where branches start, what they are and the goal, of those that the front resolves."""
    for goal, fit in front.fits.items():
        reached = run.losses["step"][run.losses["loss"] <= goal]
        if not fit.resolved or reached.empty:
            continue
        start = run.path / STEP_CHECKPOINTS / f"step-{reached.iloc[0]}.pt"
        checkpoint = load_checkpoint(start)
        training, base = checkpoint.training, checkpoint.training.batch_size
        assert isinstance(base, int)
        law = next((law for law in front.laws[goal] if law.name == "noise"), None)
        if law is not None:
            training = replace(training, learning_rate=law.rate(base))
        examples = max(checkpoint.examples_seen // 2, SHORTEST_BRANCH)
        total = examples_for(config.problem, config.split)
        branches = BranchConfig(
            problem=config.problem,
            training=training,
            start=file_digest(start),
            examples=examples,
            batch_sizes=default_branch_sizes(1, examples, total),
            scaling="sqrt" if law is None else "noise",
            rate_bend=None if law is None else law.bend,
            num_seeds=BRANCH_SEEDS,
            split=config.split,
        )
        yield start, branches, goal


@click.command(
    "fronts", help="Many small fronts, and the noise along single runs beside each of them."
)
@click.option(
    "--scale",
    type=click.Choice(list(SCALES)),
    default=next(iter(SCALES)),
    show_default=True,
    help="; ".join(f"{scale}: {meaning}" for scale, meaning in SCALES.items()) + ".",
)
@click.option(
    "--task",
    "names",
    multiple=True,
    type=click.Choice(list(TASKS)),
    metavar="NAME",
    help=f"Only this task (repeat it): {', '.join(TASKS)}.",
)
@click.option("--processes", type=click.IntRange(min=1), help="[default: one a core]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the run folders.  [default: runs/fronts-SCALE]",
)
@machine_options
def fronts(
    scale: str,
    names: tuple[str, ...],
    processes: int | None,
    out: Path | None,
    device: str,
    data_dir: Path | None,
) -> None:
    """Every task in turn; one that cannot be measured is named, and the others go on."""
    console = Console(stderr=True, highlight=False)
    out = out or Path("runs") / f"fronts-{scale}"
    record_experiment(out, command=f"python -m experiments fronts --scale {scale}")
    options = StudyOptions(
        device=resolve_device(device), data_dir=data_dir, console=console, pictures=False
    )
    failures = []
    pool = LocalProcesses(processes or default_processes())
    try:
        for name in dict.fromkeys(names) or TASKS:
            console.print(f"{name} (about {TASKS[name].minutes:g} core minutes at full scale)")
            try:
                measure(TASKS[name], scale, out / name, pool, options)
            except (NoisescaleError, RuntimeError) as error:  # the latter where a process died
                failures.append(f"{name}: {error}")
    finally:
        pool.shutdown(cancel_futures=True)
    click.echo(f"python -m analysis fronts {out}")
    if failures:
        raise click.ClickException("; ".join(failures))
