"""What the experiments take: timed at every call, listed by `python -m experiments --list`.

`python -m experiments.durations OUT...` takes what was timed in these folders into
benchmarks/results/durations.csv.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import resource
from datetime import date
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import click
import pandas as pd

from noisescale.training.records.environment import device_name
from noisescale.training.records.folder import read_json, write_atomically, write_json

DURATIONS = Path(__file__).parent / "benchmarks" / "results" / "durations.csv"
KEY = ["experiment", "scale"]
TIME = "time.json"  # in the folder of an experiment's runs
ENDING = 5.0  # seconds that a process is given to end, once its pool is shut down


def timed(command: click.Command) -> click.Command:
    """The command, which adds the processor time of each call to `time.json` beside its runs."""
    compute = command.callback
    assert compute is not None

    @functools.wraps(compute)
    def callback(**options: Any) -> Any:
        before = _processor_seconds()
        try:
            return compute(**options)
        finally:
            for worker in multiprocessing.active_children():  # time counts once they have ended
                worker.join(ENDING)
            scale = options["scale"]
            out = options["out"] or Path("runs") / f"{command.name}-{scale}"
            _add(out, str(command.name), scale, _processor_seconds() - before)

    command.callback = callback
    return command


def _processor_seconds() -> float:
    """Of this process and of those it started that have ended."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    own = sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, who))
    return own + _of_fork_server()


def _of_fork_server() -> float:
    """Of processes that have ended which a fork server started, so that they are its children."""
    server: int | None = getattr(forkserver._forkserver, "_forkserver_pid", None)
    if server is None:
        return 0.0
    # what follows the name in brackets begins with the third field; 16 and 17 are cutime and cstime
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _add(out: Path, name: str, scale: str, seconds: float) -> None:
    """Adds to the record in `out`, where there are runs at all."""
    if out.is_dir():
        before = (read_json(out / TIME) or {}).get("processor_seconds", 0.0)
        record = {
            "experiment": name,
            "scale": scale,
            "processor_seconds": before + seconds,
            "machine": device_name("cpu"),
            "date": date.today().isoformat(),
        }
        write_json(out / TIME, record)


def read_durations() -> pd.DataFrame:
    """A row for each experiment and scale: core minutes, machine, date and source."""
    return pd.read_csv(DURATIONS, comment="#")


def duration(name: str, scale: str) -> str:
    """How long an experiment takes on one core, "not timed" where that is not recorded."""
    recorded = read_durations().set_index(KEY)
    if (name, scale) not in recorded.index:
        return "not timed"
    taken = float(recorded["core_minutes"][name, scale])
    is_estimate = str(recorded["source"][name, scale]).startswith("estimated")
    text = f"{taken:.2g} min" if taken < 100 else f"{taken / 60:.2g} h"
    return f"some {text}" if is_estimate else text


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("outs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def main(outs: tuple[Path, ...]) -> None:
    """Take what was timed in the folders OUTS of experiments into durations.csv."""
    rows = []
    for out in outs:
        record = read_json(out / TIME)
        if record is None:
            raise click.ClickException(
                f"{out} has no {TIME}: compute its runs with python -m experiments"
            )
        rows.append(
            {
                **{name: record[name] for name in [*KEY, "machine", "date"]},
                "core_minutes": record["processor_seconds"] / 60,
                "source": "processor time of its processes",
            }
        )
    table = pd.concat([read_durations(), pd.DataFrame(rows)]).drop_duplicates(KEY, keep="last")
    lines = DURATIONS.read_text().splitlines(keepends=True)
    head = "".join(line for line in lines if line.startswith("#"))
    text = table.sort_values(KEY).to_csv(index=False, float_format="%.3g")
    write_atomically(DURATIONS, (head + text).encode())


if __name__ == "__main__":
    main(prog_name="python -m experiments.durations")
