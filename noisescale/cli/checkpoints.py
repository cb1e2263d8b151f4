"""Checkpoints named on the command line, and the problems they belong to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from noisescale.errors import CheckpointError

if TYPE_CHECKING:
    from noisescale.checkpoint import Checkpoint
    from noisescale.config import ProblemConfig
    from noisescale.problem import Problem


class Loaded(NamedTuple):
    """A checkpoint and the file it came from."""

    path: Path
    checkpoint: Checkpoint

    @property
    def run(self) -> str:
        """The run folder it lies in."""
        from noisescale.store import STEP_CHECKPOINTS

        folder = self.path.parent
        return str(folder.parent if folder.name == STEP_CHECKPOINTS else folder)


def load_all(paths: tuple[Path, ...], *, device: str) -> list[Loaded]:
    """The checkpoints in files and run folders, in the order given; a folder's by step, each step once."""
    from noisescale.checkpoint import load_checkpoint

    loaded: list[Loaded] = []
    for path in paths:
        found = [Loaded(file, load_checkpoint(file, device=device)) for file in _files(path)]
        by_step = {one.checkpoint.step: one for one in found}
        loaded += [by_step[step] for step in sorted(by_step)]
    return loaded


def with_problems(
    loaded: list[Loaded], *, data_dir: Path | None, device: str
) -> Iterator[tuple[Loaded, Problem]]:
    """Each checkpoint with its problem, whose model holds the checkpoint's parameters and buffers.

    Problems are built once per configuration. CheckpointError for a problem of the user's own.
    """
    import torch

    from noisescale.build import build_problem

    problems: dict[ProblemConfig, Problem] = {}
    for one in loaded:
        config = one.checkpoint.problem
        if config is None:
            raise CheckpointError(
                f"{one.path} belongs to a problem that noisescale did not build: "
                "measure it in Python, with noisescale.measure_sharpness"
            )
        if config not in problems:
            problems[config] = build_problem(config, data_dir=data_dir, device=device)
        problem = problems[config]
        state = {**dict(problem.model.named_parameters()), **dict(problem.model.named_buffers())}
        stored = {**one.checkpoint.params, **one.checkpoint.buffers}
        if state.keys() != stored.keys() or any(stored[name].shape != state[name].shape for name in state):
            raise CheckpointError(f"{one.path} does not hold the parameters of the model it names: {config}")
        with torch.no_grad():
            for name, tensor in state.items():
                tensor.copy_(stored[name])
        yield one, problem


def _files(path: Path) -> list[Path]:
    """A checkpoint file as it is; of a run folder all of them."""
    from noisescale.store import CHECKPOINT, STEP_CHECKPOINTS

    if not path.is_dir():
        return [path]
    files = [*(path / STEP_CHECKPOINTS).glob("step-*.pt"), path / CHECKPOINT]
    return [file for file in files if file.exists()] or [path / CHECKPOINT]
