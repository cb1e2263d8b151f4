"""A learning problem: a model, a loss per example and the examples."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from noisescale.config import ProblemConfig
from noisescale.errors import SettingError

Params = dict[str, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]
MatVec = Callable[[Tensor], Tensor]

SPLITS = ("train", "validation", "test")


class Examples(NamedTuple):
    """Inputs (N, *F) and targets (N, ...), on one device."""

    inputs: Tensor
    targets: Tensor

    @property
    def num_examples(self) -> int:
        return len(self.targets)

    def part(self, rows: slice | Tensor) -> Examples:
        """The examples at these rows."""
        return Examples(self.inputs[rows], self.targets[rows])


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is trained and measured.

    model: maps inputs (B, *F) to outputs (B, ...), row by row unless it normalises over the batch.
    loss: outputs (B, ...), targets (B, ...) -> (B,), one loss per example, unreduced.
    train, validation, test: examples on the model's device.
    config: how the problem was built, where it was built from a ProblemConfig.
    """

    model: nn.Module
    loss: LossFn
    train: Examples | Dataset[tuple[Tensor, Tensor]]
    validation: Examples | Dataset[tuple[Tensor, Tensor]] | None = None
    test: Examples | Dataset[tuple[Tensor, Tensor]] | None = None
    config: ProblemConfig | None = None


def load_problem(name: str) -> Problem:
    """The problem that a function of the user's own makes: "module:factory" or "path/to/file.py:factory".

    The module is imported as Python would from the current directory; the function takes no arguments.
    SettingError, with what went wrong, where any of that fails or what comes back is no Problem.
    """
    module_name, _, factory_name = name.rpartition(":")
    if not module_name or not factory_name:
        raise SettingError(f"problem {name!r}: give module:factory or file.py:factory")
    sys.path.insert(0, str(Path.cwd()))
    try:
        if module_name.endswith(".py"):
            sys.path.insert(0, str(Path(module_name).resolve().parent))
            module_name = Path(module_name).stem
        module = importlib.import_module(module_name)
        factory = getattr(module, factory_name, None)
        if not callable(factory):
            raise SettingError(f"problem {name!r}: {module.__file__} has no function {factory_name}")
        problem = factory()
    except SettingError:
        raise
    except Exception as error:  # whatever a module of the user's own raises
        raise SettingError(f"problem {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(problem, Problem):
        raise SettingError(
            f"problem {name!r} gives a {type(problem).__name__}: "
            "return noisescale.Problem(model=…, loss=…, train=…)"
        )
    return problem


def as_examples(data: Examples | Dataset[tuple[Tensor, Tensor]]) -> Examples:
    """All of `data` as one pair of tensors; Examples come back as they are.

    A Dataset's items must be pairs (input, target) of equal shapes throughout.
    """
    if isinstance(data, Examples):
        return data
    # a generator of its own, since a DataLoader otherwise draws a seed from the global random state
    whole = DataLoader(data, batch_size=len(cast(Sized, data)), generator=torch.Generator())
    inputs, targets = next(iter(whole))
    return Examples(inputs, targets)


class Selection(NamedTuple):
    """A random subset of a split: its examples, their indices (n,) in it, and how many it has in all."""

    examples: Examples
    indices: Tensor
    population_size: int


def select(
    problem: Problem,
    *,
    split: str = "train",
    num_examples: int | None = None,
    generator: torch.Generator | None = None,
) -> Selection:
    """So many of the split's examples at random, in random order; None: all of them, in theirs.

    Random, never the first n: the order of a data set is seldom exchangeable. generator: on the CPU; None:
    seed 0. Of a Dataset only the chosen items are read. SettingError for a split that the problem lacks and
    for a number it does not have.
    """
    data = split_data(problem, split)
    population = data.num_examples if isinstance(data, Examples) else len(cast(Sized, data))
    if num_examples is None or num_examples == population:
        return Selection(as_examples(data), torch.arange(population), population)
    if not 1 <= num_examples <= population:
        raise SettingError(
            f"num examples {num_examples}: the {split} split has {population}; give 1 to {population}"
        )
    generator = generator or torch.Generator().manual_seed(0)
    indices = torch.randperm(population, generator=generator)[:num_examples]
    return Selection(part_of(data, indices), indices, population)


def part_of(data: Examples | Dataset[tuple[Tensor, Tensor]], indices: Tensor) -> Examples:
    """The examples at these indices (n,), on the CPU; of a Dataset only they are read."""
    if isinstance(data, Examples):
        return data.part(indices.to(data.targets.device))
    return as_examples(Subset(data, indices.tolist()))


def split_data(problem: Problem, split: str) -> Examples | Dataset[tuple[Tensor, Tensor]]:
    """The data of a split; SettingError for one that the problem lacks."""
    present = [name for name in SPLITS if getattr(problem, name) is not None]
    if split not in present:
        raise SettingError(f"split {split!r}: this problem has {', '.join(present)}")
    data: Examples | Dataset[tuple[Tensor, Tensor]] = getattr(problem, split)
    return data
