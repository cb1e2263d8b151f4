"""A problem of the user's own: the function that makes it, found by name and called."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from noisescale.errors import SettingError, own_words
from noisescale.problems.config import FactoryConfig
from noisescale.problems.models import copy_of
from noisescale.problems.problem import SPLITS, Problem, resident, source_of
from noisescale.problems.random_state import preserved_random_state

DIGEST_LENGTH = 16  # of a SHA-256 sum in hexadecimal: 64 bits, in which no two versions collide


def load_problem(name: str) -> Problem:
    """The problem that a function of the user's own makes.

    Args:
        name: "module:factory" or "path/to/file.py:factory". A module is imported as Python would
            from the current directory; the function takes no arguments.

    Raises:
        SettingError: any of that fails, with what went wrong, or the result is no usable Problem.
    """
    factory = _factory(name)
    with _own_failures(name):
        problem = factory()
    if not isinstance(problem, Problem):
        raise SettingError(
            f"problem {name!r} gives a {type(problem).__name__}: "
            "return noisescale.Problem(model=…, loss=…, train=…)"
        )
    return problem


def _factory(name: str) -> Callable[[], object]:
    """The user's function; SettingError where there is none."""
    module_name, _, factory_name = name.rpartition(":")
    if not module_name or not factory_name:
        raise SettingError(f"problem {name!r}: give module:factory or file.py:factory")
    with _own_failures(name):
        module = _import_file(module_name) if module_name.endswith(".py") else _import(module_name)
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
    return FactoryConfig(factory=name, source=hashlib.sha256(content).hexdigest()[:DIGEST_LENGTH])


@contextmanager
def _own_failures(name: str) -> Iterator[None]:
    """Whatever the user's own code raises as a SettingError that names the problem."""
    try:
        yield
    except SettingError:
        raise
    except (Exception, SystemExit) as error:
        raise SettingError(f"problem {name!r} cannot be made: {own_words(error)}") from error


def _import(name: str) -> ModuleType:
    """The module of this name, looked for in the current directory first."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return importlib.import_module(name)


def _import_file(name: str) -> ModuleType:
    """The module that a file holds, which may import what lies beside it."""
    path = Path(name).resolve()
    if not path.is_file():
        raise SettingError(f"problem: there is no file {name}")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(f"_noisescale_problem_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_own_problem(
    config: FactoryConfig, *, seed: int = 0, device: torch.device | str = "cpu"
) -> Problem:
    """The problem that the user's factory makes, its model's random numbers drawn under `seed`.

    Data that the factory itself draws at random are those of seed 0 whatever the seed. Raises
    SettingError as `load_problem` does.
    """
    problem = _with_data_on(device, config)
    model = _made_under(seed, config).model if seed else copy_of(problem.model)
    return replace(problem, model=model.to(device))


@lru_cache(maxsize=1)  # many runs of a process are of one problem
def _with_data_on(device: torch.device | str, config: FactoryConfig) -> Problem:
    """The problem of seed 0, its data on the device, but for Datasets that are read as needed."""
    problem = _made_under(0, config)
    parts: dict[str, Any] = {
        split: resident(source_of(data), device)
        for split in SPLITS
        if (data := getattr(problem, split)) is not None
    }
    return replace(problem, **parts)


def _made_under(seed: int, config: FactoryConfig) -> Problem:
    """The problem that the factory makes under torch's `seed`; no other random state is touched."""
    with preserved_random_state():
        torch.manual_seed(seed)
        return load_problem(config.factory)
