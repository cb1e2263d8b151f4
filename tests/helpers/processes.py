"""What other processes need to know: the tree, the threads, and where ranks meet."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.helpers.paths import ROOT


def environment() -> dict[str, str]:
    """This process's environment, with the tree on the path and one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def unmeasured() -> dict[str, str]:
    """This process's environment without a measurement of coverage, whose file may be too large."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def be_rank(rank: int, *, port: int, size: int) -> None:
    """Makes this process one of `size` that meet at a port, as torchrun does; one thread."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": rank, "WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    torch.manual_seed(0)


def torchrun(helper: str, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What two processes of a helper under torchrun leave in a folder, rank by rank.

    Args:
        helper: a module of tests.helpers, run with the folder and the arguments, each rank of which
            leaves RANK.pt there.
        folder: where to.
        *arguments: further ones.
    """
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", f"tests.helpers.{helper}", str(folder), *arguments]
    done = subprocess.run(
        [sys.executable, *start, *words],
        env=environment(),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
