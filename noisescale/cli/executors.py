"""Where a command's runs are carried out: options, and the executor they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from noisescale.cli.options import together
from noisescale.errors import SettingError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.console import Console

Command = TypeVar("Command", bound=Callable[..., Any])


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
            type=click.IntRange(min=1),
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


def open_executor(options: dict[str, Any], console: Console) -> Executor | None:
    """The executor that the options mean; None: local processes, as many as cores."""
    from noisescale.studies.jobs.executors import DaskExecutor, LocalProcesses

    if options["executor"] == "dask":
        executor = DaskExecutor(options["scheduler"])
        if not executor.has_workers:
            console.print(
                f"no workers have joined {options['scheduler']} yet: waiting for them",
                style="yellow",
            )
        return executor
    if options["executor"] == "replicas" or (options["executor"], options["device"]) == (
        "auto",
        "cuda",
    ):
        from noisescale.studies.stability_map.replicas import ReplicaExecutor

        return ReplicaExecutor()
    return None if options["processes"] is None else LocalProcesses(options["processes"])
