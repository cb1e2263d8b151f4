"""Runs to the goals at each batch size's best rate, the noise scale along some, and the fits."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import pandas as pd

from noisescale.errors import Interrupted, NoisescaleError, SettingError
from noisescale.problems.factory import seeding_notes
from noisescale.statistics.critical_batch.fit import CriticalBatchFit
from noisescale.statistics.critical_batch.goal_table import COLUMNS
from noisescale.studies.critical_batch.config import SETTINGS, CriticalBatchConfig, default_goals
from noisescale.studies.critical_batch.fits import remembered_fits
from noisescale.studies.critical_batch.goal_runs.goal_run import (
    GoalCell,
    GoalRun,
    read_goal_run,
    run_to_goal,
    stored_goal_run,
)
from noisescale.studies.critical_batch.goal_runs.noise_runs import (
    HALVES,
    WHOLE,
    Parts,
    choose_noise_runs,
    make_noise_runs,
)
from noisescale.studies.critical_batch.goal_runs.start import (
    Start,
    examples_for,
    start_at,
    stored_start,
)
from noisescale.studies.critical_batch.results import (
    CriticalBatchResult,
    Outcome,
    write_results,
)
from noisescale.studies.critical_batch.tuning import (
    SLACK,
    Steps,
    Trial,
    Tuned,
    best_indices,
    tune,
    tune_first,
)
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.folder import CELL_FOLDER, Orders, claim, ordered
from noisescale.studies.jobs.local import given_or_local
from noisescale.studies.jobs.options import (
    StudyOptions,
    common_options,
    make_cell,
    with_notes,
)
from noisescale.studies.jobs.search_loop import (
    Failure,
    Job,
    Search,
    SearchLoop,
    carry_out,
    read_finished,
)
from noisescale.studies.jobs.short_run import is_stored
from noisescale.studies.jobs.tasks import Tasks
from noisescale.training.config import ADAPTIVE_RATE, resolve_batch_size
from noisescale.training.records.folder import may_write, write_table
from noisescale.training.records.names import run_name
from noisescale.training.records.tables import STEPS_TO_GOAL
from noisescale.training.updates.muon import check_muon

DRAWN_EVENLY = "B_simple and B_noise are those of examples drawn evenly, and not by importance"
CELLS_A_SEARCH = 4  # about, for the estimate of the time left


def run_critical_batch(
    config: CriticalBatchConfig,
    out: Path | str,
    *,
    executor: Executor | None = None,
    options: StudyOptions | None = None,
) -> CriticalBatchResult:
    """The critical batch size for each goal, computed as far as `out` does not hold it already.

    At each batch size the learning rate is tuned, seed by seed, until the best one for every goal
    lies between others that were tried. The first batch size is the middle one; as S falls and E
    rises with B, what it takes bounds the lengths of the runs at its neighbours, and theirs of the
    next. Each run is a folder of its own, so that a killed measurement goes on with what is
    missing, and more batch sizes or seeds may be added.

    A script calls it under `if __name__ == "__main__":`, since the local processes import the
    script.

    Args:
        config: the measurement; runs already in `out` must be of the same kind, and are kept.
        out: the results folder.
        executor: any of concurrent.futures, left open; None: local processes, one a core. Its
            workers must see `out` under the same path.
        options: None: the defaults.

    Returns:
        The steps to the goals, the fits, the best learning rates and the noise scale beside them.

    Raises:
        SettingError: a batch larger than the training set, goals that the start has reached, no
            learning rate to begin with, or options of another study.
        NoisescaleError: no run at the first batch size reaches a goal; with the best loss seen.
        RunFolderError: `out` holds something else.
        Interrupted: a SIGINT or SIGTERM came; what is finished is kept. While the noise scale was
            measured along runs, `found` is the result without the rest of it.
    """
    out = Path(out)
    notes = seeding_notes(config.problem, num_seeds=config.num_seeds)
    if config.training.sampling == "importance" and config.noise_examples:
        notes = (*notes, DRAWN_EVENLY)
    options = with_notes(common_options(options), notes)
    check_muon(config.training)
    num_examples = examples_for(config.problem, config.split)
    config = config.resolved(num_examples=num_examples)
    for size in config.batch_sizes or ():
        resolve_batch_size(config.run(size, 1.0, 0, max_steps=1), num_examples)
    orders = claim(out, config.identity(), settings=SETTINGS)
    with given_or_local(executor) as pool:
        return _Measurement(config, out, pool, options, num_examples, orders).complete()


class _Measurement:
    """A measurement in progress, on an executor.

    runs: by batch size, rate and seed; None: it failed. earlier: those that lay in the folder
    before. num_asked: how many runs the search of each batch size and seed has asked for; ended: of
    those that have ended, how many runs of the whole budget they came to. budgets: the updates that
    further runs of each batch size may take, about.
    """

    def __init__(
        self,
        config: CriticalBatchConfig,
        out: Path,
        pool: Executor,
        options: StudyOptions,
        num_examples: int,
        orders: Orders,
    ) -> None:
        self.config = config
        self.out = out.absolute()  # a worker may be elsewhere
        self.options = options
        self.num_examples = num_examples
        self.orders = orders
        self.sizes = sorted(config.batch_sizes or ())
        self.first_size = self.sizes[len(self.sizes) // 2]
        self.goals: tuple[float, ...] = ()
        self.start = Start(math.nan, math.nan, math.nan)
        self.runs: dict[tuple[int, float, int], GoalRun | None] = {}
        self.earlier: dict[tuple[int, float, int], GoalRun] = {}
        self.num_asked: Counter[tuple[int, int]] = Counter()
        self.ended: dict[tuple[int, int], float] = {}
        self.budgets: dict[int, int] = {}
        self.tasks = Tasks(pool, options.console)
        self.loop = SearchLoop(self.tasks, to_come=self._to_come)

    def complete(self) -> CriticalBatchResult:
        started = time.monotonic()
        with self.tasks:
            self._look_at_start()
            self.earlier = self._longest(lambda name, error: None)  # damaged ones are met below
            budget = self.config.epochs * math.ceil(self.num_examples / self.first_size)
            self._begin(self.first_size, 0, self._first_rate(), budget)
            self.loop.run()
            self._take_others()
            table = self.table()
            if may_write(self.out):
                write_table(self.out / STEPS_TO_GOAL, table)  # whatever becomes of the fits
            fits = remembered_fits(self.out, table)
            noise_runs, stopped = self._noise_runs(table, fits)
        outcome = Outcome(
            table=table,
            fits=fits,
            num_examples=self.num_examples,
            best_losses=self._best_losses(),
            goals=self.goals,
            start=self.start,
            noise_runs=noise_runs,
            failures=self.tasks.failures,
            seconds=time.monotonic() - started,
        )
        result = write_results(self.config, self.out, outcome, self.options)
        if stopped is not None:
            stopped.found = result
            raise stopped
        return result

    def _look_at_start(self) -> None:
        """The loss and the curvature where seed 0 starts, and from the loss the default goals."""
        config = self.config
        curvature = not config.training.is_adaptive and config.max_rate is None
        self.start = stored_start(self.out, curvature=curvature) or self._measure_start(curvature)
        goals = config.goals
        if goals is None:
            if not self.start.loss > 0:
                raise SettingError(
                    f"the loss at the start is {self.start.loss:g}, of which no goals can be "
                    "shares: give --goal"
                )
            goals = default_goals(self.start.loss)
        self.goals = tuple(sorted(goals, reverse=True))
        if not self.start.loss > self.goals[0]:
            raise SettingError(
                f"the goal {self.goals[0]:g} is not below the loss at the start, "
                f"{self.start.loss:.4g}: give lower ones"
            )

    def _measure_start(self, curvature: bool) -> Start:
        self.tasks.progress.activity("measuring where the runs start")
        cell = self._cell(self.sizes[0], 1.0, 0, 1)
        future = self.tasks.submit(start_at, cell, self.out, self.config.split, curvature=curvature)
        if (error := self.tasks.error(future)) is not None:
            raise NoisescaleError(f"the start of the runs cannot be evaluated: {error}") from error
        start: Start = future.result()
        return start

    def _first_rate(self) -> float:
        """ε*/(1 + B*/B) at the first batch size."""
        config, start = self.config, self.start
        if config.training.is_adaptive:
            return ADAPTIVE_RATE if config.max_rate is None else config.max_rate
        max_rate = start.max_rate if config.max_rate is None else config.max_rate
        if not max_rate > 0:
            raise SettingError(
                "the curvature along the gradient at the start gives no best learning rate to "
                "begin with: give --lr-max"
            )
        return max_rate / (1 + self._bend() / self.first_size)

    def _bend(self) -> float:
        """B* of the law by which one batch size's best rate leads to the next one's."""
        bend = self.start.rate_bend if self.config.rate_bend is None else self.config.rate_bend
        return bend if math.isfinite(bend) else float(self.first_size)

    def _begin(self, size: int, seed: int, rate: float, budget: int) -> None:
        """Starts the search of a batch size's best rates with a seed."""
        self.budgets[size] = min(budget, self.budgets.get(size, budget))
        self.loop.begin(self._tune(size, seed, rate, budget))

    def _tune(self, size: int, seed: int, rate: float, budget: int) -> Search[GoalRun, None]:
        """Makes the runs that a search of the best rates asks for; others follow seed 0's."""
        is_first = (size, seed) == (self.first_size, 0)
        allowed: list[int] = []  # updates of each run

        def job(trial: Trial) -> Job[GoalRun]:
            self.num_asked[size, seed] += 1
            allowed.append(trial.max_steps)
            rate = self._rate(trial.grid_index)
            cell = self._cell(size, rate, seed, trial.max_steps)
            goal_cell = GoalCell(cell=cell, goals=self.goals, split=self.config.split)
            name = f"B = {size}, lr {rate:g}, seed {seed}"
            # for the time left: steps that no other search bounds are not twice what is needed
            work = size * trial.max_steps * (SLACK if is_first else 1)
            stored = partial(self._stored, (size, rate, seed))
            return Job(run_to_goal, goal_cell, name, kind=size, work=work, stored=stored)

        def steps(trial: Trial, run: GoalRun | Failure) -> Steps:
            key = (size, self._rate(trial.grid_index), seed)
            if isinstance(run, Failure):
                self.runs[key] = None
                return (math.inf,) * len(self.goals)
            self.runs[key] = run
            steps = tuple(run.steps(goal) for goal in self.goals)
            if math.isfinite(steps[-1]):
                self.budgets[size] = min(self.budgets[size], math.ceil(SLACK * steps[-1]))
            return steps

        search_rates = tune_first if is_first else tune
        search = search_rates(self._index(rate), budget, factor=self.config.factor)
        tuned = yield from carry_out(search, job, steps)
        self.ended[size, seed] = sum(min(most / tuned.budget, 1.0) for most in allowed)
        if seed == 0:
            self._follow(size, tuned)

    def _stored(self, key: tuple[int, float, int], goal_cell: GoalCell) -> GoalRun | None:
        """The run where it lies finished, or one that went on for longer, as others may have."""
        if (run := stored_goal_run(goal_cell)) is not None:
            return run
        earlier = self.runs.get(key) or self.earlier.get(key)
        most = goal_cell.cell.training.max_steps
        if earlier is None or most is None:
            return None
        has_ended = math.isfinite(earlier.steps(self.goals[-1])) or earlier.has_diverged
        return earlier if has_ended or earlier.summary["steps"] >= most else None

    def _index(self, rate: float) -> int:
        """Of the nearest rate on the grid, which is the same for all batch sizes."""
        return round(math.log(rate) / math.log(self.config.factor))

    def _rate(self, index: int) -> float:
        return float(f"{self.config.factor**index:.6g}")

    def _follow(self, size: int, tuned: Tuned) -> None:
        """Goes on from a batch size that seed 0 has tuned, to other seeds and its neighbours."""
        best = [index for index in best_indices(tuned.tried) if index is not None]
        if not best and size == self.first_size:
            raise NoisescaleError(self._unreached())
        indices = best or sorted(tuned.tried)
        rate = self._rate(indices[len(indices) // 2])
        for seed in range(1, self.config.num_seeds):
            self._begin(size, seed, rate, tuned.budget)

        position = self.sizes.index(size)
        if size >= self.first_size and position + 1 < len(self.sizes):
            larger = self.sizes[position + 1]  # takes no more steps
            self._begin(larger, 0, self._rate_at(larger, size, rate), tuned.budget)
        if size <= self.first_size and position > 0:
            smaller = self.sizes[position - 1]  # takes no more examples
            budget = math.ceil(tuned.budget * size / smaller)
            self._begin(smaller, 0, self._rate_at(smaller, size, rate), budget)

    def _rate_at(self, size: int, tuned_size: int, rate: float) -> float:
        """The rate to begin with at a batch size, from the best one at another."""
        if self.config.training.is_adaptive:
            return rate * math.sqrt(size / tuned_size)
        bend = self._bend()
        return rate * ((1 + bend / tuned_size) / (1 + bend / size))

    def _noise_runs(
        self, table: pd.DataFrame, fits: dict[float, CriticalBatchFit]
    ) -> tuple[list[GoalRun], Interrupted | None]:
        """Runs near the critical batch size with the noise scale measured along them, if wanted.

        And the signal that ended them early, if one did.
        """
        runs = choose_noise_runs(self.config, table, fits, self.num_examples)
        if runs is None:
            return [], None

        def goal_cell(seed: int, part: tuple[int, int]) -> GoalCell:
            size, rate, max_steps, _ = runs
            return GoalCell(
                cell=self._cell(size, rate, seed, max_steps, folder=runs.folder(part)),
                goals=self.goals,
                split=self.config.split,
                noise=runs.tracking(seed),
                part=part,
            )

        def are_stored(parts: Parts) -> bool:
            return any(is_stored(goal_cell(0, part).cell) for part in parts)

        # as they lie in the folder, else whatever leaves no process without work
        parts: Parts = HALVES if self.config.num_seeds % self.tasks.num_at_once else WHOLE
        parts = next((there for there in (WHOLE, HALVES) if are_stored(there)), parts)
        cells = [[goal_cell(seed, part) for part in parts] for seed in range(self.config.num_seeds)]
        return make_noise_runs(self.tasks, runs, cells, self.start.seconds_an_example)

    def _cell(
        self, size: int, rate: float, seed: int, max_steps: int, *, folder: str = CELL_FOLDER
    ) -> Cell:
        training = ordered(self.config.run(size, rate, seed, max_steps=max_steps), self.orders)
        until = f"to-{self.goals[-1]:g}" if self.goals else ""
        path = self.out / folder / until / run_name(self.config.problem, training)
        return make_cell(self.options, path, self.config.problem, training)

    def _best_losses(self) -> list[tuple[float, int, float]]:
        """The least loss seen of each run, with its batch size and rate."""
        return [
            (run.summary["best_loss"], size, rate)
            for (size, rate, _), run in self.runs.items()
            if run is not None and run.summary["best_loss"] is not None
        ]

    def _unreached(self) -> str:
        """What to say where no goal was reached."""
        losses = self._best_losses()
        goals = ", ".join(f"{goal:g}" for goal in self.goals)
        if all(run is None for run in self.runs.values()):
            return f"no run could be made: {self.tasks.failures[0]}"
        if not losses:
            return f"no run has a finite loss; goals {goals}: give smaller rates with --lr-max"
        loss, size, rate = min(losses)
        return (
            f"no run reaches any of the goals {goals}: the best loss seen is {loss:.4g}, at "
            f"B = {size} and lr {rate:g}; give higher ones with --goal, longer runs with --epochs, "
            "or other rates with --lr-max"
        )

    def _take_others(self) -> None:
        """Adds the runs that others have finished in this folder, so that no table loses them."""
        known = {run.path for run in self.runs.values() if run is not None}
        self.runs |= self._longest(self.tasks.failed, known=known)

    def _longest(
        self, failed: Callable[[str, BaseException], object], *, known: Collection[Path] = ()
    ) -> dict[tuple[int, float, int], GoalRun]:
        """The finished runs in the folder that go beyond ours of the same rate and seed, if any.

        failed: is told of one that is damaged. known: folders that need not be read again.
        """
        longest: dict[tuple[int, float, int], GoalRun] = {}
        root = self.out / CELL_FOLDER / f"to-{self.goals[-1]:g}"
        for run in read_finished(root, read_goal_run, failed, known=known):
            key = (run.summary["batch_size"], run.summary["learning_rate"], run.summary["seed"])
            ours = longest.get(key) or self.runs.get(key)
            if ours is None or ours.summary["steps"] < run.summary["steps"]:
                longest[key] = run
        return longest

    def table(self) -> pd.DataFrame:
        """The rows of steps_to_goal.csv."""
        rows = []
        for goal in self.goals:
            for (size, rate, seed), run in sorted(self.runs.items()):
                if run is None:
                    continue
                steps = run.steps(goal)
                censored = math.isinf(steps)
                bound = run.seen if censored else steps
                if not bound > 0:  # it diverged at once, or started beyond the goal
                    continue
                diverged = run.has_diverged
                row = (goal, size, rate, seed, bound, int(censored), int(diverged))
                rows.append(dict(zip(COLUMNS, row, strict=True)))
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def _to_come(self) -> dict[int, list[float]]:
        """Of each batch size the examples of every run no search has asked for yet, about."""
        # the first search, which no other has told what runs take, is like none of those to come
        others = [count for search, count in self.ended.items() if search != (self.first_size, 0)]
        a_search = (CELLS_A_SEARCH + sum(others)) / (1 + len(others))

        def more(size: int) -> int:
            searches = {(size, seed) for seed in range(self.config.num_seeds)} - self.ended.keys()
            return round(sum(max(a_search - self.num_asked[search], 0) for search in searches))

        return {size: [self._examples(size)] * more(size) for size in self.sizes}

    def _examples(self, size: int) -> float:
        """That a run may see at most; at a batch size that is still to come, by E ∝ 1 + B/B*."""
        bend = self._bend()
        nearest = min(self.budgets, key=lambda begun: abs(math.log(begun / size)))
        return nearest * self.budgets[nearest] * (bend + size) / (bend + nearest)
