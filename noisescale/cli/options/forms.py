"""What values options take, and how options are put on a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from noisescale.training.config import BatchRule, TrainConfig

Command = TypeVar("Command", bound=Callable[..., Any])
FOLDER = click.Path(path_type=Path, file_okay=False)
PICTURES = (".png", ".pdf", ".svg")


class BatchSize(click.ParamType[int | str]):
    """A number of examples, "full" or "adaptive"."""

    name = "N|full|adaptive"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        try:
            words = get_args(BatchRule)
            return TrainConfig(batch_size=value if value in words else int(value)).batch_size
        except ValueError:
            self.fail(f"{value!r}: give a whole number of 1 or more, full or adaptive", param, ctx)


class Steps(click.ParamType[int | str]):
    """A number of steps between two measurements, or "log"."""

    name = "STEPS|log"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == "log":
            return "log"
        try:
            steps = int(value)
        except ValueError:
            steps = 0
        if steps < 1:
            self.fail(f"{value!r}: give a number of steps, 1 or more, or log", param, ctx)
        return steps


class FileOf(click.ParamType[Path]):
    """A file to be written, whose name ends in one of these suffixes.

    Args:
        suffixes: with their dots.
    """

    name = "FILE"

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.suffix not in self.suffixes or path.is_dir():
            ends = ", ".join(self.suffixes)
            self.fail(f"{value}: give a file name that ends in {ends}", param, ctx)
        return path


def flag(ctx: click.Context, name: str) -> str:
    """How the option of this name is spelt on the command line."""
    return next(option.opts[0] for option in ctx.command.params if option.name == name)


def together(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator that adds several options, in their order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate
