"""One run of a study, as plain data that another process can carry out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from noisescale.problems.build import assemble_problem
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.problems.data.splits import Splits, num_training_examples, splits_of
from noisescale.problems.factory import build_own_problem
from noisescale.problems.problem import (
    Problem,
    num_examples_of,
    source_of,
    units_per_example,
)
from noisescale.problems.sampling import without_fold
from noisescale.training.config import TrainConfig
from noisescale.training.records.weight_files import read_weights
from noisescale.training.records.weights import apply_weights


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a study: all that another process needs to know of it.

    path: its folder. start: the checkpoint it starts from; None: from initialisation under its
    seed. notes: for its record. fold: which of how many parts of the training examples is held out,
    as (0, 5); None: nothing is.
    """

    path: Path
    problem: ProblemConfig | FactoryConfig
    training: TrainConfig
    start: Path | None = None
    device: str = "cpu"
    data_dir: Path | str | None = None
    notes: tuple[str, ...] = ()
    fold: tuple[int, int] | None = None


def cell_record(cell: Cell) -> dict[str, Any]:
    """The content of the cell's config.json."""
    record = {
        "problem": cell.problem.to_dict(),
        "training": cell.training.to_dict(),
        "notes": list(cell.notes),
    }
    return record if cell.fold is None else record | {"fold": list(cell.fold)}


def cell_problem(cell: Cell) -> Problem:
    """The cell's problem, its model where the run starts; a process reads the data once."""
    if isinstance(cell.problem, FactoryConfig):
        problem = build_own_problem(cell.problem, seed=cell.training.seed, device=cell.device)
    else:
        splits = _splits(cell.problem, cell.data_dir, cell.device)
        problem = assemble_problem(cell.problem, splits, seed=cell.training.seed)
    if cell.start is not None:
        path, content = read_weights(cell.start, device=cell.device)
        apply_weights(problem.model, content, path=path)
    return problem if cell.fold is None else without_fold(problem, *cell.fold)


def count_examples(problem: ProblemConfig | FactoryConfig) -> int:
    """How many training examples a problem has.

    Args:
        problem: of ours, whose data need not be there, unless they are a file of the user's; or
            the user's own, which is made for it.
    """
    if isinstance(problem, ProblemConfig):
        return num_training_examples(problem)
    return num_examples_of(build_own_problem(problem).train)


def count_units(problem: ProblemConfig | FactoryConfig) -> float | None:
    """The units, such as tokens, that a training example has on average; None where not told.

    Args:
        problem: as for `count_examples`.
    """
    if isinstance(problem, ProblemConfig):
        return problem.units_per_example
    own = build_own_problem(problem)
    return units_per_example(own.units, source_of(own.train))


@lru_cache(maxsize=1)
def _splits(config: ProblemConfig, data_dir: Path | str | None, device: str) -> Splits:
    return splits_of(config, data_dir=data_dir, device=device)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes with one thread of the CPU while open."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
