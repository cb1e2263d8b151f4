"""A learning problem: a model, a loss per example and the examples."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Sized
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from noisescale.errors import DataError, SettingError
from noisescale.problems.config import FactoryConfig, ProblemConfig

Params = dict[str, Tensor]
LossFn = Callable[[Tensor, Tensor], Tensor]
MatVec = Callable[[Tensor], Tensor]

SPLITS = ("train", "validation", "test")
PAIRS = "the items of a Dataset must be pairs (input, target) of tensors, of equal shapes throughout"


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

    A module is imported as Python would from the current directory; the function takes no arguments.
    SettingError, with what went wrong, where any of that fails or what comes back is no usable Problem.
    """
    factory = _factory(name)
    try:
        problem = factory()
    except SettingError:
        raise
    except (Exception, SystemExit) as error:  # whatever a function of the user's own raises
        raise SettingError(f"problem {name!r} cannot be made: {type(error).__name__}: {error}") from error
    if not isinstance(problem, Problem):
        raise SettingError(
            f"problem {name!r} gives a {type(problem).__name__}: "
            "return noisescale.Problem(model=…, loss=…, train=…)"
        )
    if not isinstance(problem.model, nn.Module) or not callable(problem.loss):
        raise SettingError(f"problem {name!r}: its model must be a torch.nn.Module and its loss a function")
    return problem


def _factory(name: str) -> Callable[[], object]:
    """The user's function; SettingError where there is none."""
    module_name, _, factory_name = name.rpartition(":")
    if not module_name or not factory_name:
        raise SettingError(f"problem {name!r}: give module:factory or file.py:factory")
    try:
        module = _import_file(module_name) if module_name.endswith(".py") else _import(module_name)
    except SettingError:
        raise
    except (Exception, SystemExit) as error:  # whatever a module of the user's own raises
        raise SettingError(f"problem {name!r} cannot be made: {type(error).__name__}: {error}") from error
    factory: object = getattr(module, factory_name, None)
    if not callable(factory):
        raise SettingError(f"problem {name!r}: {module.__file__} has no function {factory_name}")
    return factory


def factory_config(name: str) -> FactoryConfig:
    """The configuration of the problem that `load_problem(name)` gives, as its source is now.

    SettingError as there, except that the function is not called.
    """
    factory = _factory(name)
    try:
        source = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:  # a callable that is no function
        source = inspect.getsourcefile(type(factory))
    content = Path(source).read_bytes() if source is not None else b""
    return FactoryConfig(factory=name, source=hashlib.sha256(content).hexdigest()[:16])


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _import_file(name: str) -> ModuleType:
    path = Path(name).resolve()
    if not path.is_file():
        raise SettingError(f"problem: there is no file {name}")
    if str(path.parent) not in sys.path:  # for what it imports from beside it
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"_noisescale_problem_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def as_examples(data: Examples | Dataset[tuple[Tensor, Tensor]]) -> Examples:
    """All of `data` as one pair of tensors; Examples come back as they are.

    A Dataset's items must be pairs (input, target) of equal shapes throughout.
    """
    if isinstance(data, Examples):
        return data
    # a generator of its own, since a DataLoader otherwise draws a seed from the global random state
    whole = DataLoader(data, batch_size=_length(data), generator=torch.Generator())
    try:
        inputs, targets = next(iter(whole))
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DataError(f"{PAIRS}: {error}") from error
    if not isinstance(inputs, Tensor) or not isinstance(targets, Tensor):
        raise DataError(f"{PAIRS}: the first gives {type(inputs).__name__} and {type(targets).__name__}")
    return Examples(inputs, targets)


def _length(data: Examples | Dataset[tuple[Tensor, Tensor]]) -> int:
    """How many examples there are; SettingError for what is neither Examples nor a map-style Dataset."""
    if isinstance(data, Examples):
        if len(data.inputs) != len(data.targets):
            raise SettingError(
                f"{len(data.inputs)} inputs but {len(data.targets)} targets: give as many of both"
            )
        return len(data.targets)
    is_map_style = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, DataLoader | tuple | list) or not is_map_style:
        raise SettingError(
            f"data of type {type(data).__name__}: give noisescale.Examples or a map-style torch Dataset"
        )
    return len(cast(Sized, data))


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
    population = _length(data)
    if num_examples is not None and not isinstance(num_examples, int):
        raise SettingError(f"num examples {num_examples!r}: give a whole number")
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
