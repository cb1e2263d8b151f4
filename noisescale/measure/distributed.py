"""Work divided over the processes of a torch.distributed group; nothing to do in a single one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, distributed as dist


def rank_and_size() -> tuple[int, int]:
    """The number of this process and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _served(device: torch.device, backends: str) -> torch.device:
    """The device, or one that the group's backends, as "cuda:nccl", serve in its place."""
    kinds = [backend.partition(":")[0] for backend in backends.split(",")]
    return device if device.type in kinds else torch.device(kinds[0])


class Share:
    """This process's part of some pieces of work, and what the processes' parts make together.

    rows: which of the `num_pieces` pieces are its own: consecutive ones, as evenly divided as they
    come; all of them where there are fewer pieces than processes.
    """

    def __init__(self, num_pieces: int) -> None:
        rank, size = rank_and_size()
        self._size = size if num_pieces >= size else 1
        self.rows = slice(0, num_pieces)
        if self._size > 1:
            self.rows = slice(rank * num_pieces // size, (rank + 1) * num_pieces // size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of every process's `values`, of one shape."""
        if self._size > 1:
            reduced = values.to(_served(values.device, dist.get_backend_config()), copy=True)
            dist.all_reduce(reduced)
            return reduced.to(values.device)
        return values

    def gather(self, values: np.ndarray) -> np.ndarray:
        """Every process's rows (n_rank, ...), in the order of the processes."""
        if self._size == 1:
            return values
        gathered: list[np.ndarray] = [values] * self._size
        dist.all_gather_object(gathered, values)
        return np.concatenate(gathered)


@contextmanager
def process_group(*, device: str) -> Iterator[str]:
    """The group that `torchrun` has described in the environment, if any; yields the device.

    device: what each process computes on; "cuda" stands for the GPU of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}"
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
