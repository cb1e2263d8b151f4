"""Branched training: several batch sizes from one checkpoint, compared after equal examples."""

from __future__ import annotations

import math
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import pandas as pd

from noisescale.errors import (
    MOST_RUNS,
    NoisescaleError,
    RunFolderError,
    SettingError,
    check_count,
    is_real,
)
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.statistics.critical_batch.branches import (
    BRANCH_COLUMNS,
    BRANCH_HEADINGS,
    FEWEST_BRANCHES,
    at_base,
    branch_cells,
    branch_critical_batch,
    branch_means,
    branch_tolerances,
)
from noisescale.statistics.critical_batch.curves.rate_laws import POWERS
from noisescale.statistics.display import Settings, Shown, Summary
from noisescale.statistics.estimate import Estimate, from_record
from noisescale.statistics.stability.edge import LEFT
from noisescale.studies.critical_batch.config import BRANCH_RESULT, BRANCH_SETTINGS, GoalSplit
from noisescale.studies.critical_batch.goal_runs.goal_run import (
    GoalCell,
    GoalRun,
    read_goal_run,
    run_to_goal,
    stored_goal_run,
)
from noisescale.studies.critical_batch.goal_runs.start import examples_for
from noisescale.studies.jobs.folder import CELL_FOLDER, changes, claim, closing, ordered
from noisescale.studies.jobs.local import given_or_local
from noisescale.studies.jobs.options import StudyOptions, common_options, make_cell
from noisescale.studies.jobs.search_loop import Job, Search, SearchLoop
from noisescale.studies.jobs.tasks import Tasks
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import Checkpoint
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import (
    CHECKPOINT,
    finished_runs,
    may_write,
    read_json,
    write_json,
    write_table,
)
from noisescale.training.records.names import digest, file_digest, run_name
from noisescale.training.records.tables import BRANCHES, MOVE_AWAY
from noisescale.training.records.weight_files import read_weights

Scaling = Literal["linear", "sqrt", "noise"]
SCALINGS = get_args(Scaling)
SMOOTHED = 0.75  # of a branch, after which its losses are averaged: some three looks at 24 a decade
FEWEST_UPDATES = 8  # at the largest default batch size: two in the quarter that is averaged
FEWEST_BATCHES = 4  # in an epoch: a short one at its end is then a fifth of the updates at most
SHORTEST_BRANCH = 256  # batches of the checkpoint's, by default: B can be doubled five times


@dataclass(frozen=True, kw_only=True, repr=False)
class BranchConfig(Settings):
    """Branches from one checkpoint.

    Attributes:
        problem: what is trained.
        training: as the checkpoint was; its batch size B and learning rate ε are the ones that
            others are scaled from.
        start: the checkpoint's digest, see `file_digest`.
        examples: that each branch uses.
        batch_sizes: examples per update, three batch sizes or more.
        scaling: of the learning rate with k = batch size/B: "linear", ε·k, for SGD; "sqrt", ε·√k,
            for Adam; "noise", as ε(B) ∝ 1/(1 + rate_bend/B), the law that is fitted to tuned
            rates: of SGD, linear only far below rate_bend.
        rate_bend: B_c of that law in examples; None for the others.
        num_seeds: orders of the examples, none of which the checkpoint's own run saw: those of the
            seeds that follow its.
        tolerance: within which losses count as equal, as a share of the loss at the smallest batch
            size.
        split: whose loss is compared; "test" takes a problem with test examples.
    """

    problem: ProblemConfig | FactoryConfig
    training: TrainConfig
    start: str
    examples: int
    batch_sizes: tuple[int, ...]
    scaling: Scaling = "linear"
    rate_bend: float | None = None
    num_seeds: int = 5
    tolerance: float = 0.05
    split: GoalSplit = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.training.batch_size, int):
            raise SettingError(
                f"the checkpoint's batch size is {self.training.batch_size}: give one of a run at "
                "a fixed one"
            )
        check_count("examples", self.examples)
        check_count("num seeds", self.num_seeds, most=MOST_RUNS)
        num_sizes = len(set(self.batch_sizes))
        if num_sizes < FEWEST_BRANCHES:
            raise SettingError(
                f"{num_sizes} batch sizes: branches take {FEWEST_BRANCHES} or more; "
                "give more of them, or more --examples"
            )
        if (largest := max(self.batch_sizes)) > self.examples:
            raise SettingError(
                f"batch size {largest} with {self.examples} examples a branch: give no larger "
                "batches than that, or more --examples"
            )
        if self.scaling not in SCALINGS:
            raise SettingError(f"scaling {self.scaling!r}: choose one of {', '.join(SCALINGS)}")
        bend = self.rate_bend
        has_bend = bend is not None and is_real(bend) and 0 < bend < math.inf
        if self.scaling == "noise" and not has_bend:
            raise SettingError(
                f"scaling noise with a bend of {bend!r}: give --lr-bend, B_c of the fitted "
                "ε_max/(1 + B_c/B), in examples"
            )
        if self.scaling != "noise" and bend is not None:
            raise SettingError(
                f"scaling {self.scaling} has no bend: leave out --lr-bend, or give --lr-scaling "
                "noise"
            )
        if not (is_real(self.tolerance) and 0 < self.tolerance < math.inf):
            raise SettingError(
                f"tolerance {self.tolerance!r}: give a share of the loss, such as 0.05"
            )

    @classmethod
    def from_checkpoint(
        cls,
        path: Path,
        *,
        problem: ProblemConfig | FactoryConfig | None = None,
        batch_sizes: tuple[int, ...] | None = None,
        learning_rate: float | None = None,
        examples: int | None = None,
        scaling: Scaling | None = None,
        rate_bend: float | None = None,
        num_seeds: int = 5,
        tolerance: float = 0.05,
        split: GoalSplit = "train",
    ) -> Self:
        """The branches from a checkpoint of ours, or from weights of another origin.

        Args:
            path: a checkpoint, the folder of the run that has it, or a file of weights.
            problem: what is trained; None: what the checkpoint says.
            batch_sizes: examples per update, three batch sizes or more; None or (): the
                checkpoint's and its doubles or, of scaling "noise", from 1 on in steps of √2.
            learning_rate: at the smallest of `batch_sizes`; None: the checkpoint's, at its own
                batch size.
            examples: that each branch uses; None: half of those that led to the checkpoint, and
                256 batches at least.
            scaling: of the learning rate with the batch size; None: "linear" for SGD, "sqrt" for
                Adam.
            rate_bend: of scaling "noise".
            num_seeds: orders of the examples.
            tolerance: within which losses count as equal, as a share of the loss at the smallest
                batch size.
            split: whose loss is compared.

        Raises:
            CheckpointError: the file is absent, damaged or holds no weights.
            SettingError: neither the file nor the arguments say what is trained, or how.
        """
        path, content = read_weights(path)
        stored = content if isinstance(content, Checkpoint) else None
        if problem is None:
            kept = None if stored is None else stored.problem
            problem = kept if isinstance(kept, ProblemConfig) else None
        if problem is None:
            raise SettingError(
                f"{path} does not say which model and data it belongs to: "
                "give --problem module:factory"
            )
        sizes = tuple(dict.fromkeys(batch_sizes or ()))
        training = _training_at(path, stored, sizes, learning_rate)
        base = training.batch_size
        if isinstance(base, int):  # else it is refused, with the reason
            seen = 0 if stored is None else stored.examples_seen
            examples = default_examples(base, seen) if examples is None else examples
            num_examples = 0 if sizes else examples_for(problem, split)
            smallest, per_doubling = (1, 2) if scaling == "noise" else (base, 1)
            sizes = sizes or default_branch_sizes(
                smallest, examples, num_examples, per_doubling=per_doubling
            )
        return cls(
            problem=problem,
            training=training,
            start=file_digest(path),
            examples=examples or 0,
            batch_sizes=sizes,
            scaling=scaling or ("sqrt" if training.is_adaptive else "linear"),
            rate_bend=rate_bend,
            num_seeds=num_seeds,
            tolerance=tolerance,
            split=split,
        )

    def run(self, batch_size: int, seed: int, *, num_examples: int) -> TrainConfig:
        """How one branch is trained; an epoch of the training set's examples ends in a short batch.

        Args:
            batch_size: examples per update.
            seed: 0, 1, ... of the order of the examples, counted from the checkpoint's own.
            num_examples: in the training set.
        """
        base = self.training.batch_size
        assert isinstance(base, int)
        if self.scaling == "noise":
            assert self.rate_bend is not None
            scale = (1 + self.rate_bend / base) / (1 + self.rate_bend / batch_size)
        else:
            scale = (batch_size / base) ** POWERS[self.scaling]
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
        """What all branches of a folder must have in common, the content of branches.json."""
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
            **({} if self.rate_bend is None else {"rate_bend": self.rate_bend}),
            "split": self.split,
        }

    def name(self) -> str:
        """A default folder name."""
        return f"branches-{digest(self.identity())}"


@dataclass(frozen=True, kw_only=True, repr=False)
class BranchResult(Shown):
    """What branches have come to.

    Attributes:
        table: the rows of branches.csv, one for each branch and seed.
        critical_batch_size: in examples, see `branch_critical_batch`.
        by_tolerance: the same for several tolerances, shares of the smallest batch size's loss.
        at_base: whether only the smallest batch size passes: the critical one lies there or below,
            and is not resolved.
        summary: the content of branch.json.
    """

    table: pd.DataFrame
    critical_batch_size: Estimate
    by_tolerance: dict[float, Estimate]
    at_base: bool
    summary: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """A row for each batch size: its learning rate, mean loss, loss_stderr and num_seeds."""
        return branch_means(self.table)

    def _summary(self) -> Summary:
        return Summary(
            title=f"Critical batch size: {self.critical_batch_size}; branches of "
            f"{self.summary['examples']:,} examples from a loss of "
            f"{self.summary['start_loss']:.4g}",
            headings=BRANCH_HEADINGS,
            rows=[branch_cells(row) for row in self.to_frame().to_dict("records")],
            notes=tuple(self.summary["notes"]),
            notes_at='.summary["notes"]',
            numeric=True,
        )


def read_branches(folder: Path) -> BranchResult | None:
    """The result in a folder of branches, None where they have not finished.

    RunFolderError: a file is damaged.
    """
    summary = read_json(folder / BRANCH_RESULT)
    if summary is None:
        return None
    try:
        table = pd.read_csv(folder / BRANCHES)
        critical = from_record(summary["critical_batch_size"])
        by_tolerance = {
            row["share"]: from_record(row["critical_batch_size"]) for row in summary["by_tolerance"]
        }
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunFolderError(f"{folder} holds damaged branches ({error}): {MOVE_AWAY}") from error
    return BranchResult(
        table=table,
        critical_batch_size=critical,
        by_tolerance=by_tolerance,
        at_base=at_base(critical),
        summary=summary,
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The branches that have finished, a line for each failure, and the seconds it all took."""

    runs: list[GoalRun]
    failures: list[str]
    seconds: float


def _training_at(
    path: Path, stored: Checkpoint | None, sizes: tuple[int, ...], learning_rate: float | None
) -> TrainConfig:
    """The training that branches are scaled from: a rate and a batch size, and the optimizer."""
    training = TrainConfig() if stored is None else stored.training_in_force
    if learning_rate is None:
        if stored is None:
            raise SettingError(f"{path} does not say how it was trained: give --lr and --bs")
        return training
    if not sizes:
        raise SettingError("--lr is the rate at the smallest batch size: give --bs too")
    return TrainConfig(
        **training.optimizer_settings(),
        batch_size=min(sizes),
        learning_rate=learning_rate,
        seed=training.seed,
    )


def default_branch_sizes(
    batch_size: int, examples: int, num_examples: int, *, per_doubling: int = 1
) -> tuple[int, ...]:
    """From a batch size on, while a branch and an epoch have enough updates.

    batch_size: the smallest. examples: of a branch. num_examples: in the training set.
    per_doubling: 1: its doubles; 2: in steps of √2, in whole examples.
    """
    largest = min(examples // FEWEST_UPDATES, num_examples // FEWEST_BATCHES)
    num_steps = per_doubling * max(0, math.floor(math.log2(max(largest / batch_size, 1))))
    sizes = [round(batch_size * 2 ** (step / per_doubling)) for step in range(num_steps + 1)]
    return tuple(dict.fromkeys(sizes))


def default_examples(batch_size: int, examples_seen: int) -> int:
    """Half of those that led to the checkpoint, and 256 of its batches at least."""
    return max(examples_seen // 2, SHORTEST_BRANCH * batch_size)


def run_branches(
    config: BranchConfig,
    start: Path | str,
    out: Path | str,
    *,
    executor: Executor | None = None,
    options: StudyOptions | None = None,
) -> BranchResult:
    """The critical batch size at a checkpoint, computed as far as `out` does not hold it already.

    A branch takes the checkpoint's parameters and its optimizer's state. Its loss, on a fixed
    subset, is the mean over the looks, some 24 a decade, in the last quarter of its updates; one
    that ends above ten times the loss at its start counts as diverged. See `branch_critical_batch`
    for what is made of the losses.

    A script calls it under `if __name__ == "__main__":`, since the local processes import the
    script.

    Args:
        config: the branches; those already in `out` must be of the same kind, and are kept.
        start: the checkpoint, or the folder of the run that has it.
        out: the results folder.
        executor: any of concurrent.futures, left open; None: local processes, one a core. Its
            workers must see `out` and `start` under the same paths.
        options: None: the defaults.

    Returns:
        The table of losses, the critical batch size and the content of branch.json.

    Raises:
        SettingError: a batch size above a quarter of the training set, a `start` that is not the
            config's, or options of another study.
        NoisescaleError: no branch could be run, or their loss is not above zero.
        RunFolderError: `out` holds something else.
        Interrupted: a SIGINT or SIGTERM came; what is finished is kept.
    """
    start, out, options = Path(start), Path(out), common_options(options)
    start = start / CHECKPOINT if start.is_dir() else start
    num_examples = examples_for(config.problem, config.split)
    if (largest := max(config.batch_sizes)) > num_examples // FEWEST_BATCHES:
        raise SettingError(
            f"batch size {largest}: there are {num_examples} training examples, and the last, "
            f"short batch of an epoch would weigh; give {num_examples // FEWEST_BATCHES} at most"
        )
    if (there := file_digest(start)) != config.start:
        raise SettingError(f"{start} has the digest {there}, the config's start is {config.start}")
    orders = claim(out, config.identity(), settings=BRANCH_SETTINGS)
    started = time.monotonic()
    finished: list[GoalRun] = []

    def job(size: int, seed: int) -> Job[GoalRun]:
        training = ordered(config.run(size, seed, num_examples=num_examples), orders)
        path = out / CELL_FOLDER / run_name(config.problem, training)
        cell = make_cell(options, path, config.problem, training, start=start)
        goal_cell = GoalCell(cell=cell, goals=(), split=config.split)
        name = f"B = {size}, seed {seed}"
        return Job(run_to_goal, goal_cell, name=name, kind=size, stored=stored_goal_run)

    def branches() -> Search[GoalRun, None]:
        sizes, seeds = sorted(config.batch_sizes), range(config.num_seeds)
        results = yield [job(size, seed) for size in sizes for seed in seeds]
        finished.extend(run for run in results if isinstance(run, GoalRun))

    with given_or_local(executor) as pool, Tasks(pool, options.console) as tasks:
        loop = SearchLoop(tasks)
        loop.begin(branches())
        loop.run()
    if not finished:
        raise NoisescaleError(f"no branch could be run: {tasks.failures[0]}")
    _take_others(out, finished)
    seconds = time.monotonic() - started
    outcome = Outcome(runs=finished, failures=tasks.failures, seconds=seconds)
    return _write(config, out, outcome, options)


def _take_others(out: Path, finished: list[GoalRun]) -> None:
    """Adds the branches that are in the folder from before."""
    ours = {run.path for run in finished}
    for path in finished_runs(out.absolute() / CELL_FOLDER):
        if path not in ours:
            try:
                finished.append(read_goal_run(path))
            except RunFolderError:  # it was no part of this measurement
                continue


def _write(
    config: BranchConfig, out: Path, outcome: Outcome, options: StudyOptions
) -> BranchResult:
    start_loss = float(outcome.runs[0].losses["loss"].iloc[0])
    table = _branch_table(outcome.runs, start_loss)
    smallest = table[table["batch_size"] == table["batch_size"].min()]
    mean = float(smallest["loss"].mean(skipna=False))
    tolerance = config.tolerance * mean
    if not 0 < tolerance < math.inf:
        raise NoisescaleError(
            f"the loss at the smallest batch size is {mean:g}, of which no tolerance can be a "
            "share: give smaller batch sizes, or another checkpoint"
        )
    critical = branch_critical_batch(table, tolerance=tolerance)
    by_tolerance = branch_tolerances(table, tolerance=config.tolerance)
    notes = list(options.notes)
    if mean > start_loss:
        notes.append(
            "even at the smallest batch size the loss has risen: smaller learning rates may do "
            "better"
        )
    summary = {
        **config.identity(),
        "critical_batch_size": critical.to_dict(),
        "definition": "branch",
        "resolved": math.isfinite(critical.value),
        "at_base": at_base(critical),
        "by_tolerance": [
            {"share": share, "critical_batch_size": size.to_dict(), "at_base": at_base(size)}
            for share, size in by_tolerance.items()
        ],
        "tolerance": tolerance,
        "start_loss": start_loss,
        "batch_sizes": [int(size) for size in sorted(table["batch_size"].unique())],
        "num_seeds": config.num_seeds,
        "failures": outcome.failures,
        **closing(outcome.seconds, notes, environment(options.device)),
    }
    result = BranchResult(
        table=table,
        critical_batch_size=critical,
        by_tolerance=by_tolerance,
        at_base=at_base(critical),
        summary=summary,
    )
    if not may_write(out):
        return result
    drawn = read_json(out / BRANCH_RESULT) or {}  # the picture shows the tolerance too
    has_changed = changes(out, BRANCHES)
    write_table(out / BRANCHES, table)
    write_json(out / BRANCH_RESULT, summary)
    is_drawn = drawn.get("tolerance") == tolerance and any(out.glob("*.png"))
    if options.pictures and (has_changed() or not is_drawn):
        from noisescale.studies.critical_batch.pictures import draw_pictures

        draw_pictures(out)
    return result


def _branch_table(runs: list[GoalRun], start_loss: float) -> pd.DataFrame:
    """The rows of branches.csv, by batch size and seed."""
    rows = []
    for run in runs:
        losses, summary = run.losses, run.summary
        late = losses[losses["step"] >= SMOOTHED * summary["steps"]]
        loss = float(late["loss"].mean(skipna=False))
        blown_up = not loss <= max(LEFT * start_loss, start_loss)
        row = (
            summary["batch_size"],
            summary["learning_rate"],
            summary["seed"],
            summary["examples_seen"],
            loss,
            int(run.has_diverged or blown_up),
        )
        rows.append(dict(zip(BRANCH_COLUMNS, row, strict=True)))
    return pd.DataFrame(rows).sort_values(["batch_size", "seed"]).reset_index(drop=True)
