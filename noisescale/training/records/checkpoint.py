"""Checkpoints: all that a run needs to go on bit for bit, saved atomically and loaded safely."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from noisescale.errors import CheckpointError, check_file
from noisescale.problems.config import AnyConfig, parse_problem
from noisescale.problems.problem import Params
from noisescale.statistics.display import counted, one_line
from noisescale.training.config import TrainConfig
from noisescale.training.records.folder import CHECKPOINT, write_atomically

# what a damaged or foreign file raises, depending on where that is noticed
_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    ValueError,
)

FORMAT = "noisescale checkpoint"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True, repr=False)
class Checkpoint:
    """A run after `step` updates.

    Attributes:
        problem: what is known of its problem: the configuration it was built from, a factory's
            name, or a digest of an object; None: nothing.
        training: how it is trained.
        step: updates made.
        examples_seen: examples used in them.
        seconds: time spent in them.
        params: the model's parameters by name, copies.
        buffers: the model's buffers by name, copies.
        optimizer: the optimizer's state.
        batches: the state of the order of the examples.
        diverged_at_step: the first update (from 1) whose loss was not finite; None while all were.
        schedule: the state of an adaptive batch size; None for a fixed one.
        losses: of the steps, the rows of losses.csv (n, 6); None in checkpoints written before
            they were kept.
        carried: what the measurements along the run go on from; None for nothing.
    """

    problem: AnyConfig | None
    training: TrainConfig
    step: int
    examples_seen: int
    seconds: float
    params: Params
    buffers: Params
    optimizer: dict[str, Any]
    batches: dict[str, Any]
    diverged_at_step: int | None = None
    schedule: dict[str, Any] | None = None
    losses: torch.Tensor | None = None
    carried: dict[str, Any] | None = None

    @property
    def learning_rate(self) -> float:
        """That of the update which follows; at the end of a run, of its last one."""
        groups = self.optimizer.get("param_groups") or [{}]
        return float(groups[0].get("lr", self.training.learning_rate))

    @property
    def training_in_force(self) -> TrainConfig:
        """How the update that follows is made: the training at this point's learning rate."""
        return self.training.at_rate(self.learning_rate)

    def __repr__(self) -> str:
        diverged = self.diverged_at_step
        return one_line(
            self,
            f"step {self.step:,}",
            f"{counted(self.examples_seen, 'example')} seen",
            "" if diverged is None else f"diverged at step {diverged:,}",
            counted(sum(part.numel() for part in self.params.values()), "parameter"),
            repr(self.training),
        )


def save_checkpoint(checkpoint: Checkpoint, path: Path | str) -> None:
    """Writes a checkpoint atomically, in a form that `torch.load(weights_only=True)` reads.

    Args:
        checkpoint: what is written.
        path: the file; a crash, a kill or a full disk leaves an old one as it was.

    Raises:
        OSError: as the system reports it.
    """
    content = {field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)}
    content["problem"] = checkpoint.problem and checkpoint.problem.to_dict()
    content["training"] = checkpoint.training.to_dict()
    buffer = io.BytesIO()  # so that a full disk is met in write_atomically alone
    torch.save({"format": FORMAT, "version": FORMAT_VERSION, **content}, buffer)
    write_atomically(Path(path), buffer.getvalue())


def load_checkpoint(path: Path | str, *, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint in a file or in a run folder. Never runs code from it.

    Args:
        path: the file, or the folder of a run, whose checkpoint.pt is read.
        device: where the tensors are put.

    Raises:
        CheckpointError: where the file is absent, damaged, or not written by `save_checkpoint`.

    Examples:
        >>> from pathlib import Path
        >>> from noisescale import ProblemConfig, TrainConfig, build_problem, train
        >>> from noisescale import load_checkpoint, save_checkpoint
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> checkpoint = list(train(problem, TrainConfig(max_steps=5)))[-1]
        >>> save_checkpoint(checkpoint, Path("five_steps.pt"))
        >>> load_checkpoint("five_steps.pt").step
        5
    """
    path, content = read_tensors(path, device=device)
    if not is_checkpoint(content):
        raise CheckpointError(
            f"{path} was not written by noisescale: "
            "give a checkpoint.pt of a run made by `noisescale train`"
        )
    return parse_checkpoint(path, content)


def read_tensors(path: Path | str, *, device: torch.device | str = "cpu") -> tuple[Path, Any]:
    """What `torch.save` wrote to a file, or to a run folder's checkpoint.pt, and the file.

    Raises CheckpointError where it is absent, damaged, or holds anything but tensors and plain
    values.
    """
    path = Path(path)
    if path.is_dir():
        path = path / CHECKPOINT
    check_file(path, CheckpointError)
    try:
        file = io.BytesIO(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: no such file; give a checkpoint.pt or a folder that has one"
        ) from None
    try:
        if zipfile.is_zipfile(file):
            # torch itself does not compare the tensors' checksums
            with zipfile.ZipFile(file) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"{damaged} does not have its checksum")
        file.seek(0)
        return path, torch.load(file, map_location=device, weights_only=True)
    except _UNREADABLE as error:
        if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path} holds Python objects ({forbidden[1]}) beside its tensors, and loading "
                "them could run code: save the model's state_dict() alone, where you trust the file"
            ) from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        detail = "" if reason.startswith("Weights only load failed") else f" ({reason[:120]})"
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: "
            f"it is damaged, cut short or of another kind{detail}"
        ) from error


def is_checkpoint(content: Any) -> bool:
    """Whether this was written by `save_checkpoint`."""
    return isinstance(content, dict) and content.get("format") == FORMAT


def parse_checkpoint(path: Path, content: dict[str, Any]) -> Checkpoint:
    """The checkpoint in what `read_tensors` read; CheckpointError where it is another version's."""
    content = {name: value for name, value in content.items() if name != "format"}
    if (version := content.pop("version", None)) != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {version}, this noisescale reads {FORMAT_VERSION}: "
            "use the version that wrote it"
        )
    try:
        problem = content.pop("problem")
        training = content.pop("training")
        checkpoint = Checkpoint(
            problem=None if problem is None else parse_problem(problem),
            training=TrainConfig.from_dict(training),
            **content,
        )
        if not all(
            isinstance(getattr(checkpoint, name), int) for name in ("step", "examples_seen")
        ):
            raise TypeError("its step and examples_seen are not whole numbers")
        for tensors in (checkpoint.params, checkpoint.buffers):
            if not isinstance(tensors, dict) or not all(
                isinstance(tensor, torch.Tensor) for tensor in tensors.values()
            ):
                raise TypeError("its params and buffers are not tensors by name")
        if not isinstance(checkpoint.carried or {}, dict):
            raise TypeError("what its measurements carried on is no dictionary")
        losses = checkpoint.losses
        if losses is not None and not (isinstance(losses, torch.Tensor) and losses.ndim == 2):
            raise TypeError("its losses are not a table of numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} lacks or adds fields of a checkpoint: {error}") from error
    return checkpoint
