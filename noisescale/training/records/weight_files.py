"""Files of weights, of this program's and of others', as tensors by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noisescale.errors import CheckpointError, check_file
from noisescale.problems.problem import Params
from noisescale.training.records.checkpoint import is_checkpoint, parse_checkpoint, read_tensors
from noisescale.training.records.folder import CHECKPOINT, parse_json

WRAPPED = ("state_dict", "model_state_dict", "model")  # where Lightning and others keep theirs
INDEX = ".index.json"  # the end of the name of a file that says which shard holds which tensor
# Weights in folders: a run's, and those that save_pretrained leaves, whole or sharded
IN_FOLDERS = (
    CHECKPOINT,
    f"model.safetensors{INDEX}",
    "model.safetensors",
    f"pytorch_model.bin{INDEX}",
    "pytorch_model.bin",
)
SHARD = re.compile(r"(?P<name>.+)-\d+-of-0*(?P<count>\d+)(?P<suffix>\.\w+)")


def read_weights(path: Path | str, *, device: torch.device | str = "cpu") -> tuple[Path, Any]:
    """What a file holds, on `device`: a Checkpoint of ours or a state dict, and the file.

    Args:
        path: a file, an index of shards, or the folder of one or of a run; see `load_weights`.
        device: where the tensors are put.

    Raises:
        CheckpointError: nothing of that kind is there, or it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        path = weights_in(path)
    if path.suffix == ".json":
        return path, _read_shards(path, device)
    shard = SHARD.fullmatch(path.name)
    if shard is not None and int(shard["count"]) > 1:
        index = path.with_name(f"{shard['name']}{shard['suffix']}{INDEX}")
        raise CheckpointError(
            f"{path} is one of {shard['count']} files that hold the weights together: "
            f"give their index, {index}, or their folder"
        )
    content = _read_file(path, device)
    if is_checkpoint(content):
        return path, parse_checkpoint(path, content)
    tensors = _state_dict(content)
    if not tensors:
        raise CheckpointError(f"{path} holds no state dict: no tensors by name")
    return path, tensors


def weights_in(folder: Path) -> Path:
    """The file of weights, or their index, in a folder.

    Args:
        folder: of a run, or of a model as other programs save it.

    Raises:
        CheckpointError: there is none.
    """
    for name in IN_FOLDERS:
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(
        f"{folder / CHECKPOINT}: no such file, nor {', '.join(IN_FOLDERS[1:])}; "
        "give a folder that has one of them, or the file of the weights"
    )


def _read_file(path: Path, device: torch.device | str) -> Any:
    """What one file holds."""
    if path.suffix == ".safetensors":
        return _read_safetensors(path, device)
    return read_tensors(path, device=device)[1]


def _read_shards(path: Path, device: torch.device | str) -> Params:
    """The tensors of all the files that an index names."""
    try:
        shards = sorted(set(parse_json(path, CheckpointError)["weight_map"].values()))
        names = [Path(shard).name for shard in shards]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is no index of weights, such as model.safetensors{INDEX}: "
            "give one, the file of the weights or their folder"
        ) from error
    tensors: Params = {}
    for name in names:  # in the index's own folder, whatever else it says
        if not (shard := path.with_name(name)).exists():
            raise CheckpointError(
                f"{path} names {name}, which is not beside it: put all {len(names)} files there"
            )
        tensors |= _state_dict(_read_file(shard, device))
    return tensors


def _state_dict(content: Any) -> Params:
    """The tensors by name in what a file holds; none where it holds no dict of them."""
    for key in WRAPPED:
        if isinstance(content, dict) and dict(_tensors(content.get(key))):
            content = content[key]
    return dict(_tensors(content))


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Name and tensor; a dict within another one, such as "net", is a prefix of its names.

    An optimizer's state, by numbers, is left out.
    """
    for name, value in content.items() if isinstance(content, dict) else ():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            yield prefix + name, value
        else:
            yield from _tensors(value, f"{prefix}{name}.")


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
    check_file(path, CheckpointError)
    try:
        tensors: Params = load_file(path, device=str(device))
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read as safetensors: {error}") from error
    return tensors
