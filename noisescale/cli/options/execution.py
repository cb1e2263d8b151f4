"""Options that say where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from noisescale.cli.options.forms import FOLDER, Command, together
from noisescale.errors import SettingError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.console import Console

MOST_PROCESSES = 1024  # local ones, each with a torch of its own


def machine_options(command: Command) -> Command:
    """Where to compute and where the data lie."""
    return together(
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="auto: a GPU where there is one.",
        ),
        click.option(
            "--data-dir",
            type=FOLDER,
            help="Where data sets lie.  [default: $NOISESCALE_DATA, else the user cache]",
        ),
    )(command)


def executor_options(*names: str, help: str) -> Callable[[Command], Command]:
    """--executor with these choices, --processes and --scheduler."""
    return together(
        click.option(
            "--executor",
            type=click.Choice(list(names)),
            default=names[0],
            show_default=True,
            help=help,
        ),
        click.option(
            "--processes",
            type=click.IntRange(1, MOST_PROCESSES),
            help="Local processes.  [default: one a core]",
        ),
        click.option(
            "--scheduler", metavar="ADDRESS", help="Of the Dask cluster, such as tcp://HOST:8786."
        ),
    )


def check_executor(options: dict[str, Any]) -> None:
    """SettingError for a scheduler without Dask, or Dask without one."""
    if options["scheduler"] is not None and options["executor"] != "dask":
        raise SettingError("--scheduler goes with --executor dask: give that too")
    if options["executor"] == "dask" and options["scheduler"] is None:
        raise SettingError(
            "--executor dask takes the address of its scheduler: give --scheduler too"
        )


@contextmanager
def open_executor(options: dict[str, Any], console: Console) -> Iterator[Executor | None]:
    """The executor that the options mean, shut down at the end; None: processes, one a core."""
    executor = _executor(options, console)
    try:
        yield executor
    finally:
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)


def _executor(options: dict[str, Any], console: Console) -> Executor | None:
    kind, processes = options["executor"], options["processes"]
    if kind == "dask":
        from noisescale.studies.jobs.dask import DaskExecutor
        from noisescale.training.console import NOTE_STYLE

        cluster = DaskExecutor(options["scheduler"])
        if not cluster.has_workers:
            console.print(
                f"no workers have joined {options['scheduler']} yet: waiting for them",
                style=NOTE_STYLE,
            )
        return cluster
    if kind == "replicas" or (kind == "auto" and options["device"] == "cuda"):
        from noisescale.studies.stability_map.replicas import ReplicaExecutor

        return ReplicaExecutor()
    if processes is None:
        return None
    from noisescale.studies.jobs.local import LocalProcesses

    return LocalProcesses(processes)
