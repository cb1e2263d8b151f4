"""Local processes, in which a study's runs are made where no other executor is given."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import (
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait as futures_wait,
)
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from noisescale.errors import NoisescaleError, OwnCodeError, own_place, own_words

# of a task alone whose process dies: memory may be short for a while, a bug stays; the first time,
# in company, another's may have been the fault
ATTEMPTS = 3
# What a run of a study imports, torch among it: the fork server has it before it forks
PRELOADED = "noisescale.studies.stability_map.cell_run"


class _Task(NamedTuple):
    future: Future[Any]
    submit: Callable[[ProcessPoolExecutor], Future[Any]]
    attempt: int  # alone; 0 in company


class LocalProcesses(Executor):
    """Fresh processes of one thread each; one that dies is replaced, and its task tried again.

    They are started as `start_context` says.

    After a death whatever was at work is tried again alone, since it is not known whose fault it
    was: a task that takes its process down three times more ends in an error that says so, and no
    other with it. The processes end with the one that started them, however that ends, and leave
    Ctrl-C to it.
    """

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self._lock = threading.RLock()
        self._waiting: deque[_Task] = deque()
        self._running: list[_Task] = []
        # made for the first task: what is finished already needs no process
        self._pool: ProcessPoolExecutor | None = None
        self._closed = False

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            self._waiting.append(
                _Task(
                    future, lambda pool: pool.submit(with_own_words, function, *args, **kwargs), 0
                )
            )
            self._start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the processes: after all tasks; with `cancel_futures` by killing those at work."""
        if cancel_futures:
            with self._lock:
                self._closed = True
                for task in self._waiting:
                    task.future.cancel()
                self._waiting.clear()
                pool = self._pool
                processes = [] if pool is None else list((pool._processes or {}).values())
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.kill()
        else:
            while wait and (futures := [task.future for task in [*self._running, *self._waiting]]):
                futures_wait(futures)
            if self._pool is not None:
                self._pool.shutdown(wait=wait)

    def _start(self) -> None:
        """Sends tasks to idle processes; one that is tried again only while nothing else runs."""
        while self._waiting and len(self._running) < self.num_processes:
            alone = any(task.attempt > 0 for task in (self._waiting[0], *self._running))
            if alone and self._running:
                return
            task = self._waiting.popleft()
            if task.attempt == 0 and not task.future.set_running_or_notify_cancel():
                continue
            self._running.append(task)
            pool = self._pool = self._pool or self._new_pool()
            with _no_interrupts():  # which processes started meanwhile inherit
                try:
                    inner = task.submit(pool)
                except BrokenProcessPool:  # a process died while idle
                    pool = self._pool = self._new_pool()
                    inner = task.submit(pool)
            inner.add_done_callback(partial(self._done, task, pool))

    def _done(self, task: _Task, pool: ProcessPoolExecutor, inner: Future[Any]) -> None:
        error = None if inner.cancelled() else inner.exception()
        with self._lock:
            self._running.remove(task)
            died = isinstance(error, BrokenProcessPool) and not self._closed
            if died and self._pool is pool:
                self._pool = None
            if died and task.attempt < ATTEMPTS:
                self._waiting.appendleft(task._replace(attempt=task.attempt + 1))
            elif died:
                error = RuntimeError(
                    f"its process died in each of {ATTEMPTS} attempts alone: out of memory, or "
                    "killed"
                )
            if not self._closed:
                self._start()
        if died and task.attempt < ATTEMPTS:
            return
        if inner.cancelled() or error is not None:
            task.future.set_exception(error or CancelledError())
        else:
            task.future.set_result(inner.result())

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self.num_processes,
            mp_context=start_context(),
            initializer=_start_worker,
            initargs=(multiprocessing.get_start_method(allow_none=True), dict(os.environ)),
        )


def start_context() -> BaseContext:
    """How processes are started: forked by a server that has imported torch, or spawned.

    A spawned process imports torch, which takes two seconds of its core; the server, a process of
    its own, does so once for all that this one ever starts. It only imports: it computes nothing
    and has no threads, so that nothing is lost by the fork. Spawned are processes where there is a
    GPU, which must not be forked once it is in use, on other systems than Linux, and where the
    server cannot be started, as where the path of the temporary folder is too long for its socket.
    """
    import torch

    spawn = multiprocessing.get_context("spawn")
    if sys.platform != "linux" or torch.cuda.is_available():
        return spawn
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with _no_interrupts():  # which the server hands on to what it forks
        try:
            forkserver.ensure_running()
        except OSError:
            return spawn
    return context


def with_own_words(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """What the function returns; what the user's own code raises in it is named with its line.

    In the process where it happens, since an exception is sent to another without its traceback.
    """
    try:
        return function(*args, **kwargs)
    except NoisescaleError:
        raise
    except Exception as error:
        if own_place(error) is None:
            raise
        raise OwnCodeError(own_words(error)) from None


def default_processes() -> int:
    """As many as cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def given_or_local(executor: Executor | None) -> Iterator[Executor]:
    """The executor, left open; or local processes, one a core, that end with the block."""
    if executor is not None:
        yield executor
        return
    pool = LocalProcesses(default_processes())
    try:
        yield pool
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise
    pool.shutdown()


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Holds Ctrl-C back from this thread while open."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(start_method: str | None, environment: dict[str, str]) -> None:
    """Ends this process with its parent, even where that is killed, and leaves Ctrl-C to it.

    start_method: of the parent, for processes that this one starts, such as a DataLoader's workers.
    Being spawned itself it would spawn those too, each of which then imports torch: seconds at the
    beginning of every pass over the data, where forking takes hundredths of one. environment: of
    the parent, which may have changed since a fork server was started.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(start_method, force=True)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    # torch's own, on the first forward-mode pass
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
