"""An existing Dask cluster as the place of a study's runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from noisescale.errors import SettingError
from noisescale.studies.jobs.local import with_own_words

CONNECT_SECONDS = 5  # a scheduler that is there answers within one


class DaskExecutor(Executor):
    """The workers of a running Dask scheduler; SettingError where none answers within seconds.

    A worker that dies loses nothing: the scheduler gives its task to another. Workers need
    noisescale and must see the results folder under the same path.
    """

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError:
            raise SettingError(
                "--executor dask takes a package that is not installed: "
                "pip install 'noisescale[dask]'"
            ) from None
        try:
            self._client = Client(address, timeout=CONNECT_SECONDS)
        except (OSError, ValueError) as error:
            raise SettingError(
                f"--scheduler {address}: no Dask scheduler answers there "
                f"({type(error).__name__}); start one with `dask scheduler` and workers with "
                "`dask worker ADDRESS --nworkers 2 --nthreads 1`"
            ) from error
        self._executor = self._client.get_executor(pure=False)

    @property
    def has_workers(self) -> bool:
        """Whether any worker has joined so far; those that join later take part too."""
        return bool(self._client.scheduler_info()["workers"])

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = self._executor.submit(with_own_words, function, *args, **kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster, which goes on."""
        self._executor.shutdown(wait=wait and not cancel_futures)
        self._client.close()
