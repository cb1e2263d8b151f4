"""Branched training: from one checkpoint, several batch sizes, compared after the same number of examples."""

from __future__ import annotations

import math
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from noisescale.errors import NoisescaleError, RunFolderError, SettingError
from noisescale.plots.critical_batch import branch_figure
from noisescale.plots.style import image
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.statistics.critical_batch.branches import (
    BRANCH_COLUMNS,
    FEWEST_BRANCHES,
    branch_critical_batch,
)
from noisescale.statistics.critical_batch.learning_rate_law import POWERS
from noisescale.statistics.estimate import Estimate
from noisescale.statistics.stability_edge import LEFT
from noisescale.studies.critical_batch.config import GoalSplit
from noisescale.studies.critical_batch.goal_run import GoalCell, GoalRun, read_goal_run, run_to_goal
from noisescale.studies.critical_batch.start import count_examples
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.executors import given_or_local
from noisescale.studies.jobs.folder import CELL_FOLDER, claim
from noisescale.studies.jobs.search_loop import Job, Search, SearchLoop
from noisescale.studies.jobs.tasks import Tasks
from noisescale.studies.stability_map.run import SweepOptions
from noisescale.training.config import TrainConfig
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    finished_runs,
    write_atomically,
    write_json,
    write_table,
)
from noisescale.training.records.names import digest, file_digest, run_name
from noisescale.training.records.tables import BRANCHES

SETTINGS, RESULT, PICTURE = "branches.json", "branch.json", "branches.png"
SMOOTHED = 0.75  # of a branch, after which its losses are averaged
FEWEST_UPDATES = 8  # of the largest default batch size
FEWEST_BATCHES = 4  # an epoch, the last of which may be short


@dataclass(frozen=True, kw_only=True)
class BranchConfig:
    """Branches from one checkpoint.

    problem: what is trained. training: as the checkpoint was, its batch size B and learning rate ε the ones
        that others are scaled from. start: the checkpoint's digest.
    examples: that each branch uses. batch_sizes: three or more; see `default_branch_sizes`.
    scaling: of the learning rate with k = batch size/B: "linear", ε·k, for SGD; "sqrt", ε·√k, for Adam.
    num_seeds: orders of the examples, other ones than the checkpoint's own run saw: those of the seeds that
        follow its.
    tolerance: within which losses count as equal, as a share of the loss at the smallest batch size.
    split: whose loss is compared.
    """

    problem: ProblemConfig | FactoryConfig
    training: TrainConfig
    start: str
    examples: int
    batch_sizes: tuple[int, ...]
    scaling: Literal["linear", "sqrt"] = "linear"
    num_seeds: int = 5
    tolerance: float = 0.05
    split: GoalSplit = "train"

    def __post_init__(self) -> None:
        for name in ("examples", "num_seeds"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise SettingError(
                    f"{name.replace('_', ' ')} {number!r}: give a whole number of 1 or more"
                )
        if not isinstance(self.training.batch_size, int):
            raise SettingError(
                f"the checkpoint's batch size is {self.training.batch_size}: give one of a run at a fixed one"
            )
        if len(set(self.batch_sizes)) < FEWEST_BRANCHES:
            raise SettingError(
                f"{len(set(self.batch_sizes))} batch sizes: branches take {FEWEST_BRANCHES} or more; "
                "give more of them, or more --examples"
            )
        if (largest := max(self.batch_sizes)) > self.examples:
            raise SettingError(
                f"batch size {largest} with {self.examples} examples a branch: give no larger batches than "
                "that, or more --examples"
            )
        if self.scaling not in POWERS:
            raise SettingError(f"scaling {self.scaling!r}: choose one of {', '.join(POWERS)}")
        if not (isinstance(self.tolerance, int | float) and 0 < self.tolerance < math.inf):
            raise SettingError(
                f"tolerance {self.tolerance!r}: give a share of the loss, such as 0.05"
            )

    def run(self, batch_size: int, seed: int, *, num_examples: int) -> TrainConfig:
        """How one branch is trained; an epoch of the training set's examples ends in a short batch."""
        assert isinstance(self.training.batch_size, int)
        scale = (batch_size / self.training.batch_size) ** POWERS[self.scaling]
        epochs, rest = divmod(self.examples, num_examples)
        steps = epochs * math.ceil(num_examples / batch_size) + math.ceil(rest / batch_size)
        return TrainConfig(
            **self.training.optimizer_settings(),
            batch_size=batch_size,
            learning_rate=float(f"{scale * self.training.learning_rate:.6g}"),
            seed=self.training.seed + 1 + seed,
            epochs=steps,
            max_steps=steps,
        )

    def identity(self) -> dict[str, Any]:
        """What all branches of a folder must have in common."""
        training = self.training.optimizer_settings()
        rate = {
            "batch_size": self.training.batch_size,
            "learning_rate": self.training.learning_rate,
        }
        return {
            "problem": self.problem.to_dict(),
            "training": training | rate,
            "start": self.start,
            "examples": self.examples,
            "scaling": self.scaling,
            "split": self.split,
        }

    def name(self) -> str:
        """A default folder name."""
        return f"branches-{digest(self.identity())}"


@dataclass(frozen=True, kw_only=True)
class BranchResult:
    """The content of branches.csv and branch.json."""

    table: pd.DataFrame
    critical_batch_size: Estimate
    summary: dict[str, Any]


def default_branch_sizes(batch_size: int, examples: int, num_examples: int) -> tuple[int, ...]:
    """The checkpoint's batch size and its doubles, as far as a branch and an epoch have enough updates."""
    sizes = [batch_size]
    while 2 * sizes[-1] <= min(examples // FEWEST_UPDATES, num_examples // FEWEST_BATCHES):
        sizes.append(2 * sizes[-1])
    return tuple(sizes)


def default_examples(batch_size: int, examples_seen: int) -> int:
    """Half of those that led to the checkpoint, and 256 batches of its at least."""
    return max(examples_seen // 2, 256 * batch_size)


def run_branches(
    config: BranchConfig,
    start: Path,
    out: Path,
    *,
    executor: Executor | None = None,
    options: SweepOptions | None = None,
) -> BranchResult:
    """The critical batch size at the checkpoint `start`, computed in `out` as far as it is not there already.

    A branch takes the checkpoint's parameters and its optimizer's state; its loss, on a fixed subset, is the
    mean over the looks, some 24 a decade, in the last quarter of its updates. See `branch_critical_batch` for
    what is made of it, and `run_critical_batch` for executor, options and errors. A branch whose loss ends
    above ten times its start counts as diverged.
    """
    options = options or SweepOptions()
    num_examples = count_examples(config.problem, config.split)
    if (largest := max(config.batch_sizes)) > num_examples // FEWEST_BATCHES:
        raise SettingError(
            f"batch size {largest}: there are {num_examples} training examples, and the last, short batch of "
            f"an epoch would weigh; give {num_examples // FEWEST_BATCHES} at most"
        )
    if (there := file_digest(start)) != config.start:
        raise SettingError(f"{start} has the digest {there}, the config's start is {config.start}")
    claim(out, config.identity(), settings=SETTINGS)
    started = time.monotonic()
    finished: list[GoalRun] = []

    def branches() -> Search[GoalRun, None]:
        results = yield [
            _job(config, size, seed, num_examples, start.absolute(), out.absolute(), options)
            for size in sorted(config.batch_sizes)
            for seed in range(config.num_seeds)
        ]
        finished.extend(run for run in results if isinstance(run, GoalRun))

    with given_or_local(executor) as pool, Tasks(pool, options.console) as tasks:
        loop = SearchLoop(tasks)
        loop.begin(branches())
        loop.run()
    if not finished:
        raise NoisescaleError(f"no branch could be run: {tasks.failures[0]}")
    _take_others(out, finished)
    return _write(config, out, finished, tasks.failures, time.monotonic() - started, options)


def _job(
    config: BranchConfig,
    size: int,
    seed: int,
    num_examples: int,
    start: Path,
    out: Path,
    options: SweepOptions,
) -> Job[GoalRun]:
    training = config.run(size, seed, num_examples=num_examples)
    cell = Cell(
        path=out / CELL_FOLDER / run_name(config.problem, training),
        problem=config.problem,
        training=training,
        start=start,
        device=options.device,
        data_dir=options.data_dir and options.data_dir.absolute(),
        notes=options.notes,
    )
    goal_cell = GoalCell(cell=cell, goals=(), split=config.split)
    return Job(run_to_goal, goal_cell, name=f"B = {size}, seed {seed}", kind=size)


def _take_others(out: Path, finished: list[GoalRun]) -> None:
    """Adds the branches that are in the folder from before."""
    known = {run.path for run in finished}
    for path in finished_runs(out.absolute() / CELL_FOLDER):
        if path not in known:
            try:
                finished.append(read_goal_run(path))
            except RunFolderError:  # it was no part of this measurement
                continue


def _write(
    config: BranchConfig,
    out: Path,
    runs: list[GoalRun],
    failures: list[str],
    seconds: float,
    options: SweepOptions,
) -> BranchResult:
    rows = []
    start_loss = float(runs[0].losses["loss"].iloc[0])
    for run in runs:
        losses = run.losses
        late = float(
            losses[losses["step"] >= SMOOTHED * run.summary["steps"]]["loss"].mean(skipna=False)
        )
        blown_up = not late <= max(LEFT * start_loss, start_loss)
        row = (
            run.summary["batch_size"],
            run.summary["learning_rate"],
            run.summary["seed"],
            run.summary["examples_seen"],
            late,
            int(run.summary["diverged_at_step"] is not None or blown_up),
        )
        rows.append(dict(zip(BRANCH_COLUMNS, row, strict=True)))
    table = pd.DataFrame(rows).sort_values(["batch_size", "seed"]).reset_index(drop=True)
    smallest = table[table["batch_size"] == table["batch_size"].min()]
    tolerance = config.tolerance * float(smallest["loss"].mean(skipna=False))
    if not 0 < tolerance < math.inf:
        mean = smallest["loss"].mean(skipna=False)
        raise NoisescaleError(
            f"the loss at the smallest batch size is {mean:g}, of which no tolerance can be a share: "
            "give smaller batch sizes, or another checkpoint"
        )
    found = branch_critical_batch(table, tolerance=tolerance)
    notes = list(options.notes)
    if float(smallest["loss"].mean()) > start_loss:
        notes.append(
            "even at the smallest batch size the loss has risen: smaller learning rates may do better"
        )
    summary = {
        **config.identity(),
        "critical_batch_size": found.to_dict(),
        "definition": "branch",
        "resolved": math.isfinite(found.value),
        "tolerance": tolerance,
        "start_loss": start_loss,
        "batch_sizes": [int(size) for size in sorted(table["batch_size"].unique())],
        "num_seeds": config.num_seeds,
        "failures": failures,
        "seconds": seconds,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "notes": notes,
        "environment": environment(options.device),
    }
    write_table(out / BRANCHES, table)
    title = (
        f"Branches from a loss of {summary['start_loss']:.3g}, {config.examples:,} examples each"
    )
    write_atomically(out / PICTURE, image(branch_figure(table, summary, title=title)))
    write_json(out / RESULT, summary)
    return BranchResult(table=table, critical_batch_size=found, summary=summary)
