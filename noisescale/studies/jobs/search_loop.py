"""Searches side by side on an executor: each asks for runs, and goes on once it has their results.

A study writes its searches as generators of lists of `Job`; each `yield` gives the results, in the
order of the jobs. What a search does after its last one, such as beginning others, is plain code at
its end. Since nothing else decides what is run next, results do not depend on the order in which
runs finish.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Hashable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from noisescale.errors import RunFolderError
from noisescale.studies.jobs.short_run import ShortRun
from noisescale.studies.jobs.tasks import Tasks
from noisescale.training.records.folder import finished_runs

Run = TypeVar("Run", bound=ShortRun)
Trial = TypeVar("Trial")
Answer = TypeVar("Answer")
Value = TypeVar("Value")


def _no_run(argument: object) -> None:
    """No run is stored."""


@dataclass(frozen=True)
class Job(Generic[Run]):
    """A run that a search asks for.

    function, argument: a worker calls the one with the other, so they must pickle.
    name: of the run, where it is said to have failed.
    kind: runs of one kind take about equally long, for the same work; a batch size, say.
    work: how much it is at most, such as the examples that the run may see.
    stored: called with the argument here, gives the run where it lies finished in its folder.
    """

    function: Callable[[Any], Run]
    argument: Any
    name: str
    kind: Hashable
    work: float = 1.0
    stored: Callable[[Any], Run | None] = _no_run


@dataclass(frozen=True)
class Failure:
    """In the place of a run that could not be made: why, in a line."""

    reason: str


Search = Generator[list[Job[Run]], list[Run | Failure], Value]


def carry_out(
    search: Generator[list[Trial], list[Answer], Value],
    job: Callable[[Trial], Job[Run]],
    answer: Callable[[Trial, Run | Failure], Answer],
) -> Search[Run, Value]:
    """A search that knows nothing of runs: its trials made into jobs, and results into answers.

    Returns what `search` returns.
    """
    try:
        trials = next(search)
        while True:
            results = yield [job(trial) for trial in trials]
            answers = [answer(*pair) for pair in zip(trials, results, strict=True)]
            trials = search.send(answers)
    except StopIteration as end:
        value: Value = end.value
        return value


@dataclass
class _Question:
    """Jobs that a search waits for, and their results so far."""

    search: Search[Any, None]
    jobs: list[Job[Any]]
    results: list[ShortRun | Failure | None]


def read_finished(
    root: Path,
    read: Callable[[Path], Run],
    failed: Callable[[str, BaseException], object],
    *,
    known: Collection[Path] = (),
) -> Iterator[Run]:
    """The runs that anybody has finished below `root`, so that no table loses them.

    read: gives the run in a folder. failed: is told of one that is damaged. known: folders that
    need not be read again.
    """
    for path in finished_runs(root):
        if path in known:
            continue
        try:
            yield read(path)
        except RunFolderError as error:
            failed(str(path), error)


class SearchLoop:
    """Searches in progress on an executor.

    tasks: by which their jobs are submitted. to_come: of each kind, the work of every run that is
    still to be asked for, about; for the estimate of the time that is left.
    """

    def __init__(
        self, tasks: Tasks, *, to_come: Callable[[], Mapping[Any, list[float]]] | None = None
    ) -> None:
        self._tasks = tasks
        self._to_come = to_come or dict
        self._pending: dict[Future[Any], tuple[_Question, int]] = {}

    def begin(self, search: Search[Any, None]) -> None:
        """Submits what a search asks for first; from within another search too."""
        self._ask(search, next(search))

    def run(self) -> None:
        """Goes on with the searches until all have ended."""
        while self._pending:
            self._tasks.progress.expect(self._remaining())
            done = self._tasks.wait(set(self._pending))
            for future in [future for future in self._pending if future in done]:
                self._take(future)

    def _ask(self, search: Search[Any, None], jobs: list[Job[Any]]) -> None:
        """Submits jobs, but for those that are stored; these alone let the search go on at once."""
        while True:
            assert jobs, "a search that asks for nothing would wait for ever"
            question = _Question(search, jobs, [self._stored(job) for job in jobs])
            for index, job in enumerate(jobs):
                if question.results[index] is None:
                    future = self._tasks.submit(job.function, job.argument)
                    self._pending[future] = (question, index)
            results = [result for result in question.results if result is not None]
            if len(results) < len(jobs):
                return
            try:
                jobs = search.send(results)
            except StopIteration:
                return

    def _stored(self, job: Job[Any]) -> ShortRun | Failure | None:
        """The run where it lies finished in its folder; a process need not start for it."""
        try:
            run: ShortRun | None = job.stored(job.argument)
        except RunFolderError as error:
            return Failure(self._tasks.failed(job.name, error))
        if run is not None:
            self._count(self._tasks.progress.stored, job, run)
        return run

    def _take(self, future: Future[Any]) -> None:
        """Keeps a result; after the last that its search has waited for, goes on with that."""
        question, index = self._pending.pop(future)
        question.results[index] = self._result(future, question.jobs[index])
        results = [result for result in question.results if result is not None]
        if len(results) < len(question.jobs):
            return
        try:
            jobs = question.search.send(results)
        except StopIteration:
            return
        self._ask(question.search, jobs)

    def _result(self, future: Future[Any], job: Job[Any]) -> ShortRun | Failure:
        error = self._tasks.error(future)
        if error is not None:
            return Failure(self._tasks.failed(job.name, error))
        run: ShortRun = future.result()
        self._count(self._tasks.progress.finished, job, run)
        return run

    @staticmethod
    def _count(count: Callable[..., None], job: Job[Any], run: ShortRun) -> None:
        """Tells the progress of a run's seconds, and of how much of its work it has done."""
        done = run.summary.get("examples_seen", job.work)
        count(job.kind, run.summary["seconds"], work=job.work, done=done)

    def _remaining(self) -> dict[Any, list[float]]:
        """Of each kind, the work of every run that is still to be made, about."""
        remaining: dict[Any, list[float]] = defaultdict(list)
        for question, index in self._pending.values():
            job = question.jobs[index]
            remaining[job.kind].append(job.work)
        for kind, works in self._to_come().items():
            remaining[kind] += works
        return remaining
