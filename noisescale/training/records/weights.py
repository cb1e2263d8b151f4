"""Weights from any file of tensors into any model: names matched, prefixes taken off and added."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisescale.errors import CheckpointError
from noisescale.problems.problem import Params
from noisescale.training.records.weight_files import read_weights

WRAPPERS = ("_orig_mod", "module")  # torch.compile's prefix, and that of (Distributed)DataParallel
DEEPEST = 4  # parts of a name that a prefix has at most, as in "module.model.base_model.model."
LISTED = 8  # names in a message, at most: enough to see a pattern, and a screen is not filled


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Sets a model's parameters and buffers to those in a file. Never runs code from it.

    Args:
        model: changed in place; where anything is raised, it is as it was.
        path: a checkpoint of ours or the folder of a run; a state dict; a dict that holds one under
            "state_dict" (Lightning), "model_state_dict", "model" or another name; a .safetensors
            file; an index of several, such as model.safetensors.index.json; or a folder as
            save_pretrained of Hugging Face leaves it. Prefixes "module." and "_orig_mod." are taken
            off, and so is, or is added, any other that makes the names those of the model. A
            parameter under several names takes the weights stored under any of them.

    Raises:
        CheckpointError: where the file cannot be read, or does not fit the model: names and shapes.

    Example:
        >>> import torch
        >>> from noisescale import load_weights
        >>> model = torch.nn.Linear(20, 3)
        >>> torch.save(model.state_dict(), "weights.pt")
        >>> load_weights(torch.nn.Linear(20, 3), "weights.pt")
    """
    path, content = read_weights(path)
    apply_weights(model, content, path=path)


def apply_weights(model: nn.Module, content: Any, *, path: Path) -> None:
    """Sets the model's parameters and buffers to what `read_weights` read."""
    stored: Params = content if isinstance(content, dict) else {**content.params, **content.buffers}
    # a tied parameter under each of its names
    current: Params = dict(model.named_parameters(remove_duplicate=False))
    current |= dict(model.named_buffers(remove_duplicate=False))
    stored = _without_superfluous(_renamed(stored, current, path), current, model)
    names: dict[int, list[str]] = defaultdict(list)  # of each tensor of the model, by id
    for name, tensor in current.items():
        names[id(tensor)].append(name)
    required = model.state_dict().keys()
    given: Params = {}
    problems: list[str] = []
    for name, tensor in current.items():
        same = names[id(tensor)]
        sources = [stored[other] for other in (name, *same) if other in stored]
        if sources:
            given[name] = sources[0]
            problems += _misfits(name, given[name], tensor)
        elif name in required:
            problems.append(f"{name} {tuple(tensor.shape)} is missing")
        if name == same[0] and any(not _equal(sources[0], other) for other in sources[1:]):
            tied = " and ".join(other for other in same if other in stored)
            problems.append(f"{tied} are one tensor of the model and differ there")
    problems += [
        f"{name} {tuple(tensor.shape)} is not the model's"
        for name, tensor in stored.items()
        if name not in current
    ]
    if problems:
        more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:LISTED])}{more}"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            current[name].copy_(tensor)


def _misfits(name: str, stored: Tensor, current: Tensor) -> Iterator[str]:
    """Why a stored tensor cannot be the model's."""
    if stored.shape != current.shape:
        yield f"{name} has shape {tuple(stored.shape)} instead of {tuple(current.shape)}"
    if stored.is_complex() and not current.is_complex():
        yield f"{name} is complex and the model's is real"
    numbers = stored.is_floating_point() or stored.is_complex()
    if not numbers and (current.is_floating_point() or current.is_complex()):
        yield f"{name} holds {stored.dtype}, as quantised weights do, instead of {current.dtype}"


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two stored tensors hold the same numbers, nan as itself."""
    same_shape = one.shape == other.shape
    return same_shape and torch.equal(one.nan_to_num(), other.nan_to_num())


def _without_superfluous(stored: Params, current: Params, model: nn.Module) -> Params:
    """Without what the model itself says older files hold for nothing, such as GPT-2's masks."""
    patterns = [
        pattern
        for module in model.modules()
        for pattern in getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    ]
    return {
        name: tensor
        for name, tensor in stored.items()
        if name in current or not any(re.search(pattern, name) for pattern in patterns)
    }


def _renamed(stored: Params, current: Params, path: Path) -> Params:
    """The stored tensors under the model's names.

    Wrappers' parts of names are taken out, one common prefix is taken off and one is put before, so
    that as many names as can be are the model's, and of those as many shapes. What lies outside a
    prefix that is taken off, such as a Lightning module's metrics, is left out.
    """
    best, most = [("", "")], (0, 0)
    renamed = stored
    for wrappers in ((), WRAPPERS[:1], WRAPPERS):
        plain = {
            ".".join(part for part in name.split(".") if part not in wrappers): tensor
            for name, tensor in stored.items()
        }
        fits = _fits(plain, current)
        if fits and max(fits.values()) > most:
            most, renamed = max(fits.values()), plain
            best = [prefixes for prefixes, fit in fits.items() if fit == most]
    if len(best) > 1 and not renamed.keys() <= current.keys():
        raise _ambiguous(best, path)
    removed, added = ("", "") if ("", "") in best else best[0]
    return {
        added + name.removeprefix(removed): tensor
        for name, tensor in renamed.items()
        if name.startswith(removed)
    }


def _fits(stored: Params, current: Params) -> dict[tuple[str, str], tuple[int, int]]:
    """How many names, and how many of them with their shapes, become the model's by prefixes.

    By the prefix that is taken off the stored names and the one that is put before them.
    """
    by_rest: dict[str, list[tuple[str, Tensor]]] = defaultdict(list)
    for name, tensor in current.items():
        for prefix, rest in _splits(name):
            by_rest[rest].append((prefix, tensor))
    names, shapes = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for name, tensor in stored.items():
        for removed, rest in _splits(name):
            for added, candidate in by_rest.get(rest, ()):
                names[removed, added] += 1
                shapes[removed, added] += tensor.shape == candidate.shape
    return {
        (removed, added): (count, shapes[removed, added])
        for (removed, added), count in names.items()
        # with the same last part they say of fewer names what they say without it
        if not removed or not added or removed.split(".")[-2] != added.split(".")[-2]
    }


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """A name as a prefix of whole parts, none at first, and a rest."""
    parts = name.split(".")
    for length in range(min(DEEPEST + 1, len(parts))):
        prefix = "".join(f"{part}." for part in parts[:length])
        yield prefix, name.removeprefix(prefix)


def _ambiguous(best: list[tuple[str, str]], path: Path) -> CheckpointError:
    """Of weights that fit the model in several ways."""
    removed, added = ({pair[place]: None for pair in best} for place in (0, 1))
    if len(removed) > 1:
        names = ", ".join(map(repr, removed))
        return CheckpointError(
            f"{path} holds the model's weights more than once, under {names}: "
            "save the ones you mean alone"
        )
    names = ", ".join(map(repr, added))
    return CheckpointError(
        f"{path} fits more than one part of the model, under {names}: "
        "save the weights under the names that the whole model has"
    )
