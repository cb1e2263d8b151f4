"""Seconds of the two studies' default commands, all of them: what a new user waits for.

    python -m experiments.benchmarks.studies

The limit. Of `sweep-lr` on two cores about half is training, a third the simulation of linearised
SGD, which --no-predict leaves out. Of `critical-batch` two fifths are training, nearly all of it
at the ends of the batch sizes, a fifth looks at the loss on the way, and a third the noise scale
along three runs, which --no-noise leaves out and which keep two cores busy for three quarters of
their time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from experiments.resources import NEVER, Deadline, LeftOut, Part, Record
from noisescale.training.records.folder import SUMMARY, finished_runs

RESULTS = Path(__file__).parent / "results"
TARGETS = {"sweep-lr": 240.0, "critical-batch": 300.0}  # seconds on two cores


def measure(command: str, deadline: Deadline = NEVER) -> dict[str, Any]:
    """Seconds of a command with its defaults in an empty folder, and the runs that it made."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "noisescale", command, "--out", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            code = process.wait(None if deadline.minutes is None else 60 * deadline.minutes)
        except subprocess.TimeoutExpired as late:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise LeftOut(f"it takes longer than the {late.timeout:.0f} s left for it") from late
        seconds = time.monotonic() - started
        if code != 0:
            raise subprocess.CalledProcessError(code, process.args)
        assert (Path(folder) / SUMMARY).exists()
        runs = len(finished_runs(Path(folder) / "cells"))
    return {"command": command, "seconds": seconds, "runs": runs, "target": TARGETS[command]}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--device", type=click.Choice(["cpu"]), default="cpu", show_default=True)
@click.option("--minutes", type=float, help="For all of it.  [default: as many as it takes]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=RESULTS / "studies-cpu.json",
    help="JSON file.  [default: results/studies-cpu.json]",
)
def main(device: str, minutes: float | None, out: Path) -> None:
    """Measure how long the studies' default commands take, and print and write it."""
    record = Record(out, device, minutes=minutes, cores=os.cpu_count())
    parts: dict[str, Part] = {f"commands/+{name}": partial(measure, name) for name in TARGETS}
    record.measure(parts, Console(stderr=True, highlight=False))
    for row in record.content.get("commands", []):
        click.echo(
            f"noisescale {row['command']:15} {row['seconds']:5.0f} s for {row['runs']} runs "
            f"(target {row['target']:.0f})"
        )


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks.studies")
