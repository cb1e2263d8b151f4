"""Every benchmark within so many minutes: python -m experiments.benchmarks all --minutes 60."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console

from experiments.resources import Deadline
from noisescale.problems.config import resolve_device

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.py"
RESULTS = Path(__file__).parent / "results"


class Benchmark(NamedTuple):
    """A benchmark's share of the time, about the minutes that all of it takes on two cores.

    on_gpu: whether it measures anything of one.
    """

    minutes: float
    on_gpu: bool = True


# the short ones first: what one leaves of its share goes to those after it
BENCHMARKS = {
    "startup": Benchmark(1, on_gpu=False),
    "monitor": Benchmark(3),
    "monitor_sizes": Benchmark(4),
    "training": Benchmark(6),
    "curvature": Benchmark(12),
    "scaling": Benchmark(6),
    "sweep": Benchmark(22),
    "noise": Benchmark(25),
}
# Of a benchmark's share what it is told to keep to: it ends its last part after that, and Python
# and torch start before it
TOLD = 0.8


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The benchmarks; each is a command of its own too, as experiments.benchmarks.noise."""


@main.command("all")
@click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="For all of them: a benchmark that is not done within its share of them is ended, and "
    "its file has what was measured until then.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=RESULTS,
    help="Folder of the JSON files.  [default: results/]",
)
def run_all(device: str, minutes: float, out: Path) -> None:
    """Run every benchmark, one after the other, and print what came out beside the targets.

    Each writes OUT/NAME-DEVICE.json after every part of it, so that nothing is lost where it is
    ended; what was not measured stands in `left_out`, with the reason. Of the peers, those that
    are installed take part. `python docs/benchmarks.py` makes the page from the files.
    """
    device = resolve_device(device)
    console = Console(stderr=True, highlight=False)
    wanted = {name: each for name, each in BENCHMARKS.items() if each.on_gpu or device == "cpu"}
    whole = Deadline(minutes)
    failed = []
    for number, (name, benchmark) in enumerate(wanted.items()):
        to_come = sum(each.minutes for each in list(wanted.values())[number:])
        left = whole.minutes or 0.0
        share = max(left, 0.0) * benchmark.minutes / to_come
        console.rule(f"{name}, at most {60 * share:.0f} s")
        outcome = run_one(name, device=device, minutes=share, out=out)
        console.print(f"{name}: {outcome}")
        if outcome.startswith("failed"):
            failed.append(name)
    subprocess.run(
        [sys.executable, PAGE, "--summary", out.resolve(), "--device", device], check=True
    )
    if failed:
        raise click.ClickException(f"{', '.join(failed)}: failed, as said above")


def run_one(name: str, *, device: str, minutes: float, out: Path) -> str:
    """Runs a benchmark in a process of its own, which is ended after so many minutes.

    Returns:
        How that went, in words.
    """
    file = f"{name}.json" if name == "startup" else f"{name}-{device}.json"
    command = [sys.executable, "-m", f"experiments.benchmarks.{name}", "--device", device]
    command += ["--minutes", f"{TOLD * minutes:.6g}", "--out", str(out.resolve() / file)]
    # a session of its own: the processes that it starts in its turn end with it
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code = process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        return f"ended after {60 * minutes:.0f} s, its share of the time"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return "done" if code == 0 else f"failed with exit code {code}"


if __name__ == "__main__":
    main(prog_name="python -m experiments.benchmarks")
