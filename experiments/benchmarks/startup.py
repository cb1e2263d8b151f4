"""What it costs to start: the package, the command line, and a worker of a study.

    python -m experiments.benchmarks.startup

CPU seconds of a fresh process, user and system: wall time on a shared machine is mostly that of
others. A worker cannot start faster than torch does, nor anything faster than Python, so each is
compared with the bare process that it contains: medians over interleaved rounds, files in the page
cache.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import click
from rich.console import Console
from rich.progress import track

from experiments.resources import NEVER, Deadline, Record

RESULTS = Path(__file__).parent / "results"


class Start(NamedTuple):
    """A process to start, the bare one that it contains, and the seconds that it may add."""

    arguments: tuple[str, ...]
    bare: str
    target: float


BARE = {"python": ("-c", "pass"), "torch": ("-c", "import torch")}
STARTS = {
    "import noisescale": Start(("-c", "import noisescale"), "python", 0.05),
    "noisescale --help": Start(("-m", "noisescale", "--help"), "python", 0.2),
    "worker": Start(("-c", "import noisescale.studies.jobs.cell"), "torch", 0.5),
}


def cpu_seconds(*arguments: str) -> float:
    """User and system seconds of a Python process with these arguments, which must succeed."""
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # waited for here, not by Popen
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return usage.ru_utime + usage.ru_stime


def measure(*, rounds: int, deadline: Deadline = NEVER) -> dict[str, Any]:
    """Median seconds of each process, and what those of `STARTS` add to their bare ones."""
    processes = BARE | {name: start.arguments for name, start in STARTS.items()}
    for arguments in processes.values():
        cpu_seconds(*arguments)  # once in vain: bytecode is written, files are read into memory
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    wanted = deadline.rounds(rounds)
    for _ in track(wanted, total=rounds, console=Console(stderr=True), transient=True):
        for name, arguments in processes.items():
            seconds[name].append(cpu_seconds(*arguments))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    added = {
        name: {
            "bare": start.bare,
            "seconds": medians[name] - medians[start.bare],
            "target": start.target,
        }
        for name, start in STARTS.items()
    }
    return {"rounds": len(seconds["python"]), "cpu_seconds": medians, "added": added}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(min=1), default=11, show_default=True)
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True)
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=RESULTS / "startup.json",
    help="JSON file.  [default: results/startup.json]",
)
def main(rounds: int, device: str, minutes: float | None, out: Path) -> None:
    """Measure how long processes take to start, and print and write it."""
    record = Record(out, device, minutes=minutes)
    parts = {"results": lambda deadline: measure(rounds=rounds, deadline=deadline)}
    record.measure(parts, Console(stderr=True, highlight=False))
    results = record.content["results"]
    for name, row in results["added"].items():
        click.echo(
            f"{name:18} {results['cpu_seconds'][name]:6.3f} s of CPU, {row['seconds']:.3f} more "
            f"than bare {row['bare']} (target {row['target']:g})"
        )


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.startup")
