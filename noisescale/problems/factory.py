"""A problem of the user's own: the function that makes it, found by name and called."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from noisescale.errors import SettingError, own_words
from noisescale.problems.config import AnyConfig, FactoryConfig, ObjectConfig
from noisescale.problems.models import copy_of
from noisescale.problems.problem import (
    SPLITS,
    Examples,
    Problem,
    Tree,
    check_not_lazy,
    resident,
    source_of,
)
from noisescale.problems.random_state import preserved_random_state, seed_global_states
from noisescale.problems.sampling import independent_seed

DIGESTED_ITEMS = 32  # of a Dataset, whose items may take long to read
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
DIGEST_LENGTH = 16  # of a SHA-256 sum in hexadecimal: 64 bits, in which no two versions collide


# Where the initial parameters of another seed come from, see `seeding_of`
Seeding = Literal["drawn", "reseeded", "fixed"]
SEEDING_NOTES: dict[Seeding, str] = {
    "reseeded": (
        "{factory} seeds torch itself, so that every seed would have one initialisation: for seeds "
        "above 0 it gets another seed in the place of its own; an argument named seed in its "
        "signature is given the run's"
    ),
    "fixed": (
        "{factory} makes the same initial parameters for every seed, as where it loads them or "
        "draws from a generator of its own: seeds differ in the order of the examples alone, and "
        "so do intervals and p values over seeds; an argument named seed in its signature is given "
        "the run's"
    ),
}


def load_problem(name: str, *, seed: int = 0) -> Problem:
    """The problem that a function of the user's own makes, no random state touched.

    Args:
        name: "module:factory" or "path/to/file.py:factory". A module is imported as Python would
            from the current directory. The function takes no arguments that have no default, but
            for one named seed. What it prints goes to stderr.
        seed: what a parameter of that name is given, and what torch, numpy's global state and
            Python's draw from; of numpy and Python its last 32 bits.

    Raises:
        SettingError: any of that fails, with what went wrong, or the result is no usable Problem.
    """
    with preserved_random_state():
        _seed_all(seed)
        factory = _factory(name)  # whose module may draw and seed as well
        _seed_all(seed)
        arguments = _arguments(name, factory, seed)
        with _own_failures(name), redirect_stdout(sys.stderr):
            problem = factory(**arguments)
    if not isinstance(problem, Problem):
        kind = "None" if problem is None else f"a {type(problem).__name__}"
        raise SettingError(
            f"problem {name!r} gives {kind}: return noisescale.Problem(model=…, loss=…, train=…)"
        )
    return problem


def _seed_all(seed: int) -> None:
    """Seeds torch, numpy and Python, of which numpy takes 32 bits."""
    seed_global_states(seed % 2**32)
    torch.manual_seed(seed)


def _arguments(name: str, factory: Callable[..., object], seed: int) -> dict[str, int]:
    """What the user's function is called with; SettingError where it wants more than a seed."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # of a callable that does not tell
        return {}
    by_position = (inspect.Parameter.POSITIONAL_ONLY, *_VARIADIC)
    takes_seed = "seed" in parameters and parameters["seed"].kind not in by_position
    wanted = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in _VARIADIC
        and not (takes_seed and parameter.name == "seed")
    ]
    if wanted:
        raise SettingError(
            f"problem {name!r} takes {', '.join(wanted)}, which nobody gives it: give "
            f"{'them' if len(wanted) > 1 else 'it'} a default, or name a function that takes "
            "nothing, or seed alone"
        )
    return {"seed": seed} if takes_seed else {}


def _factory(name: str) -> Callable[..., object]:
    """The user's function; SettingError where there is none."""
    return _module_and_factory(name)[1]


def _module_and_factory(name: str) -> tuple[ModuleType, Callable[..., object]]:
    """The user's function and the module it is named in; SettingError where there is none."""
    module_name, _, factory_name = name.rpartition(":")
    if not module_name or not factory_name:
        raise SettingError(f"problem {name!r}: give module:factory or file.py:factory")
    with _own_failures(name), redirect_stdout(sys.stderr):
        module = _import_file(module_name) if module_name.endswith(".py") else _import(module_name)
    factory: object = getattr(module, factory_name, None)
    if not callable(factory):
        raise SettingError(f"problem {name!r}: {module.__file__} has no function {factory_name}")
    return module, factory


def factory_config(name: str) -> FactoryConfig:
    """The configuration of the problem that `load_problem(name)` gives, as its source is now.

    SettingError as there, except that the function is not called.
    """
    module, factory = _module_and_factory(name)
    try:
        source = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:  # a callable that is no function
        source = module.__file__
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
    digest = hashlib.sha256(str(path).encode()).hexdigest()  # two files may have one stem
    known_as = f"_noisescale_problem_{path.stem}_{digest[:8]}"
    spec = importlib.util.spec_from_file_location(known_as, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # where dataclasses and pickle look for the module of a class
    sys.modules[known_as] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[known_as]
        raise
    return module


def build_own_problem(
    config: FactoryConfig, *, seed: int = 0, device: torch.device | str = "cpu"
) -> Problem:
    """The problem that the user's factory makes, its model's random numbers drawn under `seed`.

    Where the factory seeds torch, numpy or Python itself, seeds above 0 get another seed in the
    place of its own, see `seeding_of`. Data that the factory itself draws at random are those of
    seed 0 whatever the seed. Raises SettingError as `load_problem` does.
    """
    problem = _with_data_on(device, config)
    model = _other_model(config, seed) if seed else copy_of(problem.model)
    return replace(problem, model=model.to(device), config=config)


def seeding_notes(config: AnyConfig, *, num_seeds: int) -> tuple[str, ...]:
    """What is to be said of several seeds of a problem: nothing, if each has its own start.

    Args:
        config: of the problem; only a factory's own code is looked at.
        num_seeds: how many seeds, of which 0 is the first.
    """
    if num_seeds < 2 or not isinstance(config, FactoryConfig):
        return ()
    note = SEEDING_NOTES.get(seeding_of(config))
    return () if note is None else (note.format(factory=config.factory),)


@lru_cache(maxsize=8)
def seeding_of(config: FactoryConfig) -> Seeding:
    """Where the initial parameters of other seeds than 0 come from, by building two and comparing.

    Returns:
        "drawn" where torch's seed, or the argument named seed, changes them. "reseeded" where the
        factory sets a seed of its own, in whose place another then changes them. "fixed" where that
        does not either, as where they are loaded from a file.
    """
    first = load_problem(config.factory).model
    if _differ(first, load_problem(config.factory, seed=1).model):
        return "drawn"
    return "reseeded" if _differ(first, _reseeded(config, 1)) else "fixed"


def _other_model(config: FactoryConfig, seed: int) -> nn.Module:
    """The model under a seed above 0."""
    if seeding_of(config) == "reseeded":
        return _reseeded(config, seed)
    return load_problem(config.factory, seed=seed).model


def _reseeded(config: FactoryConfig, seed: int) -> nn.Module:
    """The model whose factory's own seeds have become others, one for each `seed`."""
    with preserved_random_state(), _own_seeds_exchanged(seed):
        return load_problem(config.factory, seed=seed).model


@contextmanager
def _own_seeds_exchanged(seed: int) -> Iterator[None]:
    """While open, torch, numpy and Python take another seed for each that they are given."""
    seeders = [
        (module, name, getattr(module, name))
        for module, name in (
            (torch, "manual_seed"),
            (torch.random, "manual_seed"),
            (numpy.random, "seed"),
            (random, "seed"),
        )
    ]

    def exchanged(seeder: Callable[..., Any], *given: Any, **named: Any) -> Any:
        if not given and not named:  # from the clock
            return seeder()
        return seeder(independent_seed(repr((given, named)), seed) % 2**32)  # as numpy takes

    for module, name, seeder in seeders:
        setattr(module, name, partial(exchanged, seeder))
    try:
        yield
    finally:
        for module, name, seeder in seeders:
            setattr(module, name, seeder)


def _differ(model: nn.Module, other: nn.Module) -> bool:
    """Whether the parameters of two builds of a model are not the same."""
    pairs = zip(model.parameters(), other.parameters(), strict=False)
    return any(not torch.equal(one, another) for one, another in pairs)


@lru_cache(maxsize=1)  # many runs of a process are of one problem
def _with_data_on(device: torch.device | str, config: FactoryConfig) -> Problem:
    """The problem of seed 0, its data on the device, but for Datasets that are read as needed."""
    return with_data_on(device, load_problem(config.factory))


def with_data_on(device: torch.device | str, problem: Problem) -> Problem:
    """The problem with its data on a device, but for Datasets that are read as needed.

    Args:
        device: where to.
        problem: its model stays where it is.
    """
    parts: dict[str, Any] = {
        split: resident(source_of(data), device)
        for split in SPLITS
        if (data := getattr(problem, split)) is not None
    }
    return replace(problem, **parts)


def object_config(problem: Problem) -> ObjectConfig:
    """What can be told of a problem given as an object: names, and a digest.

    The digest is of its tensors, of the model's layers as they print, and of what is trained.

    Args:
        problem: of whose Datasets a few items are read; in tensors every number counts.
    """
    digest = hashlib.sha256()

    def add(label: str, tree: Tree) -> None:
        for leaf in tree_leaves(tree):
            values = leaf.detach().cpu().contiguous()
            digest.update(f"{label} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())

    check_not_lazy(problem.model)
    for name, tensor in (*problem.model.named_parameters(), *problem.model.named_buffers()):
        add(name, tensor)
    trained = [param.requires_grad for param in problem.model.parameters()]
    digest.update(f"{problem.model!r} {trained}".encode())
    for split in SPLITS:
        if (data := getattr(problem, split)) is not None:
            source = source_of(data)
            digest.update(f"{split} {source.num_examples}".encode())
            part = source if isinstance(source, Examples) else source.part(slice(DIGESTED_ITEMS))
            add(split, part)
    digest.update(_name_of(problem.weights).encode())
    if isinstance(loss := problem.loss, nn.Module):
        for name, tensor in (*loss.named_parameters(), *loss.named_buffers()):
            add(f"loss.{name}", tensor)
        settings = {  # such as label_smoothing, of which torch's own repr says nothing
            name: value
            for name, value in sorted(vars(loss).items())
            if isinstance(value, int | float | str) and name != "training"
        }
        digest.update(f"{loss!r} {settings}".encode())
    return ObjectConfig(
        model=type(problem.model).__name__,
        loss=_name_of(problem.loss),
        digest=digest.hexdigest()[:DIGEST_LENGTH],
    )


def _name_of(function: object) -> str:
    """A function's name, or its class's."""
    return getattr(function, "__qualname__", None) or type(function).__qualname__
