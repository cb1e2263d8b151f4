"""Tasks on an executor, waited for with an eye on signals and a progress bar; failures noted."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from types import TracebackType
from typing import Any, Self

from rich.console import Console

from noisescale.errors import Interrupted, NoisescaleError, first_line
from noisescale.studies.jobs.progress import SweepProgress
from noisescale.studies.stability_map.config import BatchSize
from noisescale.training.console import DeferredInterrupts

POLL = 0.2  # seconds between two looks for a signal


class Tasks:
    """What a sweep has submitted to an executor; open as a context, under which SIGINT and SIGTERM wait.

    remaining: cells still to be run at each batch size, about. num_finished: how many are finished and kept.
    failures: a line for each.
    """

    def __init__(
        self,
        pool: Executor,
        console: Console | None,
        *,
        remaining: Callable[[], dict[BatchSize, int]],
        num_finished: Callable[[], int],
    ) -> None:
        self._pool = pool
        self._remaining = remaining
        self._num_finished = num_finished
        self._submitted: set[Future[Any]] = set()
        self._interrupts = DeferredInterrupts()
        self.progress = SweepProgress(console)
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

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = self._pool.submit(function, *args, **kwargs)
        self._submitted.add(future)
        return future

    def wait(self, futures: set[Future[Any]], *, cells: bool = True) -> set[Future[Any]]:
        """Those that are done, once one is; Interrupted after a signal, with what is at work given up.

        cells: whether it is the cells, which the progress is about, that are waited for.
        """
        while True:
            done, _ = wait(futures, timeout=POLL, return_when=FIRST_COMPLETED)
            self._submitted -= done
            if cells:
                self.progress.update(self._remaining())
            if self._interrupts.received is not None:
                for future in self._submitted:
                    future.cancel()
                raise Interrupted(
                    f"stopped; {self._num_finished()} cells are finished and kept: the same command runs the "
                    "rest",
                    self._interrupts.received,
                )
            if done:
                return done

    def error(self, future: Future[Any]) -> BaseException | None:
        """What a finished task raised; NoisescaleError where its executor has given it up."""
        try:
            return future.exception()
        except CancelledError:
            raise NoisescaleError(
                "the executor has cancelled its tasks (is its scheduler gone?); "
                f"{self._num_finished()} cells are finished and kept: the same command runs the rest"
            ) from None

    def failed(self, what: str, error: BaseException) -> str:
        """Notes a failure, for the summary and on the console; returns it in a line."""
        line = f"{type(error).__name__}: {first_line(error)}"
        self.failures.append(f"{what}: {line}")
        self.progress.log(f"{what} failed: {line}")
        return line
