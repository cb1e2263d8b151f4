"""Committed tables: CSV under a header that says how the numbers came about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
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
Committed = Callable[[str], pd.DataFrame]  # a committed table of the experiment, by its name
DATA = Path(__file__).parent.parent / "paper_figures" / "data"


def analysis(
    name: str,
    tables: Callable[[Runs], dict[str, pd.DataFrame]],
    *,
    help: str,
    out: Path | None = None,
    reuses: str | None = None,
    again: Callable[[Committed], dict[str, pd.DataFrame]] | None = None,
    parts: tuple[str, tuple[str, ...]] | None = None,
    ships: Mapping[str, Path] | None = None,
    version: int | None = None,
) -> click.Command:
    """A command that writes the tables of an experiment's runs, one file for each.

    out: the folder of the tables; None: the figure's, by the name. reuses: the table of
    measurements. Where `tables` does not give it, it is the committed one, and the others' headers
    say how that came about as well. again: for a command without RUNS, makes the others of the
    committed measurements. parts: the column by which measurements fall into parts, and the tables
    of measurements: --add then keeps the committed parts that RUNS lack, so that a long experiment
    may be run part by part, wherever that is. ships: tables that come with the package too, and
    their files there, which are written unless --out says otherwise, with the version in their
    header.
    """

    @click.command(name, help=help)
    @click.argument(
        "runs",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        required=again is None,
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path),
        default=out or DATA / name,
        help="Folder of the tables.",
    )
    def command(runs: Path | None, out: Path, add: bool = False) -> None:
        if add and runs is None:
            raise click.UsageError("--add: give the RUNS that are added")
        made = tables if not add else partial(_added, name, tables, again, parts)
        try:
            paths = (
                _write_again(name, reuses, again, out)
                if runs is None
                else _write_tables(name, made, runs, out, reuses, joint=add)
            )
            for path in paths:
                click.echo(path)
                shipped = (ships or {}).get(path.stem)
                if shipped is not None and path.parent == DATA / name:
                    write_atomically(
                        shipped, f"# version: {version}\n".encode() + path.read_bytes()
                    )
                    click.echo(shipped)
        except (NoisescaleError, OSError) as error:
            raise click.ClickException(str(error)) from error

    if parts is not None:
        column, _ = parts
        what = f"Keep the committed rows of every {column} that RUNS lack."
        command.params.append(click.Option(["--add"], is_flag=True, help=what))
    return command


def _added(
    name: str,
    tables: Callable[[Runs], dict[str, pd.DataFrame]],
    again: Callable[[Committed], dict[str, pd.DataFrame]] | None,
    parts: tuple[str, tuple[str, ...]] | None,
    runs: Runs,
) -> dict[str, pd.DataFrame]:
    """The tables of these runs and of the committed parts that they lack."""
    assert again is not None
    assert parts is not None
    column, measured = parts
    found = tables(runs)
    together = {}
    for table in measured:
        committed, new = read_committed(name, table), found[table]
        kept = committed[~committed[column].isin(new[column])]
        together[table] = pd.concat([kept, new], ignore_index=True)
    return together | again(together.__getitem__)


def _write_tables(
    name: str,
    tables: Callable[[Runs], dict[str, pd.DataFrame]],
    runs: Path,
    out: Path,
    reuses: str | None,
    *,
    joint: bool,
) -> Iterator[Path]:
    """Writes each table of the runs to its file, and gives the file.

    joint: whether committed measurements are among them, so that headers tell of both.
    """
    finished = read_runs(runs)
    by_name = tables(finished)
    command = f"{experiment_command(runs)} && python -m analysis {name} {runs}"
    header = _header(command, [record for _, record in finished])
    if reuses is not None and (joint or reuses not in by_name):
        header = _joint(read_header(DATA / name / f"{reuses}.csv"), header)
    for table_name, table in by_name.items():
        yield write_committed_table(out / f"{table_name}.csv", table, header)


def _write_again(
    name: str,
    reuses: str | None,
    again: Callable[[Committed], dict[str, pd.DataFrame]] | None,
    out: Path,
) -> Iterator[Path]:
    """Writes the tables that are made of a committed one, and gives their files."""
    assert reuses is not None
    assert again is not None
    source = DATA / name / f"{reuses}.csv"
    header = read_header(source)
    header["command"] += f" && python -m analysis {name}"
    for table_name, table in again(lambda table: read_committed(name, table)).items():
        yield write_committed_table(out / f"{table_name}.csv", table, header)


def read_committed(name: str, table: str) -> pd.DataFrame:
    """A committed table of an experiment."""
    return pd.read_csv(DATA / name / f"{table}.csv", comment="#", dtype={"batch_size": str})


def read_header(path: Path) -> dict[str, str]:
    """The header of a committed table: command, commits, machine, dates and seeds of its runs."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    return dict(line.removeprefix("# ").split(": ", 1) for line in lines)


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


def write_committed_table(path: Path, table: pd.DataFrame, header: Mapping[str, str]) -> Path:
    """Writes `table` as CSV under comments that say how it came about; gives the path."""
    lines = "".join(f"# {name}: {value}\n" for name, value in header.items())
    write_atomically(
        path, (lines + table.to_csv(index=False, na_rep="nan", float_format="%.6g")).encode()
    )
    return path


def _header(command: str, records: list[dict[str, Any]]) -> dict[str, str]:
    """How the numbers of these runs came about: command, commits, machine, dates and seeds."""
    environments = [record["environment"] for record in records]
    return {
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


def _joint(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """The header of a table that is made of what two headers describe."""
    return {
        "command": " && ".join(dict.fromkeys([first["command"], second["command"]])),
        "commit": _distinct([*first["commit"].split(", "), *second["commit"].split(", ")]),
        "machine": ", ".join(dict.fromkeys([first["machine"], second["machine"]])),
        "date": _distinct([*first["date"].split(", "), *second["date"].split(", ")]),
        "seeds": _distinct([*first["seeds"].split(", "), *second["seeds"].split(", ")]),
    }


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
