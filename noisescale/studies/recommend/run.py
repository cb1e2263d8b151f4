"""From a problem to a batch size, in phases that are kept: a look, a search of the rate, a run."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from noisescale.errors import (
    Interrupted,
    MeasurementError,
    RunFolderBusyError,
    RunFolderError,
    SettingError,
)
from noisescale.studies.jobs.folder import CELL_FOLDER, LOCK, claim, closing
from noisescale.studies.jobs.options import StudyOptions, common_options, make_cell
from noisescale.studies.jobs.short_run import ShortRun
from noisescale.studies.recommend.config import SETTINGS, Budget, RecommendConfig
from noisescale.studies.recommend.look import (
    LOOK,
    LOOKS,
    SEARCH_SHARE,
    TYPICAL,
    Look,
    Plan,
    look_at,
    plan,
    with_run,
)
from noisescale.studies.recommend.results import (
    PICTURE,
    REPORT,
    TRIED,
    Outcome,
    RecommendResult,
    read_result,
    title_of,
    write_results,
)
from noisescale.studies.recommend.runs import rate_run, tracked_run
from noisescale.studies.recommend.search import FEWEST_TRIED, Search, next_index, trained
from noisescale.training.console import duration_text
from noisescale.training.records.environment import environment
from noisescale.training.records.folder import SUMMARY, read_json, write_json
from noisescale.training.records.tables import LOSSES, NOISE
from noisescale.training.tracking.noise import NUM_EXAMPLES, NoiseTracking
from noisescale.training.updates.muon import check_muon

PLAN = "plan.json"
RUN = "run"  # the folder of the tracked run, with its rate and length
MOST_RUNS = 3  # with the noise along it, each at half the rate of the last, which diverged
AGAIN_SHARE = 0.1  # of the budget, with less of which no run is begun again


def run_recommend(
    config: RecommendConfig,
    out: Path | str,
    *,
    options: StudyOptions | None = None,
    force: bool = False,
    clock: Callable[[], float] = time.monotonic,
    spent: float = 0.0,
) -> RecommendResult:
    """A batch size and a learning rate for a problem, within so many minutes.

    A few timed updates say what it will cost; learning rates are tried from below and above until
    the best lies between others; a run at it is tracked with the noise scale, from which B_crit
    follows with the interval of runs whose B_crit was measured (`recommend`). Each phase is
    shortened to what the clock still allows. What is finished lies in the folder `out` and is not
    computed again; a finished folder is read.

    Args:
        config: the problem, its optimizer, and the minutes.
        out: the results folder; runs in it must be of the same kind, and are kept.
        options: None: the defaults.
        force: delete what is in the folder and begin anew.
        clock: gives seconds, by which the budget is kept.
        spent: seconds of it that have gone before, as for loading libraries.

    Returns:
        The advice, or why there is none, and all that was measured.

    Raises:
        SettingError: a batch larger than the training set, a problem that cannot be made, or
            minutes that are too few for an answer.
        MeasurementError: the loss is not finite where the model starts, or no learning rate lowers
            it.
        RunFolderError: `out` holds something else.
        Interrupted: a SIGINT came; what is finished is kept.
    """
    out, options = Path(out), common_options(options)
    check_muon(config.training)
    if force and (out / SETTINGS).exists():
        _remove(out)
    claim(out, config.identity(), settings=SETTINGS)
    if (result := read_result(out)) is not None:
        return result
    try:
        return _Study(config, out.absolute(), options, clock, spent).complete()
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; what is finished in {out} is kept: the same command runs the rest",
            signal.SIGINT,
        ) from None


class _Study:
    """A recommendation in progress."""

    def __init__(
        self,
        config: RecommendConfig,
        out: Path,
        options: StudyOptions,
        clock: Callable[[], float],
        spent: float,
    ) -> None:
        self.config = config
        self.out = out
        self.options = options
        self.budget = Budget(60 * config.minutes, clock)
        self.budget.add(spent)
        if (look := Look.read(out)) is not None:
            self.budget.add(look.seconds)
        self.notes: list[str] = []
        self.cell = make_cell(options, out / LOOK, config.problem, config.training)

    def complete(self) -> RecommendResult:
        config = self.config
        self._say("a first look at the problem: its loss, its noise, and what a step takes")
        look = look_at(
            self.cell,
            self.out,
            self.budget,
            learning_rate=config.learning_rate,
            batch_size_of=config.size_of_runs,
        )
        planned = self._plan(look)
        self._say(
            f"it takes about {duration_text(planned.seconds + look.seconds)} of at most "
            f"{duration_text(self.budget.seconds)}:"
        )
        self._say(
            f"- some {TYPICAL} learning rates, {planned.rate_steps:,} steps each at "
            f"B = {look.batch_size:,}"
        )
        self._say(
            f"- a run of {planned.run_steps:,} steps, the noise measured "
            f"{planned.num_measurements} times on {planned.noise_examples:,} examples"
        )
        search = self._search(look, planned)
        run = self._tracked(look, planned, search.rate_of_run)
        outcome = Outcome(
            config=config,
            look=look,
            plan=planned,
            tried=search.table(),
            best=search.best,
            best_rate=search.rate_of_run,
            run=run,
            seconds=self.budget.spent,
        )
        notes = (*self.options.notes, *self.notes)
        return write_results(
            self.out,
            outcome,
            closing(self.budget.spent, notes, environment(self.options.device)),
            title=title_of(config.problem),
            pictures=self.options.pictures,
        )

    def _plan(self, look: Look) -> Plan:
        """The plan of the first time in this folder, so that runs which are kept count."""
        stored = read_json(self.out / PLAN)
        try:
            if stored is not None and stored["minutes"] == self.config.minutes:
                return Plan(**{name: stored[name] for name in Plan.__dataclass_fields__})
        except KeyError as error:
            raise RunFolderError(
                f"{self.out / PLAN} is damaged: delete it and run again"
            ) from error
        wanted = self.config.steps(look.batch_size, look.num_examples)
        try:
            planned = plan(look, self.budget, wanted_steps=wanted)
        except SettingError:
            (self.out / LOOK).unlink()  # to be timed again, by what it may be by then
            raise
        write_json(self.out / PLAN, {**planned.to_dict(), "minutes": self.config.minutes})
        return planned

    def _search(self, look: Look, planned: Plan) -> Search:
        """Tries rates until the best lies between others, or no time is left for another."""
        search = Search(look, planned)
        seconds = planned.rate_steps * look.update + LOOKS * look.evaluation
        reserve = (1 - SEARCH_SHARE) * self.budget.left  # for the run
        while (index := next_index(search.losses)) is not None:
            search.unfinished = len(search.runs) >= FEWEST_TRIED and (
                self.budget.left - seconds < reserve
            )
            if search.unfinished:
                break
            rate = search.rate(index)
            path = self.out / CELL_FOLDER / f"lr-{rate:g}-{planned.rate_steps}"
            cell = with_run(self.cell, look.batch_size, rate, planned.rate_steps)
            with self._counted(path):
                run = rate_run(
                    replace(cell, path=path),
                    self.budget,
                    seconds=seconds,
                    num_evaluated=look.num_evaluated,
                    console=self.options.console,
                )
            search.runs[index] = run
            self._say(f"lr {rate:g}: {_fate(run, look.loss)}, {run.summary['took']:.1f} s")
        search.check()
        self.notes += search.notes
        return search

    def _tracked(self, look: Look, planned: Plan, rate: float) -> ShortRun:
        """The tracked run, again at half the rate where it diverges and time is left."""
        seed = self.config.training.seed
        tracking = NoiseTracking(num_examples=planned.noise_examples, seed=seed)
        for attempt in range(1, 1 + MOST_RUNS):
            rate = float(f"{rate:.2g}")
            self._say(f"a run at lr {rate:g} with the noise along it")
            # another plan, as of more minutes, makes another run
            path = self.out / f"{RUN}-lr-{rate:g}-{planned.run_steps}"
            cell = with_run(self.cell, look.batch_size, rate, planned.run_steps)
            with self._counted(path):
                run = tracked_run(
                    replace(cell, path=path),
                    tracking,
                    self.budget,
                    num_evaluated=look.num_evaluated,
                    console=self.options.console,
                )
            if trained(run):
                break
            text = f"the run at lr {rate:g} diverged after {run.summary['steps']:,} steps"
            if attempt == MOST_RUNS:
                raise MeasurementError(
                    f"{text}, as did those at higher rates, though shorter ones did not: give "
                    f"--lr {rate / 2:.2g}"
                )
            if self.budget.left < AGAIN_SHARE * self.budget.seconds:
                raise MeasurementError(
                    f"{text}, though shorter ones did not, and there is no time for another: give "
                    f"--lr {rate / 2:.2g}, or more --minutes"
                )
            self.notes.append(f"{text}; the sizes are those of one at a lower rate")
            rate /= 2
        steps = run.summary["steps"]
        if steps < planned.wanted_steps:
            epochs = steps * look.batch_size / look.num_examples
            self.notes.append(
                f"the run is {epochs:.2g} of {self.config.epochs} epochs long, all that the time "
                "allows: B_crit of longer training is larger as a rule"
            )
        if planned.noise_examples < min(look.num_examples, NUM_EXAMPLES):
            self.notes.append(
                f"the noise is measured on {planned.noise_examples:,} of {look.num_examples:,} "
                "examples, all that the time allows"
            )
        return run

    @contextmanager
    def _counted(self, path: Path) -> Iterator[None]:
        """Counts the time of a run that an earlier command has finished."""
        kept = read_json(path / SUMMARY)
        if kept is not None:
            self.budget.add(float(kept.get("took", 0.0)))
        yield

    def _say(self, text: str) -> None:
        if self.options.console is not None:
            self.options.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _fate(run: ShortRun, start: float) -> str:
    """What became of a rate's run."""
    if (step := run.summary["diverged_at_step"]) is not None:
        return f"diverged at step {step:,}"
    return f"loss {start:.4g} → {run.losses['loss'].iloc[-1]:.4g}"


def _remove(out: Path) -> None:
    """Deletes what a recommendation has left in its folder, its settings last.

    RunFolderBusyError where another process is writing in it.
    """
    for lock in out.rglob(LOCK):
        try:
            with FileLock(lock, timeout=0):
                pass
        except Timeout:
            raise RunFolderBusyError(
                f"{out} is being written by another process: wait for it or choose another --out"
            ) from None
    for entry in sorted(out.iterdir()):
        if entry.is_dir() and (entry.name == CELL_FOLDER or entry.name.split("-")[0] == RUN):
            shutil.rmtree(entry)
    for name in (SUMMARY, LOOK, PLAN, REPORT, PICTURE, TRIED, NOISE, LOSSES, SETTINGS):
        (out / name).unlink(missing_ok=True)
