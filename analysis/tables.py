"""Committed tables: CSV under a header that says how the numbers came about."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pandas as pd

from noisescale.errors import NoisescaleError, RunFolderError
from noisescale.training.records.folder import (
    CONFIG,
    SUMMARY,
    experiment_command,
    finished_runs,
    read_json,
    write_atomically,
)

Runs = list[tuple[Path, dict[str, Any]]]  # folder and record of each
DATA = Path(__file__).parent.parent / "paper_figures" / "data"


def analysis(
    name: str,
    tables: Callable[[Runs], dict[str, pd.DataFrame]],
    *,
    help: str,
    out: Path | None = None,
) -> click.Command:
    """A command that writes the tables of an experiment's runs, one file for each.

    out: the folder of the tables; None: the figure's, by the name.
    """

    @click.command(name, help=help)
    @click.argument("runs", type=click.Path(path_type=Path, exists=True, file_okay=False))
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=out or DATA / name,
        help="Folder of the tables.",
    )
    def command(runs: Path, out: Path) -> None:
        try:
            for path in _write_tables(name, tables, runs, out):
                click.echo(path)
        except (NoisescaleError, OSError) as error:
            raise click.ClickException(str(error)) from error

    return command


def _write_tables(
    name: str, tables: Callable[[Runs], dict[str, pd.DataFrame]], runs: Path, out: Path
) -> Iterator[Path]:
    """Writes each table of the runs to its file, and gives the file."""
    finished = read_runs(runs)
    made_by = f"{experiment_command(runs)} && python -m analysis {name} {runs}"
    for table_name, table in tables(finished).items():
        path = out / f"{table_name}.csv"
        write_committed_table(
            path, table, command=made_by, records=[record for _, record in finished]
        )
        yield path


def read_runs(root: Path) -> Runs:
    """Folder and record of every finished run below `root`: its configuration and its summary."""
    folders = [
        folder for folder in finished_runs(root) if (folder / CONFIG).exists()
    ]  # a sweep has none
    if not folders:
        raise RunFolderError(
            f"{root} has no finished runs: compute them with python -m experiments"
        )
    return [
        (folder, {**_fields(read_json(folder / CONFIG)), **(read_json(folder / SUMMARY) or {})})
        for folder in folders
    ]


def write_committed_table(
    path: Path, table: pd.DataFrame, *, command: str, records: list[dict[str, Any]]
) -> None:
    """`table` as CSV under comments: command, commits, machine, dates and seeds of its runs."""
    environments = [record["environment"] for record in records]
    header = {
        "command": command,
        "commit": _distinct(environment["commit"] for environment in environments),
        "machine": _distinct(
            f"{environment['device']}, {environment['threads']} threads a run, "
            f"torch {environment['torch']}"
            for environment in environments
        ),
        "date": _distinct(record["finished"][:10] for record in records),
        "seeds": _distinct(record["seed"] for record in records),
    }
    lines = "".join(f"# {name}: {value}\n" for name, value in header.items())
    write_atomically(
        path, (lines + table.to_csv(index=False, na_rep="nan", float_format="%.6g")).encode()
    )


def mean_and_std(grouped: Any, columns: list[str]) -> pd.DataFrame:
    """Mean and standard deviation (1/(n − 1)) over a group's seeds; nan if any is not finite."""
    means = grouped[columns].agg(lambda values: values.mean(skipna=False))
    spreads = grouped[columns].agg(lambda values: values.std(skipna=False)).add_suffix("_std")
    table = means.join(spreads).join(grouped["seed"].nunique().rename("num_seeds"))
    return pd.DataFrame(table.reset_index())


def _fields(config: dict[str, Any] | None) -> dict[str, Any]:
    return {} if config is None else {**config["problem"], **config["training"]}


def _distinct(values: Any) -> str:
    return ", ".join(sorted({str(value) for value in values}))
