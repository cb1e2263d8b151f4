"""Where the cells of a sweep run: local processes, or an existing Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

from noisescale.errors import SettingError

ATTEMPTS = 3  # of a task whose process dies
CONNECT_SECONDS = 5


class LocalProcesses(Executor):
    """So many fresh processes, each of one thread; one that dies is replaced and its task tried again.

    A task at whose side processes die three times ends in an error that says so. The processes end with
    the one that started them, however that ends, and leave Ctrl-C to it.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self._lock = threading.Lock()
        self._pool = self._new_pool()
        self._closed = False

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self._try(future, lambda pool: pool.submit(function, *args, **kwargs), attempt=1)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes; those at work are killed where their futures are cancelled."""
        self._closed = True
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=wait and not cancel_futures, cancel_futures=cancel_futures)
        if cancel_futures:
            for process in processes:
                process.kill()

    def _try(
        self, future: Future[Any], submit: Callable[[ProcessPoolExecutor], Future[Any]], *, attempt: int
    ) -> None:
        with self._lock, _no_interrupts():  # which processes started meanwhile inherit
            pool = self._pool
            try:
                inner = submit(pool)
            except BrokenProcessPool:
                pool = self._pool = self._new_pool()
                inner = submit(pool)

        def done(inner: Future[Any]) -> None:
            if inner.cancelled():
                return
            error = inner.exception()
            if error is None:
                future.set_result(inner.result())
            elif not isinstance(error, BrokenProcessPool) or self._closed:
                future.set_exception(error)
            elif attempt == ATTEMPTS:
                future.set_exception(
                    RuntimeError(f"its process died in each of {ATTEMPTS} attempts: out of memory, or killed")
                )
            else:
                self._replace(pool)
                self._try(future, submit, attempt=attempt + 1)

        inner.add_done_callback(done)

    def _replace(self, broken: ProcessPoolExecutor) -> None:
        with self._lock:
            if self._pool is broken:
                self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.num_processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
        )


def default_processes() -> int:
    """As many as cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class DaskExecutor(Executor):
    """The workers of a running Dask scheduler; SettingError where none answers within seconds.

    A worker that dies loses nothing: the scheduler gives its task to another. Workers need noisescale and
    must see the results folder under the same path.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise SettingError(
                "--executor dask takes a package that is not installed: pip install 'noisescale[dask]'"
            ) from None
        try:
            self._client = Client(address, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise SettingError(
                f"--scheduler {address}: no Dask scheduler answers there ({type(error).__name__}); start one "
                "with `dask scheduler` and workers with `dask worker ADDRESS --nworkers 2 --nthreads 1`"
            ) from error
        self._executor = self._client.get_executor(pure=False)

    @property
    def has_workers(self) -> bool:
        """Whether any worker has joined so far; those that join later take part too."""
        return bool(self._client.scheduler_info()["workers"])

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = self._executor.submit(function, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster, which goes on."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Holds Ctrl-C back from this thread while open."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Ends this process with its parent, even where that is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    # torch's own, on the first forward-mode pass
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
