"""Weights from any file of tensors into any model: names matched, wrappers' prefixes removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisescale.errors import CheckpointError
from noisescale.problems.problem import Params
from noisescale.training.records.checkpoint import is_checkpoint, parse_checkpoint, read_tensors

WRAPPED = ("state_dict", "model_state_dict", "model")  # where Lightning and others keep theirs
WRAPPERS = ("_orig_mod", "module")  # torch.compile's prefix, and that of (Distributed)DataParallel
LISTED = 8  # names in a message, at most: enough to see a pattern, and a screen is not filled


def load_weights(model: nn.Module, path: Path | str) -> None:
    """Sets a model's parameters and buffers to those in a file. Never runs code from it.

    Args:
        model: changed in place; where anything is raised, it is as it was.
        path: a checkpoint of ours or the folder of a run; a state dict; a dict that holds one under
            "state_dict" (Lightning), "model_state_dict" or "model"; or a .safetensors file.
            Prefixes "module." and "_orig_mod." are removed, and any other that all the model's
            names have there.

    Raises:
        CheckpointError: where the file cannot be read, or does not fit the model: names and shapes.
    """
    path, content = read_weights(path)
    apply_weights(model, content, path=path)


def read_weights(path: Path | str, *, device: torch.device | str = "cpu") -> tuple[Path, Any]:
    """What a file holds, on `device`: a Checkpoint of ours or a state dict, and the file."""
    path = Path(path)
    if path.suffix == ".safetensors":
        return path, _read_safetensors(path, device)
    path, content = read_tensors(path, device=device)
    if is_checkpoint(content):
        return path, parse_checkpoint(path, content)
    for key in WRAPPED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not any(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CheckpointError(f"{path} holds no state dict: no tensors by name")
    return path, {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def apply_weights(model: nn.Module, content: Any, *, path: Path) -> None:
    """Sets the model's parameters and buffers to what `read_weights` read."""
    stored: Params = content if isinstance(content, dict) else {**content.params, **content.buffers}
    # a tied parameter under each of its names
    current: Params = dict(model.named_parameters(remove_duplicate=False))
    current |= dict(model.named_buffers(remove_duplicate=False))
    required = model.state_dict().keys()
    stored = _without_prefixes(stored, current, path)
    tied = {id(current[name]): tensor for name, tensor in stored.items() if name in current}
    given = {name: stored.get(name, tied.get(id(tensor))) for name, tensor in current.items()}
    missing = [name for name, tensor in given.items() if tensor is None and name in required]
    foreign = [name for name in stored if name not in current]
    reshaped = [
        name
        for name, tensor in given.items()
        if tensor is not None and tensor.shape != current[name].shape
    ]
    problems = [
        *(f"{name} {_shape(current[name])} is missing" for name in missing),
        *(f"{name} {_shape(stored[name])} is not the model's" for name in foreign),
        *(
            f"{name} has shape {_shape(given[name])} instead of {_shape(current[name])}"
            for name in reshaped
        ),
    ]
    if problems:
        more = f" and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise CheckpointError(
            f"{path} does not fit {type(model).__name__}: {'; '.join(problems[:LISTED])}{more}"
        )
    with torch.no_grad():
        for name, tensor in given.items():
            if tensor is not None:
                current[name].copy_(tensor)


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return () if tensor is None else tuple(tensor.shape)


def _without_prefixes(stored: Params, current: Params, path: Path) -> Params:
    """The stored tensors under the model's names, wrappers and one common prefix removed.

    What lies outside the common prefix, such as a Lightning module's metrics, is left out.
    """
    best: list[tuple[str, Params]] = [("", stored)]
    most = 0
    for wrappers in ((), WRAPPERS[:1], WRAPPERS):
        plain = {
            ".".join(part for part in name.split(".") if part not in wrappers): tensor
            for name, tensor in stored.items()
        }
        first = next(iter(current), "")
        prefixes = [name.removesuffix(first) for name in plain if name.endswith(f".{first}")]
        readings = [
            (
                prefix,
                {
                    name.removeprefix(prefix): plain[name]
                    for name in plain
                    if name.startswith(prefix)
                },
            )
            for prefix in ["", *prefixes]
        ]
        matches = [len(reading.keys() & current.keys()) for _, reading in readings]
        if max(matches) > most:
            most = max(matches)
            best = [reading for reading, n in zip(readings, matches, strict=True) if n == most]
    if len(best) > 1:
        names = ", ".join(repr(prefix) for prefix, _ in best)
        raise CheckpointError(
            f"{path} holds the model's weights more than once, under {names}: "
            "save the ones you mean alone"
        )
    return best[0][1]


def _read_safetensors(path: Path, device: torch.device | str) -> Params:
    """The tensors in a .safetensors file; CheckpointError where it cannot be read."""
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise CheckpointError(
            f"{path}: reading it takes a package: pip install safetensors"
        ) from None
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    try:
        tensors: Params = load_file(path, device=str(device))
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors
