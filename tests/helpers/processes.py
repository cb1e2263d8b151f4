"""What other processes need to know: the tree, the threads, and where ranks meet."""

from __future__ import annotations

import os
import socket

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
