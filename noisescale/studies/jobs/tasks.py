"""Tasks on an executor, waited for with an eye on signals and a progress bar; failures noted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from noisescale.errors import Interrupted, NoisescaleError, OwnCodeError, own_words
from noisescale.statistics.display import counted
from noisescale.studies.jobs.progress import StudyProgress
from noisescale.training.console import DeferredInterrupts

POLL = 0.2  # seconds between two looks for a signal: at once for a person, rare for a processor


class Tasks:
    """What a study has submitted to an executor; while open as a context, SIGINT and SIGTERM wait.

    failures: a line for each.
    """

    def __init__(self, pool: Executor, console: Console | None) -> None:
        self._pool = pool
        self._submitted: set[Future[Any]] = set()
        self._interrupts = DeferredInterrupts()
        self.progress = StudyProgress(console, num_at_once=self.num_at_once)
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        self._interrupts.__enter__()
        self.progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        self._interrupts.__exit__(kind, error, trace)

    @property
    def num_at_once(self) -> int:
        """How many tasks are carried out at once, 1 where the executor does not say."""
        return getattr(self._pool, "num_processes", 1)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._pool.submit(function, *args, **kwargs)
        self._submitted.add(future)
        return future

    def wait(self, futures: set[Future[Any]]) -> set[Future[Any]]:
        """Those that are done, once one is; Interrupted after a signal, with all else given up."""
        while True:
            done, _ = wait(futures, timeout=POLL, return_when=FIRST_COMPLETED)
            self._submitted -= done
            self.progress.update()
            if self._interrupts.received is not None:
                for future in self._submitted:
                    future.cancel()
                raise Interrupted(self._kept(), self._interrupts.received)
            if done:
                return done

    def error(self, future: Future[Any]) -> BaseException | None:
        """What a task raised, waited for; NoisescaleError where its executor has given it up."""
        self.wait({future})
        try:
            return future.exception()
        except CancelledError:
            raise NoisescaleError(
                "the executor has cancelled its tasks (is its scheduler gone?); " + self._kept()
            ) from None

    def failed(self, name: str, error: BaseException) -> str:
        """Notes a failure, for the summary and on the console; returns why, in a line."""
        reason = str(error) if isinstance(error, OwnCodeError) else own_words(error)
        self.failures.append(f"{name}: {reason}")
        self.progress.log(f"{name} failed: {reason}")
        return reason

    def _kept(self) -> str:
        number = self.progress.num_finished
        verb = "is" if number == 1 else "are"
        return f"{counted(number, 'run')} {verb} finished and kept; the same command runs the rest"
